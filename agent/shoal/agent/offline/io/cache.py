"""Cache of an imported offline bundle, in the agent's folder until the agent has processed it.

    carried/blobs/<sha256>      verified files of releases
    carried/metadata/<name>     TUF metadata
    carried/parcel              sealed message for the device: written last, once all else is
    carried/by                  who imported it
    carried/refused             a rejected import, for the agent to report

Everything is durable before the sealed message is. Importing and clearing hold the lock.
"""

import contextlib
import fcntl
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import msgspec

from shoal import bundle
from shoal.agent.host.io.folder import CARRIED, give
from shoal.agent.host.ports import Downloads
from shoal.durable import sync, translated, write_durable
from shoal.errors import AbsentError, BundleError, ConflictError, LinkError, StorageError
from shoal.manifest import File
from shoal.sealed_message import LIMIT

MESSAGE, BY, REJECTED = "parcel", "by", "refused"
BLOBS, METADATA = "blobs", "metadata"
#: Seconds before the network is asked for metadata again after it was unreachable.
AWAY_S = 60.0
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,120}\.json")
_SMALL = 65_536
_HINT = "free disk space, or check the disk"
_T = TypeVar("_T")


class ImportRecord(msgspec.Struct, frozen=True, kw_only=True):
    """Who imported a bundle; when it was exported and imported: Unix seconds."""

    user: str
    made_s: float
    brought_s: float


class Rejection(msgspec.Struct, frozen=True, kw_only=True):
    """A rejected import: cause, detail and severity of the fault to report."""

    cause: str
    detail: str
    severity: str


