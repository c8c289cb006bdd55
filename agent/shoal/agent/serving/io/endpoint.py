"""The local inference endpoint: HTTP/1.1 on 127.0.0.1 and on a Unix socket.

asyncio + httptools, one object a connection. Bodies, heads, connections and what all clients
together have sent unanswered are bounded: what is too much is refused, not kept.
"""

import asyncio
import collections
import functools
import logging
from http import HTTPStatus
from pathlib import Path

import httptools

from shoal.agent.serving.inference import BODY, Answer, Inference, Request, failure
from shoal.agent.serving.io.batching import Batches
from shoal.agent.serving.io.header_cache import Head, Heads
from shoal.errors import SettingError

_log = logging.getLogger(__name__)

#: Bytes of request line and headers; connections at once; requests waiting on one connection.
HEAD, CONNECTIONS, WAITING = 16 << 10, 256, 64
#: Bytes of bodies that all connections together may have sent and not been answered.
HELD = 64 << 20
#: Bytes read from a socket at once, into one buffer for all.
READ = 256 << 10
#: Seconds that a refused client may go on sending, unheard, before it is hung up on.
LINGER_S = 1.0


class Endpoint:
    """The listening sockets. address: of the TCP one, once started."""

    def __init__(self, inference: Inference, *, host: str, port: int, socket: Path | None) -> None:
        self._host, self._port, self._socket = host, port, socket
        self._servers: list[asyncio.Server] = []
        self._clients = _Clients(Batches(inference))
        self.address = ""

    async def start(self) -> None:
        """Listen. SettingError when the address is taken, or not this machine's."""
        loop = asyncio.get_running_loop()
        try:
            tcp = await loop.create_server(self._connection, self._host, self._port)
        except OSError as error:
            raise SettingError(
                f"endpoint {self._host}:{self._port}: {error.strerror or error}",
                "set another host or port under [endpoint] in agent.toml",
            ) from error
        self._servers.append(tcp)
        host, port = tcp.sockets[0].getsockname()[:2]
        self.address = f"http://{host}:{port}"
        if self._socket is not None:
            await self._listen_unix(self._socket)

    async def stop(self) -> None:
        """Stop listening and hang up."""
        for server in self._servers:
            server.close()
        for connection in list(self._clients.connections):
            connection.hang_up()
        if self._socket is not None:
            self._socket.unlink(missing_ok=True)

    async def _listen_unix(self, path: Path) -> None:
        path.unlink(missing_ok=True)
        try:
            loop = asyncio.get_running_loop()
            self._servers.append(await loop.create_unix_server(self._connection, str(path)))
            path.chmod(0o660)
        except OSError as error:  # a path of more than 107 bytes, or a foreign file system
            _log.warning("no Unix socket at %s: %s", path, error)

    def _connection(self) -> "_Connection":
        return _Connection(self._clients)


class _Clients:
    """All connections. held: bytes of bodies that they have sent and not been answered."""

    def __init__(self, batches: Batches) -> None:
        self.batches = batches
        self.buffer = memoryview(bytearray(READ))
        self.heads = Heads()
        self.connections: set[_Connection] = set()
        self.held = 0


