"""Downloads over HTTPS, by hash: resumable, bounded and rate limited."""

import contextlib
import hashlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from shoal import bundle, delta
from shoal.agent.host.io.local_pieces import LocalPieces
from shoal.agent.host.ports import RangeRefusedError
from shoal.connection_errors import PORTAL, explain, portal_fault
from shoal.durable import sync, translated
from shoal.errors import AbsentError, BundleError, DeniedError, LinkError
from shoal.manifest import File

if TYPE_CHECKING:
    from urllib3 import BaseHTTPResponse, PoolManager

#: Bytes of one read; seconds to connect, and between two bytes; most bytes of TUF metadata.
PIECE, CONNECT_S, SILENCE_S, METADATA = 1 << 16, 10.0, 20.0, 5 << 20
#: Seconds of a rate limited download in one read: the rate is even, without bursts.
_PAUSE_S = 0.1
#: Most bytes of an error response.
_ERROR_BODY = 1 << 12
#: Most bytes of a file made by a delta: five times its size is in memory for a moment.
DELTA_LIMIT = 24 << 20
#: A delta is used up to this share of the bytes that are still missing.
WORTH = 0.8
#: Refused requests for the rest of a file after which the whole file is fetched.
RANGE_TRIES = 2
#: Statuses that do not concern the range of a request: they may pass, or ask to wait or sign in.
_PASSING = frozenset({401, 403, 404, 407, 408, 425, 429, 511})
_SERVER = "artifact server"
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")


class Written(NamedTuple):
    """Bytes received, and the hash of the file if all of it was received now, else ""."""

    got: int
    sha256: str