class OfflineCache:
    """The imported bundle of the agent in `folder`. StorageError when the disk refuses."""

    def __init__(self, folder: Path) -> None:
        self._home, self._folder = folder, folder / CARRIED

    @property
    def exists(self) -> bool:
        """Whether anything was imported and not cleared."""
        return self._folder.exists()

    def message(self) -> bytes:
        """The sealed message; b"" unless an import is complete."""
        return self._small(MESSAGE, LIMIT)

    def record(self) -> ImportRecord | None:
        return _decoded(self._small(BY, _SMALL), ImportRecord)

    def rejection(self) -> Rejection | None:
        """A rejected import to report, until `delete_rejection`."""
        return _decoded(self._small(REJECTED, _SMALL), Rejection)

    def blob(self, sha256: str) -> Path | None:
        """Path of an imported file; None if it was not imported."""
        path = self._folder / BLOBS / sha256
        return path if path.is_file() else None

    def metadata(self, name: str) -> bytes:
        """A file of TUF metadata; AbsentError if it was not imported."""
        path = self._folder / METADATA / name
        if not _NAME.fullmatch(name) or not path.is_file():
            raise AbsentError("metadata", name)
        return path.read_bytes()

    def delete_message(self) -> None:
        """Delete the sealed message once it is processed."""
        self._delete(MESSAGE)

    def delete_rejection(self) -> None:
        self._delete(REJECTED)

    def clear(self) -> None:
        """Delete everything, unless an import runs or something is still to be processed."""
        with contextlib.suppress(ConflictError), self.lock():
            if not (self._folder / MESSAGE).exists() and not (self._folder / REJECTED).exists():
                shutil.rmtree(self._folder, ignore_errors=True)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Exclude other imports and `clear`; ConflictError while one of them runs."""
        with translated(self._home, _HINT):
            lock = os.open(self._home, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
        except BlockingIOError as error:
            raise ConflictError("another import is under way here", "wait for it") from error
        finally:
            os.close(lock)

    # ------------------------------------------------------------------ importing

    def begin(self) -> None:
        """Discard an import that is not processed yet, and make the folders."""
        with translated(self._folder, _HINT):
            self._delete(MESSAGE)
            for name in (BLOBS, METADATA):
                (self._folder / name).mkdir(parents=True, exist_ok=True)
            sync(self._home)
            self._give()

    def add_blob(self, sha256: str, pieces: Iterable[bytes]) -> None:
        """Save and verify a file, unless it is there; BundleError for other content."""
        path = self._folder / BLOBS / sha256
        with translated(path, _HINT):
            if path.exists() and bundle.sha256_of(path) == sha256:
                return
            new = path.with_suffix(".new")
            with new.open("wb") as file:
                for piece in pieces:
                    file.write(piece)
                file.flush()
                os.fsync(file.fileno())
            size = new.stat().st_size
            bundle.verify_file(new, File(name=f"blobs/{sha256}", size=size, sha256=sha256))
            new.replace(path)

    def replace_metadata(self, files: dict[str, bytes]) -> None:
        """Save exactly these files; timestamp.json, which names the current ones, last."""
        folder = self._folder / METADATA
        with translated(folder, _HINT):
            for path in folder.iterdir():
                if path.name not in files:
                    path.unlink()
            for name in sorted(files, key=lambda name: (name == "timestamp.json", name)):
                write_durable(folder / name, files[name])

    def commit(self, sealed: bytes, record: ImportRecord) -> None:
        """Complete the import: the agent may process it."""
        with translated(self._folder, _HINT):
            sync(self._folder / BLOBS)
            write_durable(self._folder / BY, msgspec.json.encode(record))
            sync(self._folder)
            self._give()
            write_durable(self._folder / MESSAGE, sealed)
            self._give()

    def reject(self, rejection: Rejection) -> None:
        """Save a rejected import, which the agent reports to the controller."""
        with translated(self._folder, _HINT):
            self._folder.mkdir(exist_ok=True)
            write_durable(self._folder / REJECTED, msgspec.json.encode(rejection))
            self._give()

    def _give(self) -> None:
        give(self._home, (self._folder, *self._folder.rglob("*")))

    def _small(self, name: str, limit: int) -> bytes:
        try:
            with (self._folder / name).open("rb") as file:
                return file.read(limit + 1)
        except FileNotFoundError:
            return b""
        except OSError as error:
            raise StorageError(f"{self._folder / name}: {error.strerror}") from error

    def _delete(self, name: str) -> None:
        with translated(self._folder, _HINT):
            path = self._folder / name
            if path.exists():
                path.unlink()
                sync(self._folder)


class CachedDownloads:
    """Downloads from the offline cache, and what is not in it from the network.

    See host.ports.Downloads.

    stage     model -> folder of its stage
    """

    def __init__(
        self,
        network: Downloads,
        cache: OfflineCache,
        stage: Callable[[str], Path],
        monotonic: Callable[[], float],
    ) -> None:
        self._network, self._cache, self._stage = network, cache, stage
        self._monotonic, self._offline_until = monotonic, float("-inf")

    def metadata(self, name: str) -> bytes:
        """From the network, which is newer; from the cache when the network is unreachable."""
        if not self._cache.exists:
            return self._network.metadata(name)
        if self._monotonic() >= self._offline_until:
            try:
                return self._network.metadata(name)
            except LinkError:
                self._offline_until = self._monotonic() + AWAY_S
        return self._cache.metadata(name)

    def small(self, url: str, size: int, sha256: str) -> bytes:
        path = self._cache.blob(sha256)
        if path is not None and path.stat().st_size == size and bundle.sha256_of(path) == sha256:
            return path.read_bytes()
        return self._network.small(url, size, sha256)

    def file(
        self,
        url: str,
        model: str,
        file: File,
        stop: Callable[[], bool],
        bases: Sequence[Path] = (),
    ) -> int:
        """Fetch a file; bytes that came over the network: 0 from the cache."""
        path = self._cache.blob(file.sha256)
        if path is None or not self._copy(path, self._stage(model), file):
            return self._network.file(url, model, file, stop, bases)
        return 0

    def delta(self, url: str, model: str, file: File, base: Path, stop: Callable[[], bool]) -> int:
        if self._cache.blob(file.sha256) is not None:
            raise AbsentError("need of a delta for", file.name, "the whole file is here")
        return self._network.delta(url, model, file, base, stop)

    def _copy(self, path: Path, stage: Path, file: File) -> bool:
        """Copy a cached file to the stage; False when it is damaged."""
        part = stage / f"{file.sha256}.part"
        with translated(part, _HINT):
            stage.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, part)
            with contextlib.suppress(BundleError):
                bundle.accept(part, stage / file.name, file)
                return True
        return False


def _decoded(data: bytes, kind: type[_T]) -> _T | None:
    try:
        return msgspec.json.decode(data, type=kind) if data else None
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
