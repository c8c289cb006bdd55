"""Fetching over HTTPS, by hash: resumed where it broke off, bounded, never faster than allowed."""

import contextlib
import hashlib
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from shoal import bundle, delta
from shoal.durable import sync, translated
from shoal.errors import AbsentError, BundleError, DeniedError, LinkError
from shoal.manifest import File

if TYPE_CHECKING:
    from urllib3 import BaseHTTPResponse, PoolManager

#: Bytes of one piece; seconds to connect, and without a byte; largest piece of TUF metadata.
PIECE, CONNECT_S, SILENCE_S, METADATA = 1 << 16, 10.0, 20.0, 5 << 20
#: Seconds of a limited download that come in one piece: the limit is even, not in bursts.
_PAUSE_S = 0.1
#: Longest answer that says why there is no other.
_APOLOGY = 1 << 12
#: Longest file made by a delta: five times its length is in memory for a moment.
DELTA_LIMIT = 24 << 20
#: A delta longer than this share of what is still missing is not worth it.
WORTH = 0.8
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")


class Written(NamedTuple):
    """Bytes that came, and the hash of the file where all of it came just now, else ""."""

    got: int
    sha256: str


class HttpsDownloads:
    """Downloads from the artifact server.

    ca         PEM bundle: the only certificates that are believed
    artifacts  https://host:port of the server, for TUF's metadata
    stage      model -> folder of its stage
    max_kbps   kilobit a second, 0 for no limit
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

    def metadata(self, name: str) -> bytes:
        """One file of TUF's metadata; AbsentError where there is none, LinkError out of reach."""
        with self._open(f"{self._artifacts}/metadata/{name}", 0) as response:
            return _all(response, METADATA)

    def small(self, url: str, size: int, sha256: str) -> bytes:
        """A small file of exactly `size` bytes and this hash; BundleError for anything else."""
        with self._open(url, 0) as response:
            data = _all(response, size)
        if len(data) != size or hashlib.sha256(data).hexdigest() != sha256:
            raise BundleError(f"{_shown(url)} is not what was signed")
        return data

    def file(self, url: str, model: str, file: File, stop: Callable[[], bool]) -> int:
        """Fetch `file` into the model's stage; bytes that came over the network.

        What came before a broken connection or power cut is kept and not fetched again.

        Raises LinkError to be tried again, BundleError when the bytes are not what was signed,
        AbsentError for 404, DeniedError for 403, StorageError when the disk refuses.
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
            if have < file.size or not part.exists():
                got, sha256 = self._fetch(url, part, have, file, stop)
            self._finish(part, stage / file.name, file, sha256)
        return got

    def span(self, url: str, start: int, end: int, size: int, stop: Callable[[], bool]) -> bytes:
        """Bytes start..end (exclusive) of a file of `size`; raises as `file` does."""
        data = bytearray()
        with self._open(url, start, end) as response:
            if _start(response, start, size) != start:
                raise LinkError(f"{_shown(url)}: asked for a part, the server gives the whole")
            self._copy(response, data.extend, end - start, stop)
        return bytes(data)

    def delta(self, url: str, model: str, file: File, base: Path, stop: Callable[[], bool]) -> int:
        """Make `file` in the model's stage of `base` and what differs; bytes that came.

        The delta's length, as the server says it, decides: where the rest of the whole file is
        little more, BundleError. So is a delta that does not make what was signed, AbsentError
        one that is not to be had now, LinkError a connection that broke on the way: try again.
        """
        stage = self._stage(model)
        part, came = stage / f"{file.sha256}.delta", 0
        whole, made = part.with_suffix(".whole"), part.with_suffix(".part")
        with translated(part.name):
            stage.mkdir(parents=True, exist_ok=True)
            if max(file.size, base.stat().st_size) > DELTA_LIMIT:
                raise BundleError(f"{file.name} is too long for a delta here")
            if whole.exists():  # the process died over it, perhaps of it: memory is short
                whole.unlink()
                raise BundleError(f"the delta of {file.name} was not applied to its end")
            missing = file.size - (made.stat().st_size if made.exists() else 0)
            came = self._fetch_delta(url, part, int(WORTH * missing), stop)
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
        return came

    def _fetch_delta(self, url: str, part: Path, most: int, stop: Callable[[], bool]) -> int:
        have = part.stat().st_size if part.exists() else 0
        try:
            with self._open(url, have) as response:
                size = _whole_size(response)
                if not have < size <= most:
                    part.unlink(missing_ok=True)
                    raise BundleError(f"a delta of {size} bytes spares too little")
                start = _start(response, have, size)
                return self._write(response, part, start, size, stop).got
        except LinkError as error:
            if stop() or (part.exists() and part.stat().st_size > have):
                raise
            part.unlink(missing_ok=True)
            raise AbsentError("delta at", _shown(url), "the whole file does as well") from error

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
                sync(part.parent)  # its name must last for its bytes to be of use
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
                raise LinkError("download was taken back")
            piece = response.read1(min(piece_size, want - got))
            if not piece:
                raise LinkError(f"connection ended after {got} of {want} bytes")
            write(piece)
            got += len(piece)
            if self._rate:
                self._sleep(max(0.0, got / self._rate - (self._monotonic() - began)))
        return got

    def _finish(self, part: Path, target: Path, file: File, sha256: str = "") -> None:
        """The whole file, under its name, if it is what was signed.

        sha256   of the bytes as they came, "" to read them again
        """
        if part.stat().st_size < file.size:
            raise LinkError(f"{file.name} is not whole yet")
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
                    response.read(_APOLOGY)  # else the connection could not be used again
                _check(response.status, url)
                yield response
            except BaseException:
                response.close()
                raise
            finally:
                response.release_conn()
        except urllib3.exceptions.HTTPError as error:
            raise LinkError(f"{_shown(url)}: {error}", "is the artifact server up?") from error

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


def _check(status: int, url: str) -> None:
    if status in (200, 206):
        return
    if status == 404:
        raise AbsentError("artifact", _shown(url))
    if status in (401, 403):
        raise DeniedError(f"{_shown(url)}: {status}, the capability does not hold any more")
    raise LinkError(f"{_shown(url)}: HTTP {status}")


def _start(response: "BaseHTTPResponse", asked: int, size: int) -> int:
    """Where the answer's first byte belongs; LinkError for an answer to another question."""
    if response.status == 200:
        return 0
    found = _RANGE.fullmatch(response.headers.get("Content-Range", ""))
    if not found or int(found.group(1)) != asked or found.group(3) not in ("*", str(size)):
        said = response.headers.get("Content-Range", "none")
        raise LinkError(f"asked for bytes from {asked} of {size}, got range {said!r}")
    return asked


def _whole_size(response: "BaseHTTPResponse") -> int:
    """Bytes of the whole thing, of which the answer may be the end; 0 where it does not say."""
    found = _RANGE.fullmatch(response.headers.get("Content-Range", ""))
    said = found.group(3) if found else response.headers.get("Content-Length", "")
    return int(said) if said.isdecimal() else 0


def _all(response: "BaseHTTPResponse", limit: int) -> bytes:
    data = response.read(limit + 1)
    if len(data) > limit:
        response.close()
        raise BundleError(f"answer of more than {limit} bytes")
    return data


def _shown(url: str) -> str:
    """The address without its capability, which is a secret."""
    return url.partition("?")[0][:200]
