"""Listens to the other devices of the site: mutual TLS, and only who is allowed is heard."""

import contextlib
import logging
import socket
import ssl
import threading
from abc import abstractmethod
from collections.abc import Callable, Collection
from pathlib import Path

from shoal.agent.io.neighbour import SILENCE_S, peer_of, serving_context
from shoal.errors import SettingError, ShoalError

_log = logging.getLogger(__name__)

#: Connections at once.
CONNECTIONS = 32
_IDLE_S, _ACCEPT_S = 60.0, 0.5


class Listening(threading.Thread):
    """Attends neighbours until it is told to finish.

    section   of agent.toml, for what is wrong with the address: SettingError
    allowed   names of the devices that are heard, just now
    """

    def __init__(
        self,
        section: str,
        folder: Path,
        address: tuple[str, int],
        allowed: Callable[[], Collection[str]],
    ) -> None:
        super().__init__(name=section, daemon=True)
        self._folder, self._allowed = folder, allowed
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

    @abstractmethod
    def attend(self, connection: ssl.SSLSocket, name: str) -> bool:
        """Answer one thing that the device `name` asks; whether it may ask on."""

    @property
    def port(self) -> int:
        return int(self._listener.getsockname()[1])

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
                if peer is None or peer.name not in self._allowed():
                    return
                connection.settimeout(_IDLE_S)
                while not self._ending.is_set() and self.attend(connection, peer.name):
                    pass
        except (OSError, ShoalError) as error:
            _log.debug("a neighbour has gone: %s", error)
        finally:
            plain.close()
            self._room.release()
