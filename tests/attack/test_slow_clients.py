"""Clients that send a byte now and then: nobody else waits for them."""

import itertools
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from api.serving import Served, give_ports
from shoal.controller.host.io.request_reader import UPLOADS
from shoal.controller.host.io.tls_timeouts import IDLE_TIMEOUT_S
from shoal.controller.host.io.web_server import THREADS

HEADER = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-Slow: "
HEALTH = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
BODY = b"POST /api/v1/session HTTP/1.1\r\nHost: localhost\r\nContent-Length: 60000\r\n\r\n"
UPLOAD = b"POST /api/v1/session HTTP/1.1\r\nHost: localhost\r\nContent-Length: 900000\r\n\r\n"
CHUNKED = BODY.replace(b"Content-Length: 60000", b"Transfer-Encoding: chunked")
SAID = {"handshake": b"\x16\x03\x01", "header": HEADER, "body": BODY, "upload": UPLOAD}
SAID["chunks"] = CHUNKED


@pytest.fixture(scope="module")
def server(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("slow") / "controller"
    shutil.copytree(template, folder)
    made = Served(folder, "web", give_ports(folder).network.port).wait()
    yield made
    code = made.end()
    assert code == 0, made.said
    assert "Traceback" not in made.said, made.said


class Tricklers:
    """Connections that send a byte each time that `once` is called."""

    def __init__(self, server: Served, kinds: list[str]) -> None:
        self.lines: list[socket.socket] = []
        for kind in kinds:
            line = server.plain() if kind == "handshake" else server.raw()
            line.sendall(SAID[kind])
            self.lines.append(line)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._over.wait(0.2):
            for line in self.lines:
                try:
                    line.sendall(b"x")
                except OSError:
                    continue

    def alive(self) -> int:
        """How many the server has neither answered nor dropped."""
        found = 0
        for line in self.lines:
            line.settimeout(0.001)
            try:
                found += bool(line.recv(1)) and 0
            except TimeoutError:
                found += 1
            except OSError:
                continue
            finally:
                line.settimeout(5)
        return found

    def end(self) -> None:
        self._over.set()
        self._thread.join()
        for line in self.lines:
            line.close()


@pytest.mark.parametrize("kind", ["handshake", "header", "body"])
def test_sixty_slow_clients_hold_no_thread(server: Served, kind: str) -> None:
    """Answered while they still trickle: not because the server has got rid of them."""
    slow = Tricklers(server, [kind] * 60)
    try:
        assert server.get("/healthz").status == 200
        assert server.get("/api/v1/me").status == 401
        assert slow.alive() > THREADS
    finally:
        slow.end()


def test_slow_uploads_leave_threads_for_others(server: Served) -> None:
    kinds = list(itertools.islice(itertools.cycle(["upload", "chunks"]), THREADS + UPLOADS))
    slow = Tricklers(server, kinds)
    try:
        assert server.get("/healthz").status == 200
        assert slow.alive() > UPLOADS
    finally:
        slow.end()


def test_a_connection_that_rested_is_no_slow_client(server: Served) -> None:
    with server.raw() as line:
        line.sendall(HEALTH)
        read_ok(line, 1)
        time.sleep(IDLE_TIMEOUT_S + 0.5)
        line.sendall(HEALTH)
        read_ok(line, 1)


def test_requests_in_one_packet_are_all_answered(server: Served) -> None:
    with server.raw() as line:
        line.sendall(HEALTH * 3)
        read_ok(line, 3)


def read_ok(line: socket.socket, answers: int) -> None:
    """Read until so many answers of /healthz have come."""
    said = b""
    while said.count(b'"ok"') < answers:
        more = line.recv(4096)
        assert more, said
        said += more
