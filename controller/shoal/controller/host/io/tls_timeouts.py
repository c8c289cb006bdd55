"""TLS sockets with timeouts: a stalled client does not occupy a server thread.

gunicorn reads a request in one of its few threads, without a time limit: sixteen clients that
send half a line each would otherwise block the API (see tests/api/test_served.py).
"""

import errno
import ssl
import time
from typing import Any

#: Seconds without data after which a connection is closed; from then on also below this rate.
IDLE_TIMEOUT_S, BYTES_PER_S = 5.0, 1024.0


class TimeoutSocket(ssl.SSLSocket):
    """Give it to a context as ``sslsocket_class``. "Blocking" means IDLE_TIMEOUT_S here.

    gunicorn calls setblocking(True) before it reads a request: then the rate is measured anew.
    A client that is too slow is treated as disconnected (ECONNRESET).
    """

    _began, _received = 0.0, 0

    def setblocking(self, flag: bool) -> None:
        self.settimeout(None if flag else 0.0)

    def settimeout(self, value: float | None) -> None:
        self._began, self._received = time.monotonic(), 0
        super().settimeout(IDLE_TIMEOUT_S if value is None else value)

    def do_handshake(self, block: bool = False) -> None:
        try:
            super().do_handshake(block)
        except TimeoutError as error:
            raise _reset() from error

    def recv(self, buflen: int = 1024, flags: int = 0) -> bytes:
        try:
            data = super().recv(buflen, flags)
        except TimeoutError as error:
            raise _reset() from error
        self._received += len(data)
        spent = time.monotonic() - self._began
        if spent > IDLE_TIMEOUT_S and self._received < spent * BYTES_PER_S and data:
            raise _reset()
        return data

    def sendall(self, data: Any, flags: int = 0) -> None:
        try:
            super().sendall(data, flags)
        except TimeoutError as error:
            raise _reset() from error


def _reset() -> ConnectionResetError:
    return ConnectionResetError(errno.ECONNRESET, "the client is too slow")
