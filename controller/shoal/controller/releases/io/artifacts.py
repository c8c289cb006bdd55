"""The artifact server: TUF metadata and blobs over HTTPS, from its own small process.

Slow downloads starve threaded servers (DESIGN section 10): here each costs one socket and a file
descriptor. A blob needs a capability URL; metadata is public, for it is signed.
"""

import asyncio
import logging
import os
import re
import ssl
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import BinaryIO, NamedTuple

import msgspec
from aiohttp import web

from shoal.controller.host.settings import Settings
from shoal.controller.releases import capability
from shoal.controller.releases.io.deltas import Deltas
from shoal.errors import AbsentError, DeniedError, SettingError, ShoalError

log = logging.getLogger(__name__)

_METADATA = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,120}\.json")
_RANGE = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})")
_LONGEST_DOWNLOAD_S = 6 * 3600.0
#: Seconds that a device waits for a delta to be made: less than its patience with a silent server.
_PATIENCE_S = 10.0
_REQUEST_LINE, _PIECE = 8190, 1 << 18


class Span(NamedTuple):
    """Bytes start..stop (exclusive) of a file; partial if a Range asked for them."""

    start: int
    stop: int
    partial: bool


class Artifacts:
    """What is served: the folder, the key that capability URLs are checked with, a clock."""

    def __init__(self, folder: Path, key: bytes, clock: Callable[[], float]) -> None:
        self._metadata, self._blobs = folder / "repository" / "metadata", folder / "blobs"
        self._key, self._clock, self._deltas = key, clock, Deltas(folder)

    def application(self) -> web.Application:
        """The routes; HEAD comes with every GET."""
        app = web.Application(client_max_size=1024, middlewares=[_problems])
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/metadata/{name}", self._give_metadata)
        app.router.add_get("/blobs/{sha256}", self._give_blob)
        return app

    async def _healthz(self, _request: web.Request) -> web.StreamResponse:
        return web.json_response({"status": "ok"})

    async def _give_metadata(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info["name"]
        if not _METADATA.fullmatch(name):
            return _absent(request)
        # Small, and replaced by rename: one read sees one version whole.
        try:
            data = await asyncio.to_thread((self._metadata / name).read_bytes)
        except OSError:
            return _absent(request)
        return web.Response(
            body=data, content_type="application/json", headers={"Cache-Control": "no-cache"}
        )

    async def _give_blob(self, request: web.Request) -> web.StreamResponse:
        sha256, query = request.match_info["sha256"], request.query
        capability.check(
            self._key, sha256, query.get("exp", ""), query.get("sig", ""), self._clock()
        )
        try:  # the check let only hex digits through: no path can hide in them
            path = await self._path(sha256)
            file = await asyncio.to_thread(path.open, "rb")
        except (OSError, AbsentError):
            return _absent(request)
        except TimeoutError:
            busy = _problem(request, 503, "unavailable", "this delta is still being made")
            busy.headers["Retry-After"] = str(int(_PATIENCE_S))
            return busy
        try:
            return await _send(request, file, sha256)
        finally:
            file.close()

    async def _path(self, name: str) -> Path:
        """Of a blob, or of a delta "OLD-NEW": TimeoutError while that takes too long to make."""
        old, _, new = name.partition("-")
        if not new:
            return self._blobs / name[:2] / name
        async with asyncio.timeout(_PATIENCE_S):
            return await self._deltas.path(old, new)


async def _send(request: web.Request, file: BinaryIO, sha256: str) -> web.StreamResponse:
    size = os.fstat(file.fileno()).st_size
    span = span_of(request.headers, size, etag := f'"{sha256}"')
    if span is None:
        problem = _problem(request, 416, "range-not-satisfiable", f"{size} bytes are all there is")
        problem.headers["Content-Range"] = f"bytes */{size}"
        return problem
    response = web.StreamResponse(status=206 if span.partial else 200)
    response.headers.update(
        {
            "Accept-Ranges": "bytes",
            "ETag": etag,
            "Cache-Control": "private, immutable, max-age=86400",
        }
    )
    response.content_type, response.content_length = (
        "application/octet-stream",
        span.stop - span.start,
    )
    if span.partial:
        response.headers["Content-Range"] = f"bytes {span.start}-{span.stop - 1}/{size}"
    await response.prepare(request)
    await _pour(request, response, file, span)
    return response


async def _pour(
    request: web.Request, response: web.StreamResponse, file: BinaryIO, span: Span
) -> None:
    """Send the span at the client's pace; a client that left is no error of ours.

    Not by sendfile: under TLS asyncio only imitates it, and does not notice a lost connection.
    """
    left = 0 if request.method == "HEAD" else span.stop - span.start
    file.seek(span.start)
    try:
        async with asyncio.timeout(_LONGEST_DOWNLOAD_S):
            while left and (piece := await asyncio.to_thread(file.read, min(left, _PIECE))):
                await response.write(piece)
                left -= len(piece)
            await response.write_eof()
    except (ConnectionError, TimeoutError) as error:
        log.debug("download ended early: %s", error)
        if request.transport is not None:
            request.transport.abort()


def span_of(headers: Mapping[str, str], size: int, etag: str) -> Span | None:
    """Which bytes of `size` a request wants, by RFC 9110 section 14; None is 416.

    What is no single well-formed range is ignored, as the RFC allows; so is a range whose If-Range
    names other bytes than ours.
    """
    whole = Span(0, size, False)
    found = _RANGE.fullmatch(headers.get("Range", "").strip())
    if not found or found.groups() == ("", "") or headers.get("If-Range", etag).strip() != etag:
        return whole
    first, last = found.groups()
    if not first:  # the last so many bytes
        return Span(max(0, size - int(last)), size, True) if int(last) and size else None
    start, stop = int(first), min(int(last) + 1 if last else size, size)
    if last and int(last) < start:
        return whole
    return Span(start, stop, True) if start < size else None


@web.middleware
async def _problems(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Errors as RFC 9457 problems, and no header that invites a browser to guess."""
    try:
        response = await handler(request)
    except DeniedError as error:
        response = _problem(request, 403, error.code, str(error))
    except ShoalError as error:
        response = _problem(request, 500, error.code, str(error))
    except web.HTTPException as error:
        code = error.reason.lower().replace(" ", "-")
        response = _problem(request, error.status, code, error.reason)
    except Exception:  # one request's bug is one answer, and one story in the log
        log.exception("%s %s", request.method, request.path)
        response = _problem(request, 500, "internal-error", "unexpected error; see the log")
    if not response.prepared:
        response.headers["X-Content-Type-Options"] = "nosniff"
    return response


def _absent(request: web.Request) -> web.Response:
    return _problem(request, 404, "not-found", "there is no such file here")


def _problem(request: web.Request, status: int, code: str, detail: str) -> web.Response:
    body = {
        "type": f"https://shoal.dev/problems/{code}",
        "title": code.replace("-", " "),
        "status": status,
        "detail": detail,
        "instance": request.path[:200],
    }
    data = msgspec.json.encode(body)
    return web.Response(status=status, body=data, content_type="application/problem+json")


def read_key(folder: Path) -> bytes:
    """The key that capability URLs are made and checked with; SettingError if it is not there."""
    path = folder / "keys" / "capability.key"
    try:
        key = path.read_bytes()
    except OSError as error:
        raise SettingError(f"no {path}", "run: shoal-controller init") from error
    if len(key) < capability.KEY_BYTES:
        raise SettingError(f"{path}: {len(key)} bytes, {capability.KEY_BYTES} needed")
    return key


def tls_context(folder: Path) -> ssl.SSLContext:
    """TLS 1.2 and later with the controller's own server certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(folder / "pki" / "server.crt", folder / "pki" / "server.key")
    except (OSError, ssl.SSLError) as error:
        raise SettingError(
            f"{folder / 'pki' / 'server.crt'}: {error}", "run: shoal-controller init"
        ) from error
    return context


async def serve(folder: Path, settings: Settings) -> None:
    """Serve until cancelled; SettingError if key, certificate or port are not to be had."""
    app = Artifacts(folder, read_key(folder), time.time).application()
    # What is no HTTP is answered 400; that anybody can send it is not worth a traceback each.
    quiet = logging.getLogger("shoal.artifacts.http")
    quiet.setLevel(logging.CRITICAL)
    runner = web.AppRunner(app, access_log=None, logger=quiet, max_line_size=_REQUEST_LINE)
    await runner.setup()
    network = settings.network
    try:
        site = web.TCPSite(
            runner, network.host, network.artifacts, ssl_context=tls_context(folder), backlog=1024
        )
        await site.start()
        log.info("artifacts on https://%s:%s", network.host, network.artifacts)
        await asyncio.Event().wait()
    except OSError as error:
        raise SettingError(
            f"artifact server: {network.host}:{network.artifacts}: {error.strerror}",
            "change [network] artifacts in controller.toml",
        ) from error
    finally:
        await runner.cleanup()
