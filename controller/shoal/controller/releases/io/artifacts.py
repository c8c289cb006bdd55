"""The artifact server: TUF metadata and blobs over HTTPS, from its own small process.

Slow downloads starve threaded servers (DESIGN section 10): here each costs one socket and a file
descriptor. A blob needs a signed download URL; metadata is signed, and therefore public.
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

from shoal.address import host_port, url_of
from shoal.controller.host.settings import Settings
from shoal.controller.releases import download_urls
from shoal.controller.releases.io.deltas import DeltaCache
from shoal.errors import AbsentError, DeniedError, SettingError, ShoalError

log = logging.getLogger(__name__)

_METADATA = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,120}\.json")
_RANGE = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})")
_LONGEST_DOWNLOAD_S = 6 * 3600.0
#: Seconds that a request waits for a delta to be made: below the read timeout of devices.
_DELTA_TIMEOUT_S = 10.0
_REQUEST_LINE, _CHUNK = 8190, 1 << 18


class ByteRange(NamedTuple):
    """Bytes start..stop (exclusive) of a file; partial if a Range asked for them."""

    start: int
    stop: int
    partial: bool


class Artifacts:
    """Request handlers. folder: the controller's; key: checks download URLs."""

    def __init__(self, folder: Path, key: bytes, clock: Callable[[], float]) -> None:
        self._metadata, self._blobs = folder / "repository" / "metadata", folder / "blobs"
        self._key, self._clock, self._deltas = key, clock, DeltaCache(folder)

    def application(self) -> web.Application:
        """The routes; HEAD comes with every GET."""
        app = web.Application(client_max_size=1024, middlewares=[_problems])
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/metadata/{name}", self._get_metadata)
        app.router.add_get("/blobs/{sha256}", self._get_blob)
        return app

    async def _healthz(self, _request: web.Request) -> web.StreamResponse:
        return web.json_response({"status": "ok"})

    async def _get_metadata(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info["name"]
        if not _METADATA.fullmatch(name):
            return _not_found(request)
        # Small, and replaced by rename: one read gets one whole version.
        try:
            data = await asyncio.to_thread((self._metadata / name).read_bytes)
        except OSError:
            return _not_found(request)
        return web.Response(
            body=data, content_type="application/json", headers={"Cache-Control": "no-cache"}
        )

    async def _get_blob(self, request: web.Request) -> web.StreamResponse:
        sha256, query = request.match_info["sha256"], request.query
        download_urls.check(
            self._key, sha256, query.get("exp", ""), query.get("sig", ""), self._clock()
        )
        try:  # the check accepts hex digits only: no path traversal
            path = await self._path(sha256)
            file = await asyncio.to_thread(path.open, "rb")
        except (OSError, AbsentError):
            return _not_found(request)
        except TimeoutError:
            busy = _problem(request, 503, "unavailable", "this delta is still being made")
            busy.headers["Retry-After"] = str(int(_DELTA_TIMEOUT_S))
            return busy
        try:
            return await _send(request, file, sha256)
        finally:
            file.close()

    async def _path(self, name: str) -> Path:
        """Path of a blob, or of a delta "OLD-NEW"; TimeoutError if that takes too long to make."""
        old, _, new = name.partition("-")
        if not new:
            return self._blobs / name[:2] / name
        async with asyncio.timeout(_DELTA_TIMEOUT_S):
            return await self._deltas.path(old, new)


async def _send(request: web.Request, file: BinaryIO, sha256: str) -> web.StreamResponse:
    size = os.fstat(file.fileno()).st_size
    span = span_of(request.headers, size, etag := f'"{sha256}"')
    if span is None:
        problem = _problem(request, 416, "range-not-satisfiable", f"the file has {size} bytes")
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
    await _send_body(request, response, file, span)
    return response


async def _send_body(
    request: web.Request, response: web.StreamResponse, file: BinaryIO, span: ByteRange
) -> None:
    """Send the range at the client's rate; a client that disconnects is not an error.

    Not by sendfile: under TLS asyncio emulates it, and does not notice a lost connection.
    """
    left = 0 if request.method == "HEAD" else span.stop - span.start
    file.seek(span.start)
    try:
        async with asyncio.timeout(_LONGEST_DOWNLOAD_S):
            while left and (chunk := await asyncio.to_thread(file.read, min(left, _CHUNK))):
                await response.write(chunk)
                left -= len(chunk)
            await response.write_eof()
    except (ConnectionError, TimeoutError) as error:
        log.debug("download ended early: %s", error)
        if request.transport is not None:
            request.transport.abort()


def span_of(headers: Mapping[str, str], size: int, etag: str) -> ByteRange | None:
    """Requested bytes of `size`, by RFC 9110 section 14; None is 416.

    Anything but a single well-formed range is ignored, as the RFC allows; so is a range whose
    If-Range is another ETag.
    """
    whole = ByteRange(0, size, False)
    found = _RANGE.fullmatch(headers.get("Range", "").strip())
    if not found or found.groups() == ("", "") or headers.get("If-Range", etag).strip() != etag:
        return whole
    first, last = found.groups()
    if not first:  # the last so many bytes
        return ByteRange(max(0, size - int(last)), size, True) if int(last) and size else None
    start, stop = int(first), min(int(last) + 1 if last else size, size)
    if last and int(last) < start:
        return whole
    return ByteRange(start, stop, True) if start < size else None


@web.middleware
async def _problems(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Errors as RFC 9457 problems, and no MIME sniffing."""
    try:
        response = await handler(request)
    except DeniedError as error:
        response = _problem(request, 403, error.code, str(error))
    except ShoalError as error:
        response = _problem(request, 500, error.code, str(error))
    except web.HTTPException as error:
        code = error.reason.lower().replace(" ", "-")
        response = _problem(request, error.status, code, error.reason)
    except Exception:  # a bug costs one request, and is logged
        log.exception("%s %s", request.method, request.path)
        response = _problem(request, 500, "internal-error", "unexpected error; see the log")
    if not response.prepared:
        response.headers["X-Content-Type-Options"] = "nosniff"
    return response


def _not_found(request: web.Request) -> web.Response:
    return _problem(request, 404, "not-found", "no such file")


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
    """Serve until cancelled; SettingError if key, certificate or port are not available."""
    app = Artifacts(folder, download_urls.read_key(folder), time.time).application()
    # Malformed HTTP gets 400; it is not worth a traceback in the log.
    quiet = logging.getLogger("shoal.artifacts.http")
    quiet.setLevel(logging.CRITICAL)
    runner = web.AppRunner(app, access_log=None, logger=quiet, max_line_size=_REQUEST_LINE)
    await runner.setup()
    network = settings.network
    try:
        site = web.TCPSite(
            runner,
            # asyncio would listen on "::" for IPv6 alone; on none it listens for both.
            None if network.host == "::" else network.host,
            network.artifacts,
            ssl_context=tls_context(folder),
            backlog=1024,
        )
        await site.start()
        log.info("artifacts on %s", url_of("https", network.host, network.artifacts))
        await asyncio.Event().wait()
    except OSError as error:
        raise SettingError(
            f"artifact server: {host_port(network.host, network.artifacts)}: {error.strerror}",
            "change [network] artifacts in controller.toml",
        ) from error
    finally:
        await runner.cleanup()
