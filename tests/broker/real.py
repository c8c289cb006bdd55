"""Real brokers on free loopback ports, configured by the product's own code."""

import contextlib
import os
import random
import signal
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

from cryptography.hazmat.primitives.asymmetric import ec

from ports import free_port, is_open
from programs import mosquitto, nats_server
from shoal.agent.identity.io.enrol import key_pem, make_csr
from shoal.controller.broker.io.mosquitto import MosquittoFiles
from shoal.controller.broker.io.nats import NatsServer
from shoal.controller.fleet.io.ca import Authority
from shoal.mqtt import Link
from shoal.topics import ALL_UP, all_down, up
from waiting import eventually

ENROLLED = ("cam-a", "cam-b")


class Broker(Protocol):
    """A broker under test. admit: exactly these devices from now on."""

    name: str
    port: int
    pki: Path

    def start(self) -> None: ...
    def admit(self, devices: tuple[str, ...]) -> None: ...
    def kill9(self) -> None: ...
    def stop(self) -> None: ...


class Nats:
    """The embedded broker."""

    name = "nats-server"

    def __init__(self, folder: Path, pki: Path, port: int) -> None:
        self.pki, self.port, self.folder = pki, port, folder
        self._server = NatsServer(nats_server(), folder, pki, host="127.0.0.1", port=port)
        self._devices: tuple[str, ...] = ENROLLED

    def start(self) -> None:
        self._server.start(self._devices)
        wait_for_port(self.port)

    def admit(self, devices: tuple[str, ...]) -> None:
        self._devices = devices
        self._server.set_devices(devices)

    def kill9(self) -> None:
        os.kill(self._server.pid, signal.SIGKILL)
        eventually(lambda: self._server.exit_code is not None, "the broker's end")

    def stop(self) -> None:
        self._server.stop()


class Mosquitto:
    """A Mosquitto from the distribution, by the configuration that we generate."""

    name = "mosquitto"

    def __init__(self, folder: Path, pki: Path, port: int) -> None:
        self.pki, self.port = pki, port
        self._binary, self._process = mosquitto(), None
        self._pid = folder.parent / "mosquitto.pid"
        self._files = MosquittoFiles(folder, self._pid)
        folder.mkdir()
        self._pid.write_text(str(os.getpid()))
        user = "root" if os.geteuid() == 0 else ""
        plain = MosquittoFiles(folder)
        plain.write(pki, ENROLLED, host="127.0.0.1", port=port, user=user)
        self._conf = folder / "mosquitto.conf"

    def start(self) -> None:
        self._process = subprocess.Popen([self._binary, "-c", str(self._conf)])
        self._pid.write_text(str(self._process.pid))
        wait_for_port(self.port)
        eventually(lambda: shakes_hands(self.port), f"Mosquitto's loop at port {self.port}")

    def admit(self, devices: tuple[str, ...]) -> None:
        self._files.set_devices(devices)

    def has_written(self, *payloads: bytes) -> bool:
        """Whether they are in its store, which it writes once a second."""
        store = self._conf.parent / "store" / "mosquitto.db"
        return store.exists() and all(payload in store.read_bytes() for payload in payloads)

    def kill9(self) -> None:
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            self._process.wait(10)


def wait_for_port(port: int) -> None:
    eventually(lambda: is_open(port), f"a listener on port {port}")


def shakes_hands(port: int) -> bool:
    """Whether TLS is spoken there. A Mosquitto that only listens is not ready for SIGHUP yet."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with (
            socket.create_connection(("127.0.0.1", port), 5) as plain,
            context.wrap_socket(plain),
        ):
            return True
    except ssl.SSLError:
        return True  # it spoke, if only to say no
    except OSError:
        return False


class Party:
    """One client through the product's Link, and the messages that it received."""

    def __init__(self, broker: Broker, name: str, certificate: Path, **choices: Any) -> None:
        self.name, self.received, self.ups = name, [], 0
        self.news = threading.Event()
        self._will = choices.pop("will", None)
        self._on_message = choices.pop("on_message", self._hear)
        self.link = Link(
            url=f"mqtts://127.0.0.1:{broker.port}",
            client_id=choices.pop("client_id", name),
            ca=choices.pop("ca", broker.pki / "ca.pem"),
            certificate=certificate,
            key=certificate.with_suffix(".key"),
            subscriptions=choices.pop("subscriptions"),
            random=random.Random(name),
            **choices,
        )

    def _hear(self, topic: str, payload: bytes) -> None:
        self.received.append((topic, payload))

    def _change(self, is_up: bool) -> None:
        self.ups += is_up

    def start(self) -> "Party":
        self.link.start(self._on_message, self._change, self._will)
        return self

    def connect(self) -> "Party":
        self.start()
        eventually(lambda: self.link.connected, f"{self.name} connected: {self.link.fault}")
        return self

    def payloads(self) -> list[bytes]:
        return [payload for _, payload in self.received]


class Site:
    """A broker, its CA and the parties at it; the fixture ends them all."""

    def __init__(self, broker: Broker, folder: Path, authority: Authority) -> None:
        self.broker, self._folder, self._authority = broker, folder, authority
        self._parties: list[Party] = []

    def certificate(
        self, name: str, authority: Authority | None = None, generation: int = 0
    ) -> Path:
        """PEM file of a certificate for `name`, its key beside it."""
        path = self._folder / f"{name}{'' if authority is None else '-foreign'}-{generation}.crt"
        if not path.exists():
            key = ec.generate_private_key(ec.SECP256R1())
            issuer = authority or self._authority
            made = issuer.issue_device(make_csr(key, name), name, time.time(), generation)
            path.write_text(made.certificate)
            path.with_suffix(".key").write_bytes(key_pem(key))
        return path

    def device(self, name: str, **choices: Any) -> Party:
        choices.setdefault("subscriptions", [all_down(name), "shoal/v1/fleet/+"])
        choices.setdefault("will", lambda: (up(name, "status"), b"gone"))
        certificate = choices.pop("certificate", None) or self.certificate(name)
        return self._keep(Party(self.broker, name, certificate, **choices))

    def controller(self, **choices: Any) -> Party:
        choices.setdefault("subscriptions", [ALL_UP])
        certificate = self.broker.pki / "controller.crt"
        return self._keep(Party(self.broker, "controller", certificate, **choices))

    def tls(self, certificate: Path | None) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(self.broker.pki / "ca.pem"))
        if certificate is not None:
            context.load_cert_chain(certificate, certificate.with_suffix(".key"))
        return context

    def _keep(self, party: Party) -> Party:
        self._parties.append(party)
        return party

    def end(self) -> None:
        for party in self._parties:
            party.link.stop()
        self.broker.stop()


class Wire:
    """A TCP proxy to a broker that can drop all traffic silently, as radio links do."""

    def __init__(self, port: int) -> None:
        self._target, self.dead = port, False
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            far = socket.create_connection(("127.0.0.1", self._target))
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._carry, args=(source, sink), daemon=True).start()

    def _carry(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            while piece := source.recv(65_536):
                if not self.dead:
                    sink.sendall(piece)
        except OSError:
            pass
        sink.close()

    def close(self) -> None:
        self._listener.close()


@contextlib.contextmanager
def running_site(
    kind: Callable[[Path, Path, int], Broker], folder: Path, authority: Authority
) -> Iterator[Site]:
    """A broker of this kind that runs and knows ENROLLED."""
    broker = kind(folder / "broker", authority.folder, free_port())
    broker.start()
    made = Site(broker, folder, authority)
    yield made
    made.end()
