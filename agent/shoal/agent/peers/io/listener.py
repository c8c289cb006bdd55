"""Listener for the other devices of the site: mutual TLS, and only allowed devices are served."""

import contextlib
import logging
import socket
import ssl
import threading
from abc import abstractmethod
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from shoal.address import host_port, is_ipv6
from shoal.agent.peers.io.protocol import (
    READ_S,
    PeerIdentity,
    identity_of,
    read_line,
    server_context,
)
from shoal.errors import SettingError, ShoalError

_log = logging.getLogger(__name__)

#: Connections at once.
CONNECTIONS = 32
_IDLE_S, _ACCEPT_S = 60.0, 0.5


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; on every address of IPv4 and IPv6 for the host "". Raises OSError."""
    if not host and socket.has_dualstack_ipv6():
        return socket.create_server(
            ("", port), family=socket.AF_INET6, backlog=CONNECTIONS, dualstack_ipv6=True
        )
    family = socket.AF_INET6 if is_ipv6(host) else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=CONNECTIONS)


class TlsListener(threading.Thread):
    """Serves the site's devices until `finish`.

    section      of agent.toml, named when the address cannot be used: SettingError
    allowed      names of the devices that are served, from the controller's latest message
    generations  device -> least generation of its certificate: an older one was issued before its
                 name was enrolled again, and may be stolen
    port         that it listens on
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
        self._connections = threading.BoundedSemaphore(CONNECTIONS)
        self._finished = threading.Event()
        try:
            self._listener = listen(*address)
        except OSError as error:
            raise SettingError(
                f"{section}: {host_port(*address)}: {error.strerror}",
                f"choose another [{section}] port",
            ) from error
        self._listener.settimeout(_ACCEPT_S)
        self.port = int(self._listener.getsockname()[1])

    @abstractmethod
    def on_request(self, connection: ssl.SSLSocket, name: str, line: bytes) -> bool:
        """Answer one request `line` of the device `name`; False closes the connection."""

    def finish(self) -> None:
        self._finished.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes up `accept`

    def run(self) -> None:
        with self._listener:
            while not self._finished.is_set():
                with contextlib.suppress(OSError):
                    plain, _ = self._listener.accept()
                    self._begin(plain)

    def _begin(self, plain: socket.socket) -> None:
        if not self._connections.acquire(blocking=False):
            plain.close()
            return
        threading.Thread(target=self._serve, args=(plain,), name="peer", daemon=True).start()

    def _serve(self, plain: socket.socket) -> None:
        """One connection, until it is closed or sends something invalid."""
        try:
            plain.settimeout(READ_S)
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with server_context(self._folder).wrap_socket(plain, server_side=True) as connection:
                peer = identity_of(connection)
                if peer is not None:
                    self._answer_all(connection, peer)
        except (OSError, ShoalError) as error:
            _log.debug("connection of a peer ended: %s", error)
        finally:
            plain.close()
            self._connections.release()

    def _answer_all(self, connection: ssl.SSLSocket, peer: PeerIdentity) -> None:
        """Answer request after request; a peer may become disallowed between two."""
        connection.settimeout(_IDLE_S)
        open_ = self._is_allowed(peer)
        while open_:
            line = read_line(connection)
            open_ = self._is_allowed(peer) and self.on_request(connection, peer.name, line)

    def _is_allowed(self, peer: PeerIdentity) -> bool:
        """Whether the controller names it, and its certificate is not of an older generation."""
        if self._finished.is_set() or peer.name not in self._allowed():
            return False
        return peer.generation >= self._generations().get(peer.name, 0)