class _Connection(asyncio.BufferedProtocol):
    """One client. Answers leave in the order in which the requests came."""

    def __init__(self, clients: _Clients) -> None:
        self._clients = clients
        self._queue: collections.deque[tuple[Request, bool]] = collections.deque()
        self._busy = self._working = self._ending = False
        self._held = 0
        self._between = True
        self._plain: Head | None = None
        self._begin()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._parser = httptools.HttpRequestParser(self)
        self._clients.connections.add(self)
        if len(self._clients.connections) > CONNECTIONS:
            self._give_up(failure(503, f"more than {CONNECTIONS} connections; close some"))

    def connection_lost(self, error: Exception | None) -> None:
        self._clients.connections.discard(self)
        self._hold(-self._held)
        self._ending = True

    def hang_up(self) -> None:
        self._transport.close()

    def pause_writing(self) -> None:
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        self._transport.resume_reading()

    def get_buffer(self, sizehint: int) -> memoryview:
        """The one buffer: what is read is parsed before anybody else reads."""
        return self._clients.buffer

    def buffer_updated(self, size: int) -> None:
        if self._ending:
            return
        data, between, heads = self._clients.buffer[:size], self._between, self._clients.heads
        try:
            if between and (found := heads.read(data)):
                self._known(*found)
                return
            self._parser.feed_data(data)
            if between and self._plain is not None:
                heads.learn(data, self._plain)
        except _RefusedError as refused:
            self._give_up(failure(*refused.args))
        except httptools.HttpParserUpgrade:
            self._ending = True  # answered as HTTP already; what follows would be another protocol
            self._transport.close()
        except httptools.HttpParserError as error:
            cause = error.__context__
            told = cause if isinstance(cause, _RefusedError) else None
            self._give_up(failure(*told.args) if told else failure(400, f"not HTTP: {error}"))

    def _known(self, head: Head, body: bytes) -> None:
        """A whole request whose head was parsed before."""
        self._hold(len(body))
        self._queue_up(Request("POST", head.path, body, head.json_bytes), keep=True)

    # ------------------------------------------------------------------ called by the parser

    def on_message_begin(self) -> None:
        self._between = False
        self._begin()

    def on_url(self, url: bytes) -> None:
        self._url += url
        self._count_head(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count_head(len(name) + len(value) + 4)
        if len(name) in _HEARD:
            self._heed(name.lower(), value)

    def _heed(self, name: bytes, value: bytes) -> None:
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
            self._awaited = True
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        self._size += len(body)
        if self._size > BODY:
            raise _RefusedError(413, f"body of more than {BODY} bytes: send fewer rows")
        self._hold(len(body))
        self._body.append(body)

    def on_message_complete(self) -> None:
        self._between = True
        path = self._url.partition(b"?")[0].decode("latin-1")
        body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        method = self._parser.get_method().decode("latin-1")
        keep = self._parser.should_keep_alive()
        plain = keep and method == "POST" and self._length == len(body) and not self._awaited
        self._plain = Head(path, self._length, self._json_bytes) if plain else None
        self._queue_up(Request(method, path, body, self._json_bytes), keep)

    def _queue_up(self, request: Request, keep: bool) -> None:
        if len(self._queue) >= WAITING:
            raise _RefusedError(503, f"more than {WAITING} requests wait on this connection")
        self._queue.append((request, keep))
        self._work()

    # ------------------------------------------------------------------ answering

    def _work(self) -> None:
        if self._working:
            return  # answered at once: the loop below goes on
        self._working = True
        while self._queue and not self._busy and not self._ending:
            request, keep = self._queue.popleft()
            self._busy = True
            self._clients.batches.ask(
                request,
                functools.partial(self._done, keep, len(request.body)),
                alone=len(self._clients.connections) == 1,
            )
        self._working = False

    def _done(self, keep: bool, held: int, answer: Answer) -> None:
        self._busy = False
        if not self._ending:
            self._hold(-held)
            self._transport.write(_head(answer, keep) + answer.body)
            if keep:
                self._work()
            else:
                self._ending = True
                self._transport.close()

    def _hold(self, size: int) -> None:
        self._held += size
        self._clients.held += size
        if self._clients.held > HELD and size > 0:
            raise _RefusedError(503, "too much is waiting to be answered; try again")

    def _give_up(self, answer: Answer) -> None:
        """Answer, then swallow a little more: a client that is still sending reads no answer."""
        self._transport.write(_head(answer, keep=False) + answer.body)
        self._ending = True
        asyncio.get_running_loop().call_later(LINGER_S, self._transport.close)

    def _begin(self) -> None:
        self._url, self._body, self._size, self._head = b"", list[bytes](), 0, 0
        self._json_bytes = self._length = -1
        self._awaited = False
        self._plain = None

    def _count_head(self, size: int) -> None:
        self._head += size
        if self._head > HEAD:
            raise _RefusedError(431, f"request line and headers of more than {HEAD} bytes")


class _RefusedError(Exception):
    """(HTTP status, why): raised inside the parser, which wraps it."""


def _length(value: bytes) -> int:
    if not value.isdigit() or int(value) > BODY:
        said = value[:40].decode("latin-1")
        raise _RefusedError(400, f"Inference-Header-Content-Length is a length, got {said!r}")
    return int(value)


def _head(answer: Answer, keep: bool) -> bytes:
    """Status line and headers of an answer."""
    kind = b"Content-Type: application/json\r\n"
    if answer.html:
        kind = _HTML
    elif answer.json_bytes >= 0:
        kind = _BINARY % answer.json_bytes
    end = b"\r\n" if keep else b"Connection: close\r\n\r\n"
    return b"%b%bContent-Length: %d\r\n%b" % (_HEADS[answer.status], kind, len(answer.body), end)


_HTML = (
    b"Content-Type: text/html; charset=utf-8\r\nCache-Control: no-store\r\n"
    b"Content-Security-Policy: default-src 'none'; style-src 'unsafe-inline'\r\n"
    b"X-Content-Type-Options: nosniff\r\n"
)
#: Lengths of the names of headers that matter here: most others need not be looked at.
_HEARD = frozenset(
    map(len, ("content-length", "inference-header-content-length", "content-encoding", "expect"))
)
_BINARY = b"Content-Type: application/octet-stream\r\nInference-Header-Content-Length: %d\r\n"
_HEADS = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode("ascii")
    for status in HTTPStatus
}
#: Seconds after which who was refused for want of room may try again.
_HEADS[503] += b"Retry-After: 1\r\n"