class HttpsDownloads:
    """Downloads from the artifact server.

    ca         PEM bundle: the only trusted certificates
    artifacts  https://host:port of the server, for TUF's metadata
    stage      model -> folder of its stage
    max_kbps   kilobit per second, 0 for no limit
    """

    def __init__(
        self,
        *,
        ca: Path,
        artifacts: str,
        stage: Callable[[str], Path],
        max_kbps: float,
        monotonic: Callable[[], float],
        sleep: Callable[[float], None],
    ) -> None:
        self._ca, self._artifacts, self._stage = ca, artifacts.rstrip("/"), stage
        self._rate = max_kbps * 125
        self._monotonic, self._sleep = monotonic, sleep
        self._made: PoolManager | None = None
        self._refused: dict[str, int] = {}  # partial file -> refused requests for its rest

    def metadata(self, name: str) -> bytes:
        """One file of TUF's metadata; AbsentError for 404, LinkError when it is unreachable."""
        with self._open(f"{self._artifacts}/metadata/{name}", 0) as response:
            return _all(response, METADATA)

    def small(self, url: str, size: int, sha256: str) -> bytes:
        """A small file of exactly `size` bytes and this hash; BundleError for anything else."""
        with self._open(url, 0) as response:
            data = _all(response, size)
        if len(data) != size or hashlib.sha256(data).hexdigest() != sha256:
            raise BundleError(f"{_shown(url)} is not what was signed")
        return data

    def file(
        self,
        url: str,
        model: str,
        file: File,
        stop: Callable[[], bool],
        bases: Sequence[Path] = (),
    ) -> int:
        """Download `file` into the model's stage; bytes received.

        Bytes received before a lost connection or power cut are kept and not downloaded again.
        Pieces that older versions at `bases` have are copied from there, and the others received.
        Where the server refuses ranges RANGE_TRIES times, the whole file is received anew.

        Raises LinkError when it may be tried again, BundleError when the bytes are not what was
        signed, AbsentError for 404, DeniedError for 403, StorageError when the disk refuses.
        """
        stage = self._stage(model)
        part = stage / f"{file.sha256}.part"
        got, sha256 = 0, ""
        with translated(part.name):
            stage.mkdir(parents=True, exist_ok=True)
            have = part.stat().st_size if part.exists() else 0
            if have > file.size:
                part.unlink()
                have = 0
            try:
                if bases and file.chunks:
                    got = self._fetch_pieces(url, part, file, LocalPieces(file, bases), stop)
                elif have < file.size or not part.exists():
                    got, sha256 = self._fetch(url, part, have, file, stop)
            except RangeRefusedError:
                if self._may_ask_again(part.name):
                    raise
                got, sha256 = self._fetch(url, part, 0, file, stop)
            self._finish(part, stage / file.name, file, sha256)
        return got

    def span(self, url: str, start: int, end: int, size: int, stop: Callable[[], bool]) -> bytes:
        """Bytes start..end (exclusive) of a file of `size`; raises as `file` does."""
        data = bytearray()
        with self._open(url, start, end) as response:
            if _start(response, start, size) != start:
                raise RangeRefusedError(f"{_shown(url)}: asked for a range, it sent the whole file")
            self._copy(response, data.extend, end - start, stop)
        return bytes(data)

    def delta(self, url: str, model: str, file: File, base: Path, stop: Callable[[], bool]) -> int:
        """Make `file` in the model's stage from `base` and a delta; bytes received.

        Raises BundleError when the delta, by its Content-Length, saves too little over the rest of
        the whole file, or when its result is not the signed file; AbsentError when there is no
        delta now; LinkError for a lost connection, to be tried again.
        """
        stage = self._stage(model)
        part, received = stage / f"{file.sha256}.delta", 0
        whole, made = part.with_suffix(".whole"), part.with_suffix(".part")
        with translated(part.name):
            stage.mkdir(parents=True, exist_ok=True)
            if max(file.size, base.stat().st_size) > DELTA_LIMIT:
                raise BundleError(f"{file.name} is too large for a delta here")
            if whole.exists():  # the process died while applying it, perhaps out of memory
                whole.unlink()
                raise BundleError(f"the delta of {file.name} was not applied completely")
            missing = file.size - (made.stat().st_size if made.exists() else 0)
            received = self._fetch_delta(url, part, int(WORTH * missing), stop)
            part.replace(whole)
            try:
                data = delta.apply(base.read_bytes(), whole.read_bytes(), file.size)
            except ImportError as error:
                raise AbsentError("package", "zstandard") from error
            finally:
                whole.unlink()
            made.write_bytes(data)
            sync(made)
            self._finish(made, stage / file.name, file)
        return received

    def _fetch_delta(self, url: str, part: Path, most: int, stop: Callable[[], bool]) -> int:
        have = part.stat().st_size if part.exists() else 0
        try:
            with self._open(url, have) as response:
                size = _whole_size(response)
                if not have < size <= most:
                    part.unlink(missing_ok=True)
                    raise BundleError(f"a delta of {size} bytes saves too little")
                start = _start(response, have, size)
                return self._write(response, part, start, size, stop).got
        except LinkError as error:
            if stop() or (part.exists() and part.stat().st_size > have):
                raise
            part.unlink(missing_ok=True)
            raise AbsentError("delta at", _shown(url), "the whole file does as well") from error

    def _fetch_pieces(
        self, url: str, part: Path, file: File, local: LocalPieces, stop: Callable[[], bool]
    ) -> int:
        """Continue the partial file piece by piece; bytes received."""
        got = 0
        part.touch()
        with part.open("r+b") as out:
            sync(part.parent)
            try:
                for piece in file.pieces():
                    have = out.seek(0, os.SEEK_END)
                    if have >= piece.stop:
                        continue
                    if stop():
                        raise LinkError("download was cancelled")
                    if have == piece.start and (data := local.read(piece)) is not None:
                        out.write(data)
                        continue
                    with self._open(url, have, piece.stop) as response:
                        if _start(response, have, file.size) != have:
                            raise RangeRefusedError(f"{_shown(url)}: the server sent no range")
                        got += self._copy(response, out.write, piece.stop - have, stop)
            finally:
                out.flush()
                os.fsync(out.fileno())
        return got

    def _may_ask_again(self, part: str) -> bool:
        """Count a refused range of a partial file; False when it is to be fetched whole now."""
        refused = self._refused.pop(part, 0) + 1
        if refused < RANGE_TRIES:
            self._refused[part] = refused
        return refused < RANGE_TRIES

    def _fetch(
        self, url: str, part: Path, have: int, file: File, stop: Callable[[], bool]
    ) -> Written:
        with self._open(url, have) as response:
            return self._write(response, part, _start(response, have, file.size), file.size, stop)

    def _write(
        self,
        response: "BaseHTTPResponse",
        part: Path,
        start: int,
        size: int,
        stop: Callable[[], bool],
    ) -> Written:
        digest = hashlib.sha256()

        def keep(piece: bytes) -> None:
            digest.update(piece)
            out.write(piece)

        with part.open("r+b" if start else "wb") as out:
            if not start and size > PIECE:
                sync(part.parent)  # makes the file's name durable
            out.seek(start)
            try:
                got = self._copy(response, keep, size - start, stop)
            finally:
                out.flush()
                os.fsync(out.fileno())
        return Written(got, "" if start else digest.hexdigest())

    def _copy(
        self,
        response: "BaseHTTPResponse",
        write: Callable[[bytes], object],
        want: int,
        stop: Callable[[], bool],
    ) -> int:
        began, got = self._monotonic(), 0
        piece_size = min(PIECE, max(1, int(self._rate * _PAUSE_S))) if self._rate else PIECE
        while got < want:
            if stop():
                raise LinkError("download was cancelled")
            piece = response.read1(min(piece_size, want - got))
            if not piece:
                raise LinkError(f"connection ended after {got} of {want} bytes")
            write(piece)
            got += len(piece)
            if self._rate:
                self._sleep(max(0.0, got / self._rate - (self._monotonic() - began)))
        return got

    def _finish(self, part: Path, target: Path, file: File, sha256: str = "") -> None:
        """Verify the whole file and rename it to its final name.

        sha256   computed while receiving, "" to read the file again
        """
        if part.stat().st_size < file.size:
            raise LinkError(f"{file.name} is not complete yet")
        if (sha256 or bundle.sha256_of(part)) != file.sha256:
            part.unlink()
            raise BundleError(f"{file.name} as downloaded does not match its signed hash")
        part.replace(target)

    @contextlib.contextmanager
    def _open(self, url: str, start: int, end: int = 0) -> Iterator["BaseHTTPResponse"]:
        import urllib3

        if not url.startswith("https://"):
            raise LinkError(f"{_shown(url)} is not an https address")
        headers = {"Accept-Encoding": "identity"}
        if start or end:
            headers["Range"] = f"bytes={start}-{end - 1 if end else ''}"
        try:
            response = self._pool().request(
                "GET", url, headers=headers, preload_content=False, redirect=False
            )
            try:
                if response.status not in (200, 206):
                    response.read(_ERROR_BODY)  # so that the connection can be reused
                _check(response, url, is_part="Range" in headers)
                yield response
            except BaseException:
                response.close()
                raise
            finally:
                response.release_conn()
        except urllib3.exceptions.HTTPError as error:
            raise LinkError(
                f"{_shown(url)}: {explain(error, _SERVER)}", "is the artifact server up?"
            ) from error

    def _pool(self) -> "PoolManager":
        if self._made is None:
            import urllib3

            self._made = urllib3.PoolManager(
                num_pools=2,
                maxsize=1,
                ca_certs=str(self._ca),
                retries=False,
                timeout=urllib3.Timeout(connect=CONNECT_S, read=SILENCE_S),
            )
        return self._made


