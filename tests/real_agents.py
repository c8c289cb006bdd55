"""A real agent process in an enrolled folder, and an artifact server for it."""

import http.client
import http.server
import json
import math
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from real_models import put_release
from repositories import Repository
from shoal.agent.host.io.config import Controller, Device, Peers, Settings, Source, Update, dump
from shoal.agent.identity.io.enrol import key_pem, make_csr
from shoal.agent.installed.io.journal import SqliteJournal
from shoal.agent.installed.record import Record, Slot, State
from shoal.bundle import MANIFEST, sha256_of
from shoal.controller.fleet.io.ca import Authority
from shoal.errors import AbsentError
from shoal.profile import FURTHER
from shoal.trust import ImageRepository

#: Longest start, s; a soak test shares the machine with other load.
PATIENCE_S = 600.0 if os.environ.get("SHOAL_SOAK") else 60.0


class Enrolled(NamedTuple):
    """folder of the agent; PKI of the site; repository that signs its releases."""

    folder: Path
    pki: Path
    repository: Repository


def enrol(
    parent: Path,
    *,
    name: str = "cam-1",
    beside: Enrolled | None = None,
    broker: str = "mqtts://127.0.0.1:1",
    artifacts: str = "https://127.0.0.1:1",
    peers: Peers = Peers(),  # noqa: B008 (immutable)
    generation: int = 0,
    **update: Any,
) -> Enrolled:
    """Write an enrolled agent folder `parent`/`name`; default addresses are unreachable.

    beside   another device of the same site
    """
    folder, pki = parent / name, parent / "pki"
    folder.mkdir()
    if beside is None:
        authority = Authority.create(pki, names=["localhost"], now=time.time())
    else:
        authority = Authority.open(pki)
    key = ec.generate_private_key(ec.SECP256R1())
    issued = authority.issue_device(make_csr(key, name), name, time.time(), generation)
    (folder / "device.crt").write_text(issued.certificate)
    (folder / "device.key").write_bytes(key_pem(key))
    (folder / "ca.pem").write_text(authority.bundle)
    repository = beside.repository if beside else Repository(time.time())
    (folder / "root.json").write_bytes(repository.root)
    (folder / "director.json").write_bytes(repository.director_root)
    (folder / "rows.csv").write_text("x0,x1,x2,x3,y\n1,2,3,4,a\n4,3,2,1,b\n")
    settings = Settings(
        device=Device(name=name, site="north", profile="x86-vnni"),
        controller=Controller(url="https://127.0.0.1:1", broker=broker, artifacts=artifacts),
        source=Source(path="rows.csv", label="y", rate_hz=200),
        update=Update(**update),
        peers=peers,
    )
    (folder / "agent.toml").write_text(dump(settings))
    return Enrolled(folder, pki, repository)


def put_in_service(folder: Path, repository: Repository | None = None) -> Slot:
    """Install a release in slot a, as after an update; with the proof that `repository` signed."""
    files = folder / "models" / "parts" / "a"
    manifest = put_release(files)
    if repository is not None:
        order = repository.add("release", "parts", 1, (files / MANIFEST).read_bytes())
        images = ImageRepository(folder / "metadata", repository.root, repository.fetch)
        images.refresh(time.time())
        images.check(order)
        (files / "proof.json").write_bytes(images.proof(order))
    slot = Slot(
        slot="a", model="parts", release=manifest.release, path="release/parts/1/manifest.json",
        sha256=sha256_of(files / MANIFEST), variant="fp32",
        model_sha256=manifest.variant("fp32").file.sha256,
        counter=1, since_s=time.time(),
    )  # fmt: skip
    journal = SqliteJournal(folder / "journal.db")
    journal.save(Record(model="parts", serving=slot, state=State.IDLE))
    journal.close()
    return slot


class Process:
    """A running agent process."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.began = folder, time.monotonic()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "shoal.agent", "run", "--folder", str(folder)],
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {FURTHER: str(Path(__file__).parent / "firmware_profiles")},
        )

    def request(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        plain = socket.socket(socket.AF_UNIX)
        plain.connect(str(self.folder / "agent.sock"))
        connection = http.client.HTTPConnection("localhost")
        connection.sock = plain
        connection.request(method, path, json.dumps(body) if body else None)
        response = connection.getresponse()
        content = json.loads(response.read())
        connection.close()
        return response.status, content

    def wait_until(self, path: str = "/v2/models/parts/ready") -> float:
        """Wait for status 200; seconds since the start."""
        return self.wait_for(lambda: self.request("GET", path)[0] == 200)

    def wait_for(self, condition: Callable[[], bool]) -> float:
        """Wait until `condition` holds; seconds since the start."""
        while time.monotonic() - self.began < PATIENCE_S:
            try:
                if condition():
                    return time.monotonic() - self.began
            except OSError:
                pass
            assert self.process.poll() is None, self.process.communicate()[1]
            time.sleep(0.02)
        pytest.fail("the agent did not reach the state in time")

    def end(self, number: int = signal.SIGTERM) -> int:
        if self.process.poll() is None:
            os.kill(self.process.pid, number)
        self.process.communicate(timeout=PATIENCE_S)
        return self.process.returncode


class Artifacts:
    """HTTPS server of TUF metadata and blobs that counts the bytes it sends.

    fetch     metadata name -> bytes; blobs by sha256
    sent      bytes of blobs
    sent_of   sha256 -> bytes sent of that blob
    hold_at   sha256 -> bytes sent of it after which requests wait for `resume`
    resume    set: requests no longer wait
    """

    def __init__(self, fetch: Callable[[str], bytes] | None = None) -> None:
        self.fetch, self.blobs, self.sent = fetch, dict[str, bytes](), 0
        self.sent_of: dict[str, int] = {}
        self.hold_at: dict[str, int] = {}
        self.resume = threading.Event()
        outer = self

        class Request(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                outer._respond(self)

            def log_message(self, *args: object) -> None:
                pass

        class QuietServer(http.server.ThreadingHTTPServer):
            def handle_error(self, request: object, client_address: object) -> None:
                pass  # agents are killed during a request

        self._server = QuietServer(("127.0.0.1", 0), Request)
        self.url = f"https://localhost:{self._server.server_port}"

    def start(self, pki: Path) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pki / "server.crt", pki / "server.key")
        self._server.socket = context.wrap_socket(
            self._server.socket, server_side=True, do_handshake_on_connect=False
        )
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _respond(self, request: http.server.BaseHTTPRequestHandler) -> None:
        _, kind, name = request.path.partition("?")[0].split("/", 2)
        try:
            data = self.fetch(name) if kind == "metadata" else self.blobs[name]
        except (AbsentError, KeyError):
            request.send_error(404)
            return
        wanted = request.headers.get("Range", "")
        first, _, last = wanted.removeprefix("bytes=").partition("-")
        start, end = int(first or 0), int(last) + 1 if last else len(data)
        if self.sent_of.get(name, 0) >= self.hold_at.get(name, math.inf):
            self.resume.wait(PATIENCE_S)
        request.send_response(206 if wanted else 200)
        request.send_header("Content-Length", str(end - start))
        if wanted:
            request.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(data)}")
        request.end_headers()
        self.sent_of[name] = self.sent_of.get(name, 0) + end - start
        request.wfile.write(data[start:end])
        self.sent += (end - start) * (kind == "blobs")
