"""The local inference endpoint: HTTP/1.1 on 127.0.0.1 and on a Unix socket.

asyncio + httptools, one object a connection. Bodies, headers, connections and the requests waiting
for a response are bounded: what exceeds a limit is refused, not buffered.
"""

import asyncio
import collections
import contextlib
import functools
import logging
from http import HTTPStatus
from pathlib import Path
from typing import NamedTuple

import httptools
import numpy as np

from shoal.address import host_port, url_of
from shoal.agent.serving.inference import Inference
from shoal.agent.serving.io.batching import AdaptiveBatcher
from shoal.agent.serving.protocol import BODY
from shoal.agent.serving.routes import Request, Response, error_response
from shoal.errors import SettingError

_log = logging.getLogger(__name__)

#: Bytes of request line and headers; connections at once; requests waiting on one connection.
HEAD, CONNECTIONS, WAITING = 16 << 10, 256, 64
#: Bytes of request bodies without a response yet, of all connections together.
PENDING = 64 << 20
#: Bytes read from a socket at once, into one buffer for all.
READ = 256 << 10
#: Seconds until the connection of a refused client is closed; what it sends is discarded.
LINGER_S = 1.0
#: Bodies of more bytes are read from the socket to where they stay, past the parser.
DIRECT = READ // 2
#: Header cache: longest request that is looked up, longest header that is kept, entries.
CACHED_READ, CACHED_HEAD, CACHED_HEADERS = 64 << 10, 1 << 10, 256
_END = b"\r\n\r\n"


class Endpoint:
    """The listening sockets."""

    def __init__(self, inference: Inference, *, host: str, port: int, socket: Path | None) -> None:
        self._host, self._port, self._socket = host, port, socket
        self._servers: list[asyncio.Server] = []
        self._shared = _Shared(AdaptiveBatcher(inference))

    async def start(self) -> str:
        """Listen; the URL. SettingError when the address is taken, or not this machine's."""
        loop = asyncio.get_running_loop()
        try:
            tcp = await loop.create_server(self._connection, self._host, self._port)
        except OSError as error:
            raise SettingError(
                f"endpoint {host_port(self._host, self._port)}: {error.strerror or error}",
                "set another host or port under [endpoint] in agent.toml",
            ) from error
        self._servers.append(tcp)
        host, port = tcp.sockets[0].getsockname()[:2]
        if self._socket is not None:
            await self._listen_unix(self._socket)
        return url_of("http", host, port)

    async def stop(self) -> None:
        """Stop listening and close every connection."""
        for server in self._servers:
            server.close()
        for connection in list(self._shared.connections):
            connection.close()
        if self._socket is not None:
            with contextlib.suppress(OSError):  # on a read-only disk it stays
                self._socket.unlink(missing_ok=True)

    async def _listen_unix(self, path: Path) -> None:
        try:
            path.unlink(missing_ok=True)
            loop = asyncio.get_running_loop()
            self._servers.append(await loop.create_unix_server(self._connection, str(path)))
            path.chmod(0o660)
        except OSError as error:  # a path of more than 107 bytes, or a foreign file system
            _log.warning("no Unix socket at %s: %s", path, error)

    def _connection(self) -> "_Connection":
        return _Connection(self._shared)


class ParsedHeader(NamedTuple):
    """Header of a POST on a connection that is kept alive.

    path        without its query
    length      of the body, from Content-Length
    json_bytes  Inference-Header-Content-Length, -1 without it
    """

    path: str
    length: int
    json_bytes: int


class HeaderCache:
    """Parsed headers by their bytes, for all connections; emptied when full.

    A client sends the same header with each request. A read that is one whole request with a known
    header is not parsed again; anything else goes to the parser.
    """

    def __init__(self) -> None:
        self._known: dict[bytes, ParsedHeader] = {}

    def find(self, data: memoryview) -> tuple[ParsedHeader, bytes] | None:
        """Header and body of `data` if that is one whole request with a known header."""
        if len(data) > CACHED_READ:
            return None
        whole = bytes(data)
        end = whole.find(_END) + len(_END)
        header = self._known.get(whole[:end])
        if header is None or len(whole) != end + header.length:
            return None
        return header, whole[end:]

    def add(self, data: memoryview, header: ParsedHeader) -> None:
        """Store the header that `data` begins with, if `data` is exactly that request."""
        end = bytes(data[:CACHED_HEAD]).find(_END) + len(_END)
        if end < len(_END) or len(data) != end + header.length:
            return
        if len(self._known) >= CACHED_HEADERS:
            self._known.clear()
        self._known[bytes(data[:end])] = header