def _check(response: "BaseHTTPResponse", url: str, *, is_part: bool) -> None:
    """Raise unless the response has bytes of the file. is_part: a range was requested."""
    status = response.status
    if portal := portal_fault(status, response.headers):
        raise LinkError(f"{_shown(url)}: {portal}", PORTAL)
    if status in (200, 206):
        return
    if is_part and status not in _PASSING and (status < 500 or status == 501):
        raise RangeRefusedError(f"{_shown(url)}: HTTP {status} for a part of the file")
    if status == 404:
        raise AbsentError("artifact", _shown(url))
    if status in (401, 403):
        raise DeniedError(f"{_shown(url)}: {status}, the capability is no longer valid")
    raise LinkError(f"{_shown(url)}: HTTP {status}")


def _start(response: "BaseHTTPResponse", requested: int, size: int) -> int:
    """Offset of the response's first byte; RangeRefusedError for another range than requested."""
    if response.status == 200 or not (requested or "Content-Range" in response.headers):
        return 0  # all of it, whatever a proxy calls it: the hash decides
    found = _RANGE.fullmatch(response.headers.get("Content-Range", ""))
    if not found or int(found.group(1)) != requested or found.group(3) not in ("*", str(size)):
        found_range = response.headers.get("Content-Range", "none")
        raise RangeRefusedError(
            f"asked for bytes from {requested} of {size}, got range {found_range!r:.80}"
        )
    return requested


def _whole_size(response: "BaseHTTPResponse") -> int:
    """Size of the whole file, from a full or partial response; 0 where it is not given."""
    found = _RANGE.fullmatch(response.headers.get("Content-Range", ""))
    length = found.group(3) if found else response.headers.get("Content-Length", "")
    return int(length) if length.isdecimal() else 0


def _all(response: "BaseHTTPResponse", limit: int) -> bytes:
    data = response.read(limit + 1)
    if len(data) > limit:
        response.close()
        raise BundleError(f"response of more than {limit} bytes")
    return data


def _shown(url: str) -> str:
    """The URL without its capability, which is a secret."""
    return url.partition("?")[0][:200]
