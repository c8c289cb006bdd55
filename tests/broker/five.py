"""A broker that speaks MQTT 5 alone: Mosquitto behind a gate that turns MQTT 3.1.1 away.

Mosquitto accepts both; its Debian version has no option against it. The gate reads the CONNECT
and answers 3.1.1 as such brokers do; what speaks 5 is passed on. Where there is TLS, it ends at the
gate, which comes to Mosquitto by the certificate of the same name.
"""

import select
import socket
import ssl
import threading
from collections.abc import Callable
from pathlib import Path

from broker.real import Mosquitto
from ports import free_port
from shoal.controller.fleet.certificates import read_common_name
from shoal.controller.fleet.io.ca import CONTROLLER

#: What brokers of MQTT 5 say to 3.1.1: its own refusal, one that only 5 knows, or nothing.
REFUSALS = {
    "in 3.1.1": b"\x20\x02\x00\x01",
    "in 5": b"\x20\x03\x00\x84\x00",
    "without a reply": b"",
}


class Gate:
    """The listener.

    refusal  reply to 3.1.1
    welcome  makes of a connection that came the one to read from
    reach    makes the connection to the broker, for one that came
    """

    def __init__(
        self,
        port: int,
        refusal: bytes,
        *,
        welcome: Callable[[socket.socket], socket.socket] = lambda near: near,
        reach: Callable[[socket.socket], socket.socket],
    ) -> None:
        self._port, self._refusal = port, refusal
        self._welcome, self._reach = welcome, reach
        self.turned_away = self.let_in = 0
        self._listener: socket.socket | None = None

    def open(self) -> None:
        """Listen, unless it does already."""
        if self._listener is None:
            self._listener = socket.create_server(("127.0.0.1", self._port))
            threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def close(self) -> None:
        if self._listener is not None:
            self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                near, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=self._greet, args=(near,), daemon=True).start()

    def _greet(self, came: socket.socket) -> None:
        try:
            near = self._welcome(came)
            connect = near.recv(65_536)
            if not _is_of_five(connect):
                self.turned_away += 1
                near.sendall(self._refusal)
                near.close()
                return
            self.let_in += 1
            far = self._reach(near)
            far.sendall(connect)
        except OSError:
            came.close()
            return
        _carry(near, far)


class MosquittoOfFive(Mosquitto):
    """Mosquitto that is reached only through the gate."""

    name = "mosquitto"

    def __init__(self, folder: Path, pki: Path, port: int, refusal: str = "in 3.1.1") -> None:
        self._inner = free_port()
        super().__init__(folder, pki, self._inner)
        self._certificates = folder.parent
        self.gate = Gate(port, REFUSALS[refusal], welcome=self._welcome, reach=self._reach)
        self.port = port

    def start(self) -> None:
        port, self.port = self.port, self._inner
        super().start()
        self.port = port
        self.gate.open()

    def stop(self) -> None:
        self.gate.close()
        super().stop()

    def _welcome(self, came: socket.socket) -> socket.socket:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=self.pki / "ca.pem")
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_cert_chain(self.pki / "server.crt", self.pki / "server.key")
        return context.wrap_socket(came, server_side=True)

    def _reach(self, near: socket.socket) -> socket.socket:
        assert isinstance(near, ssl.SSLSocket)
        path = self._certificate_of(near)
        context = ssl.create_default_context(cafile=self.pki / "ca.pem")
        context.load_cert_chain(path.with_suffix(".crt"), path.with_suffix(".key"))
        raw = socket.create_connection(("127.0.0.1", self._inner), 5)
        raw.settimeout(None)
        return context.wrap_socket(raw, server_hostname="127.0.0.1")

    def _certificate_of(self, near: ssl.SSLSocket) -> Path:
        """Where `Site` keeps the certificate of whoever came."""
        subject = dict(pair for part in near.getpeercert()["subject"] for pair in part)
        if subject["commonName"] == CONTROLLER:
            return self.pki / "controller"
        known = read_common_name(subject["commonName"])
        return self._certificates / f"{known.device}-{known.generation}"


def _is_of_five(connect: bytes) -> bool:
    """Whether the protocol level of a CONNECT is 5: it stands behind the length and the name."""
    at = connect.find(b"\x00\x04MQTT")
    return at >= 0 and connect[at + 6] == 5


def _carry(near: socket.socket, far: socket.socket) -> None:
    """Bytes both ways on one thread: a TLS socket may not be read and written at once."""
    sides = {near: far, far: near}
    try:
        while _passed_on(sides):
            pass
    except OSError:
        pass
    for side in sides:
        side.close()


def _passed_on(sides: dict[socket.socket, socket.socket]) -> bool:
    decrypted = [side for side in sides if getattr(side, "pending", int)()]
    for side in decrypted or select.select(list(sides), [], [])[0]:
        piece = side.recv(65_536)
        if not piece:
            return False
        sides[side].sendall(piece)
    return True
