"""gunicorn's threaded worker, with requests read before a thread is given to them.

gthread gives a thread to a connection when its first byte arrives, and reads the rest there:
sixteen clients that send a byte a second hold all sixteen threads. Here the event loop of the
worker does the TLS handshake and reads the request, without blocking, and a thread gets it when
it is whole. What is larger than BUFFERED, or of unknown length, is read by the thread that works on
it, by UPLOADS threads at most; the others stay free.

Bounded: READING connections at a time, of which the oldest gives way, READ_S for each, BUFFERED
bytes and a header of HEADER bytes. TimeoutSocket drops earlier who sends slower than its rate.
"""

import re
import selectors
import ssl
import time
from collections import deque
from typing import Any

from gunicorn import http, sock
from gunicorn.workers.gthread import TConn, ThreadWorker

#: Seconds for handshake and request.
READ_S = 10.0
READING, UPLOADS = 400, 4
HEADER, BUFFERED = 64 << 10, 256 << 10
#: Seconds that an upload waits for one of UPLOADS threads.
WAIT_S = 60.0
_CHUNK = 16 << 10
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d{1,19})[ \t]*(?=\r\n|$)")


class _Request:
    """A request that is being read. upload: a thread reads the rest of it."""

    def __init__(self, data: bytes) -> None:
        self.data = bytearray(data)
        self.deadline = time.monotonic() + READ_S
        self.registered = False
        self.upload = False

    def is_whole(self) -> bool:
        """Whether a thread can take it. A header that gunicorn refuses counts as whole."""
        end = self.data.find(b"\r\n\r\n")
        if end < 0:
            return len(self.data) > HEADER
        head = bytes(self.data[:end]).lower()
        length = int(found[1]) if (found := _LENGTH.search(head)) else 0
        self.upload = length > BUFFERED or any(
            name in head for name in (b"\r\ntransfer-encoding:", b"\r\nexpect:")
        )
        return self.upload or len(self.data) >= end + 4 + length


class ReadingWorker(ThreadWorker):
    """The worker. All of its methods are called by the event loop, in one thread."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self._reading: dict[TConn, _Request] = {}
        self._uploads: set[TConn] = set()
        self._waiting: deque[tuple[TConn, float]] = deque()

    def enqueue_req(self, conn: TConn) -> None:
        """Read the connection's next request; then a thread answers it."""
        known = conn.parser.unreader.take_buffered() if conn.parser else b""
        conn.sock.setblocking(False)  # the rate counts from here: a connection may have rested
        self._reading[conn] = _Request(known)
        while len(self._reading) > READING:
            self._drop(next(iter(self._reading)))
        if conn in self._reading:
            self._advance(conn)

    def finish_request(self, conn: TConn, fs: Any) -> None:
        """Give the thread of an upload to the next one."""
        if conn in self._uploads:
            self._uploads.discard(conn)
            if self._waiting:
                self._upload(self._waiting.popleft()[0])
        super().finish_request(conn, fs)

    def murder_pending(self) -> None:
        """Drop connections whose time is over; the worker calls this once a second."""
        super().murder_pending()
        now = time.monotonic()
        for conn, request in list(self._reading.items()):
            if now > request.deadline or not (self.alive or request.data):
                self._drop(conn)
        while self._waiting and now > self._waiting[0][1]:
            self._close(self._waiting.popleft()[0])

    def _advance(self, conn: TConn, _socket: Any = None) -> None:
        request = self._reading[conn]
        if request.registered:
            self.poller.unregister(conn.sock)
            request.registered = False
        try:
            self._open(conn)
            while not request.is_whole():
                received = conn.sock.recv(_CHUNK)
                if not received:
                    self._drop(conn)
                    return
                request.data += received
        except (ssl.SSLWantReadError, BlockingIOError):
            self._wait_for(conn, selectors.EVENT_READ)
        except ssl.SSLWantWriteError:
            self._wait_for(conn, selectors.EVENT_WRITE)
        except (OSError, ValueError):
            self._drop(conn)
        else:
            self._hand_over(conn)

    def _open(self, conn: TConn) -> None:
        """TLS handshake, as far as it goes without waiting."""
        if conn.initialized:
            return
        if self.cfg.is_ssl and not isinstance(conn.sock, ssl.SSLSocket):
            conn.sock.setblocking(False)
            conn.sock = sock.ssl_wrap_socket(conn.sock, self.cfg)
        conn.sock.setblocking(False)
        if self.cfg.is_ssl:
            conn.sock.do_handshake()
        conn.parser = http.get_parser(self.cfg, conn.sock, conn.client)
        conn.initialized = conn.data_ready = True

    def _wait_for(self, conn: TConn, event: int) -> None:
        self.poller.register(conn.sock, event, lambda socket: self._advance(conn, socket))
        self._reading[conn].registered = True

    def _hand_over(self, conn: TConn) -> None:
        request = self._reading.pop(conn)
        conn.parser.unreader.unread(bytes(request.data))
        if not request.upload:
            super().enqueue_req(conn)
        elif len(self._uploads) < UPLOADS:
            self._upload(conn)
        else:
            self._waiting.append((conn, time.monotonic() + WAIT_S))

    def _upload(self, conn: TConn) -> None:
        self._uploads.add(conn)
        super().enqueue_req(conn)

    def _drop(self, conn: TConn) -> None:
        if self._reading.pop(conn).registered:
            self.poller.unregister(conn.sock)
        self._close(conn)

    def _close(self, conn: TConn) -> None:
        self.nr_conns -= 1
        conn.close()
