"""Listens to the other devices of the site: mutual TLS, and only who is allowed is heard."""

import contextlib
import logging
import socket
import ssl
import threading
from abc import abstractmethod
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from shoal.agent.peers.io.protocol import SILENCE_S, Peer, peer_of, read_line, serving_context
from shoal.errors import SettingError, ShoalError

_log = logging.getLogger(__name__)

#: Connections at once.
CONNECTIONS = 32
_IDLE_S, _ACCEPT_S = 60.0, 0.5


class Listening(threading.Thread):
    """Attends neighbours until it is told to finish.

    section   of agent.toml, for what is wrong with the address: SettingError
    allowed   names of the devices that are heard, as the controller says now
    generations   device -> how often its name was given away before, as far as it is known: a
                  certificate of before is another's, or a thief's
    port      that it listens on
    """

    def __init__(
        self,
        section: str,
        folder: Path,
        address: tuple[str, int],
        allowed: Callable[[], Collection[str]],
        generations: Callable[[], Mapping[str, int]],
    ) -> None:
        super().__init__(name=section, daemon=True)
        self._folder, self._allowed, self._generations = folder, allowed, generations
        self._room = threading.BoundedSemaphore(CONNECTIONS)
        self._ending = threading.Event()
        try:
            self._listener = socket.create_server(address, backlog=CONNECTIONS)
        except OSError as error:
            raise SettingError(
                f"{section}: {address[0]}:{address[1]}: {error.strerror}",
                f"choose another [{section}] port",
            ) from error
        self._listener.settimeout(_ACCEPT_S)
        self.port = int(self._listener.getsockname()[1])

    @abstractmethod
    def attend(self, connection: ssl.SSLSocket, name: str, line: bytes) -> bool:
        """Answer `line` of the device `name`; whether it may ask on."""

    def finish(self) -> None:
        self._ending.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes who accepts

    def run(self) -> None:
        with self._listener:
            while not self._ending.is_set():
                with contextlib.suppress(OSError):
                    plain, _ = self._listener.accept()
                    self._begin(plain)

    def _begin(self, plain: socket.socket) -> None:
        if not self._room.acquire(blocking=False):
            plain.close()
            return
        threading.Thread(target=self._attend, args=(plain,), name="attends", daemon=True).start()

    def _attend(self, plain: socket.socket) -> None:
        """One neighbour, until it hangs up or says something odd."""
        try:
            plain.settimeout(SILENCE_S)
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with serving_context(self._folder).wrap_socket(plain, server_side=True) as connection:
                peer = peer_of(connection)
                if peer is not None:
                    self._hear(connection, peer)
        except (OSError, ShoalError) as error:
            _log.debug("a neighbour has gone: %s", error)
        finally:
            plain.close()
            self._room.release()

    def _hear(self, connection: ssl.SSLSocket, peer: Peer) -> None:
        """Line after line; who is heard may change while one is waited for."""
        connection.settimeout(_IDLE_S)
        going_on = self._is_heard(peer)
        while going_on:
            line = read_line(connection)
            going_on = self._is_heard(peer) and self.attend(connection, peer.name, line)

    def _is_heard(self, peer: Peer) -> bool:
        """Whether it was named, and shows no certificate of before its name was enrolled anew."""
        if self._ending.is_set() or peer.name not in self._allowed():
            return False
        return peer.generation >= self._generations().get(peer.name, 0)