class _Shared:
    """State of all connections. pending: bytes of bodies without a response yet."""

    def __init__(self, batcher: AdaptiveBatcher) -> None:
        self.batcher = batcher
        self.buffer = memoryview(bytearray(READ))
        self.headers = HeaderCache()
        self.connections: set[_Connection] = set()
        self.pending = 0


class _Connection(asyncio.BufferedProtocol):
    """One client. Responses are sent in the order of the requests."""

    def __init__(self, shared: _Shared) -> None:
        self._shared = shared
        self._queue: collections.deque[tuple[Request, bool]] = collections.deque()
        self._busy = self._working = self._ending = self._unread = False
        self._pending = 0
        self._between = True
        self._cacheable: ParsedHeader | None = None
        self._direct: memoryview | None = None
        self._begin()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._parser = httptools.HttpRequestParser(self)
        self._shared.connections.add(self)
        if len(self._shared.connections) > CONNECTIONS:
            self._refuse(error_response(503, f"more than {CONNECTIONS} connections; close some"))

    def connection_lost(self, error: Exception | None) -> None:
        self._shared.connections.discard(self)
        self._count_pending(-self._pending)
        self._ending = True

    def close(self) -> None:
        self._transport.close()

    def pause_writing(self) -> None:
        """The client does not read: what it has sent waits, as its responses may be large."""
        self._unread = True
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        self._unread = False
        self._transport.resume_reading()
        self._work()

    def get_buffer(self, sizehint: int) -> memoryview:
        """The one shared buffer: each read is parsed before the next one. What is left of a large
        body goes to its own place instead.
        """
        return self._shared.buffer if self._direct is None else self._direct[self._size :]

    def buffer_updated(self, size: int) -> None:
        if self._ending:
            return
        if self._direct is not None:
            self._on_direct(size)
            return
        data, between, headers = self._shared.buffer[:size], self._between, self._shared.headers
        try:
            if between and (found := headers.find(data)):
                self._on_cached(*found)
                return
            self._parser.feed_data(data)
            if between and self._cacheable is not None:
                headers.add(data, self._cacheable)
        except _RefusedError as refused:
            self._refuse(error_response(*refused.args))
        except httptools.HttpParserUpgrade:
            self._ending = True  # the HTTP response is sent; what follows is another protocol
            self._transport.close()
        except httptools.HttpParserError as error:
            cause = error.__context__
            args = cause.args if isinstance(cause, _RefusedError) else (400, f"not HTTP: {error}")
            self._refuse(error_response(*args))

    def _on_cached(self, header: ParsedHeader, body: bytes) -> None:
        """A whole request with a header from the cache."""
        self._count_pending(len(body))
        self._queue_up(Request("POST", header.path, body, header.json_bytes), keep=True)

    def _on_direct(self, size: int) -> None:
        """More of a large body, already in its place; the parser has seen its beginning."""
        assert self._direct is not None
        try:
            self._count_pending(size)
            self._size += size
            if self._size == self._length:
                self.on_message_complete()
                self._parser = httptools.HttpRequestParser(self)  # this one waits for the body
        except _RefusedError as refused:
            self._refuse(error_response(*refused.args))

    # ------------------------------------------------------------------ called by the parser

    def on_message_begin(self) -> None:
        self._between = False
        self._begin()

    def on_url(self, url: bytes) -> None:
        self._url += url
        self._count_head(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count_head(len(name) + len(value) + 4)
        if len(name) in _RELEVANT:
            self._read_header(name.lower(), value)

    def _read_header(self, name: bytes, value: bytes) -> None:
        if name == b"content-length":
            self._length = int(value)
            if self._length > BODY:
                raise _RefusedError(
                    413, f"body of {self._length} bytes, {BODY} allowed: send fewer rows"
                )
        elif name == b"inference-header-content-length":
            self._json_bytes = _length(value)
        elif name == b"content-encoding" and value.lower() != b"identity":
            raise _RefusedError(415, "compressed bodies are not read here: send it as it is")
        elif name == b"expect" and value.lower() == b"100-continue":
            self._sent_continue = True
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_headers_complete(self) -> None:
        if self._json_bytes >= 0 and self._length > DIRECT:
            self._direct = np.empty(self._length, np.uint8).data  # not in memory until read

    def on_body(self, body: bytes) -> None:
        start = self._size
        self._size += len(body)
        if self._size > BODY:
            raise _RefusedError(413, f"body of more than {BODY} bytes: send fewer rows")
        self._count_pending(len(body))
        if self._direct is None:
            self._body.append(body)
        else:
            self._direct[start : self._size] = body

    def on_message_complete(self) -> None:
        self._between = True
        path = self._url.partition(b"?")[0].decode("latin-1")
        body = self._whole_body()
        method = self._parser.get_method().decode("latin-1")
        keep = self._parser.should_keep_alive()
        is_plain = (
            keep and method == "POST" and self._length == len(body) and not self._sent_continue
        )
        self._cacheable = ParsedHeader(path, self._length, self._json_bytes) if is_plain else None
        self._queue_up(Request(method, path, body, self._json_bytes), keep)

    def _whole_body(self) -> bytes | memoryview:
        if self._direct is not None:
            whole, self._direct = self._direct, None
            return whole
        return self._body[0] if len(self._body) == 1 else b"".join(self._body)

    def _queue_up(self, request: Request, keep: bool) -> None:
        if len(self._queue) >= WAITING:
            raise _RefusedError(503, f"more than {WAITING} requests wait on this connection")
        self._queue.append((request, keep))
        self._work()

    # ------------------------------------------------------------------ responses

    def _work(self) -> None:
        if self._working:
            return  # the response came at once: the loop below continues
        self._working = True
        while self._queue and not (self._busy or self._ending or self._unread):
            request, keep = self._queue.popleft()
            self._busy = True
            self._shared.batcher.submit(
                request,
                functools.partial(self._done, keep, len(request.body)),
                is_only_client=len(self._shared.connections) == 1,
            )
        self._working = False

    def _done(self, keep: bool, size: int, response: Response) -> None:
        self._busy = False
        if not self._ending:
            self._count_pending(-size)
            self._transport.write(_header(response, keep) + response.body)
            if keep:
                self._work()
            else:
                self._ending = True
                self._transport.close()

    def _count_pending(self, size: int) -> None:
        self._pending += size
        self._shared.pending += size
        if self._shared.pending > PENDING and size > 0:
            raise _RefusedError(503, "too many bytes wait for a response; try again")

    def _refuse(self, response: Response) -> None:
        """Respond, then discard input for LINGER_S: a client that still sends reads no response."""
        self._transport.write(_header(response, keep=False) + response.body)
        self._ending = True
        asyncio.get_running_loop().call_later(LINGER_S, self._transport.close)

    def _begin(self) -> None:
        self._url, self._body, self._size, self._head = b"", list[bytes](), 0, 0
        self._json_bytes = self._length = -1
        self._sent_continue = False
        self._cacheable = None

    def _count_head(self, size: int) -> None:
        self._head += size
        if self._head > HEAD:
            raise _RefusedError(431, f"request line and headers of more than {HEAD} bytes")


class _RefusedError(Exception):
    """(HTTP status, why): raised inside the parser, which wraps it."""


def _length(value: bytes) -> int:
    if not value.isdigit() or int(value) > BODY:
        text = value[:40].decode("latin-1")
        raise _RefusedError(400, f"Inference-Header-Content-Length is a length, got {text!r}")
    return int(value)


def _header(response: Response, keep: bool) -> bytes:
    """Status line and headers of a response."""
    kind = b"Content-Type: application/json\r\n"
    if response.html:
        kind = _HTML
    elif response.json_bytes >= 0:
        kind = _BINARY % response.json_bytes
    end = b"\r\n" if keep else b"Connection: close\r\n\r\n"
    return b"%b%bContent-Length: %d\r\n%b" % (
        _HEADERS[response.status],
        kind,
        len(response.body),
        end,
    )


_HTML = (
    b"Content-Type: text/html; charset=utf-8\r\nCache-Control: no-store\r\n"
    b"Content-Security-Policy: default-src 'none'; style-src 'unsafe-inline'\r\n"
    b"X-Content-Type-Options: nosniff\r\n"
)
#: Lengths of the names of the headers that are read: most others are skipped by length.
_RELEVANT = frozenset(
    map(len, ("content-length", "inference-header-content-length", "content-encoding", "expect"))
)
_BINARY = b"Content-Type: application/octet-stream\r\nInference-Header-Content-Length: %d\r\n"
_HEADERS = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode("ascii")
    for status in HTTPStatus
}
#: Seconds after which a client refused by a limit may try again.
_HEADERS[503] += b"Retry-After: 1\r\n"
