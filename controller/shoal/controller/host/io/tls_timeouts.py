"""A server's TLS socket that does not wait for ever: a stalled client gives its thread back.

gunicorn reads a request in one of its few threads, with no limit of its own: sixteen clients that
send half a line each would otherwise be the end of the API (met, see tests/api/test_served.py).
"""

import errno
import ssl
import time
from typing import Any

#: A silence of so many seconds ends the connection; so does, after as long, a slower pace.
SILENCE_S, BYTES_PER_S = 5.0, 1024.0


class PatientSocket(ssl.SSLSocket):
    """Give it to a context as ``sslsocket_class``. "Blocking" means SILENCE_S here.

    gunicorn calls setblocking(True) before it reads a request: then the pace counts anew.
    A client that is too slow looks like one that hung up (ECONNRESET).
    """

    _began, _received = 0.0, 0

    def setblocking(self, flag: bool) -> None:
        self.settimeout(None if flag else 0.0)

    def settimeout(self, value: float | None) -> None:
        self._began, self._received = time.monotonic(), 0
        super().settimeout(SILENCE_S if value is None else value)

    def do_handshake(self, block: bool = False) -> None:
        try:
            super().do_handshake(block)
        except TimeoutError as error:
            raise _hung_up() from error

    def recv(self, buflen: int = 1024, flags: int = 0) -> bytes:
        try:
            data = super().recv(buflen, flags)
        except TimeoutError as error:
            raise _hung_up() from error
        self._received += len(data)
        spent = time.monotonic() - self._began
        if spent > SILENCE_S and self._received < spent * BYTES_PER_S and data:
            raise _hung_up()
        return data

    def sendall(self, data: Any, flags: int = 0) -> None:
        try:
            super().sendall(data, flags)
        except TimeoutError as error:
            raise _hung_up() from error


def _hung_up() -> ConnectionResetError:
    return ConnectionResetError(errno.ECONNRESET, "the client is too slow")
