"""Real servers on free loopback ports, as `shoal-controller` starts them."""

import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import urllib3

from ports import free_port
from shoal.controller.host import settings
from shoal.controller.initialization import as_toml
from waiting import PATIENCE_S


def give_ports(folder: Path) -> settings.Settings:
    """Put free ports into the settings of the controller in `folder`."""
    old = settings.load(folder)
    network = msgspec.structs.replace(old.network, port=free_port(), artifacts=free_port())
    new = msgspec.structs.replace(old, network=network)
    (folder / "controller.toml").write_text(as_toml(new))
    return new


class Served:
    """One child process of a controller, `web` or `artifacts`, and a client that trusts its CA."""

    def __init__(self, folder: Path, child: str, port: int) -> None:
        self.port, self.url = port, f"https://localhost:{port}"
        self.ca = folder / "pki" / "ca.pem"
        self.http = urllib3.PoolManager(ca_certs=str(self.ca), retries=False, timeout=PATIENCE_S)
        self._log = (folder / f"{child}.test.log").open("wb")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "shoal.controller", child, "--folder", str(folder)],
            stdout=self._log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )

    def wait(self) -> "Served":
        """Until it answers."""
        end = time.monotonic() + PATIENCE_S
        while True:
            try:
                if self.get("/healthz").status == 200:
                    return self
            except urllib3.exceptions.HTTPError:
                pass
            said = Path(self._log.name).read_text()
            assert self._process.poll() is None, said
            assert time.monotonic() < end, said
            time.sleep(0.05)

    def get(self, path: str, method: str = "GET", **headers: str) -> urllib3.BaseHTTPResponse:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.http.request(method, self.url + path, headers=named)

    def plain(self) -> socket.socket:
        """A bare TCP connection."""
        return socket.create_connection(("127.0.0.1", self.port), PATIENCE_S)

    def raw(self) -> ssl.SSLSocket:
        """A bare TLS connection."""
        context = ssl.create_default_context(cafile=str(self.ca))
        return context.wrap_socket(self.plain(), server_hostname="localhost")

    @property
    def said(self) -> str:
        return Path(self._log.name).read_text()

    def end(self) -> int:
        """SIGTERM, and its exit code; SIGKILL if it does not listen."""
        self._process.send_signal(signal.SIGTERM)
        try:
            return self._process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()
        finally:
            self._log.close()
            self.http.clear()
