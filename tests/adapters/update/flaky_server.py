"""A real, and really unreliable, HTTPS server for downloads."""

import hashlib
import http.server
import ssl
import threading
import time
from collections.abc import Callable
from pathlib import Path

from shoal.agent.update.io.download import HttpsDownloads
from shoal.manifest import File

DATA = bytes(i * 7 % 251 for i in range(300_000))
#: For `content_range`: a 206 without the header.
NONE = "none"
WHY = b'{"title": "not-found", "detail": "there is no such file here"}'
FILE = File(name="model.onnx", size=len(DATA), sha256=hashlib.sha256(DATA).hexdigest())


class Server:
    """An HTTPS server of `DATA` with faults that a test sets.

    cuts      close the connection after so many bytes; one entry per response
    wanted    Range header of each request, "" for none
    sent      total bytes of bodies
    status, headers   response to every request; range_status: to those for a part
    callers   client addresses: one per connection
    """

    def __init__(self, pki: Path) -> None:
        self.cuts: list[int] = []
        self.wanted: list[str] = []
        self.callers: set[tuple[str, int]] = set()
        self.sent = 0
        self.status = self.range_status = 0
        self.whole_status = 200
        self.headers: dict[str, str] = {}
        self.data, self.ranges, self.content_range = DATA, True, ""
        self.answering = threading.Lock()
        outer = self

        class Request(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                outer.respond(self)

            def log_message(self, *args: object) -> None:
                pass

        class QuietServer(http.server.ThreadingHTTPServer):
            def handle_error(self, request: object, client_address: object) -> None:
                pass  # clients of these tests close connections

        self._server = QuietServer(("127.0.0.1", 0), Request)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pki / "server.crt", pki / "server.key")
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        self.url = f"https://localhost:{self._server.server_port}"

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def respond(self, request: http.server.BaseHTTPRequestHandler) -> None:
        wanted = request.headers.get("Range", "")
        self.wanted.append(wanted)
        self.callers.add(request.client_address)
        if status := self.status or (self.range_status if wanted else 0):
            request.send_response(status)
            for name, value in self.headers.items():
                request.send_header(name, value)
            request.send_header("Content-Length", str(len(WHY)))
            request.end_headers()
            request.wfile.write(WHY)
            return
        first, _, last = wanted.removeprefix("bytes=").partition("-")
        start = int(first) if wanted and self.ranges else 0
        body = self.data[start : int(last) + 1 if last and self.ranges else None]
        request.send_response(206 if wanted and self.ranges else self.whole_status)
        request.send_header("Content-Length", str(len(body)))
        if wanted and self.ranges and self.content_range != NONE:
            returned = self.content_range or (
                f"bytes {start}-{start + len(body) - 1}/{len(self.data)}"
            )
            request.send_header("Content-Range", returned)
        request.end_headers()
        if self.cuts:
            body = body[: self.cuts.pop(0)]
            request.close_connection = True
        self.sent += len(body)
        request.wfile.write(body)


def getter(
    server: Server, ca: Path, folder: Path, max_kbps: float = 0, pauses: list[float] | None = None
) -> Callable[..., int]:
    def sleep(seconds: float) -> None:
        if pauses is not None:
            pauses.append(seconds)

    downloads = HttpsDownloads(
        ca=ca,
        artifacts=server.url,
        stage=lambda model: folder / model / "stage",
        max_kbps=max_kbps,
        monotonic=time.monotonic,
        sleep=sleep,
    )

    def fetch(file: File = FILE, stop: Callable[[], bool] = lambda: False) -> int:
        return downloads.file(f"{server.url}/blobs/x?sig=secret", "parts", file, stop)

    fetch.downloads = downloads  # type: ignore[attr-defined]
    return fetch


def stage(folder: Path) -> Path:
    return folder / "parts" / "stage"
