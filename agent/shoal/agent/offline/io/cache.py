"""What a stick has brought: in the agent's own folder until the agent has made use of it.

    carried/blobs/<sha256>      files of releases, each true to its name
    carried/metadata/<name>     TUF metadata
    carried/parcel              what the device is told: there last, so that all else is there too
    carried/by                  who brought it
    carried/refused             what was brought and not believed, for the agent to report

Everything is durable before the parcel is. Who brings and who clears away hold the lock.
"""

import contextlib
import fcntl
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import msgspec

from shoal import bundle
from shoal.agent.host.io.folder import CARRIED, give
from shoal.agent.host.network import Network
from shoal.durable import sync, write_durable
from shoal.errors import AbsentError, BundleError, ConflictError, LinkError, StorageError
from shoal.manifest import File
from shoal.sealed_message import LIMIT

PARCEL, BY, REFUSED = "parcel", "by", "refused"
BLOBS, METADATA = "blobs", "metadata"
#: Seconds without asking the network for metadata, once it was found to be away.
AWAY_S = 60.0
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,120}\.json")
_SMALL = 65_536
_T = TypeVar("_T")


class Bearer(msgspec.Struct, frozen=True, kw_only=True):
    """Who brought it, when it was made and brought: Unix seconds."""

    user: str
    made_s: float
    brought_s: float


class Refusal(msgspec.Struct, frozen=True, kw_only=True):
    """What was not believed, and why: cause and detail of a fault."""

    cause: str
    detail: str
    severity: str


class Carried:
    """What was brought to the agent in `folder`. StorageError when the disk refuses."""

    def __init__(self, folder: Path) -> None:
        self._home, self._folder = folder, folder / CARRIED

    @property
    def there(self) -> bool:
        """Whether anything is."""
        return self._folder.exists()

    def parcel(self) -> bytes:
        """The sealed parcel; b"" where none was brought whole."""
        return self._small(PARCEL, LIMIT)

    def bearer(self) -> Bearer | None:
        return _decoded(self._small(BY, _SMALL), Bearer)

    def refusal(self) -> Refusal | None:
        """What is to be reported, once: it is forgotten by `reported`."""
        return _decoded(self._small(REFUSED, _SMALL), Refusal)

    def blob(self, sha256: str) -> Path | None:
        """Where a file lies, if it was brought."""
        path = self._folder / BLOBS / sha256
        return path if path.is_file() else None

    def metadata(self, name: str) -> bytes:
        """A file of TUF's metadata; AbsentError if it was not brought."""
        path = self._folder / METADATA / name
        if not _NAME.fullmatch(name) or not path.is_file():
            raise AbsentError("metadata", name)
        return path.read_bytes()

    def taken(self) -> None:
        """The parcel is in the journal: it is not taken twice."""
        self._forget(PARCEL)

    def reported(self) -> None:
        self._forget(REFUSED)

    def clear(self) -> None:
        """Away with it all, unless somebody is bringing something or a parcel waits."""
        with contextlib.suppress(ConflictError), self.bringing():
            if not (self._folder / PARCEL).exists() and not (self._folder / REFUSED).exists():
                shutil.rmtree(self._folder, ignore_errors=True)

    @contextlib.contextmanager
    def bringing(self) -> Iterator[None]:
        """Nobody else brings or clears away meanwhile; ConflictError when somebody does."""
        with _translated(self._home):
            lock = os.open(self._home, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
        except BlockingIOError as error:
            raise ConflictError("another import is under way here", "wait for it") from error
        finally:
            os.close(lock)

    # --- for who brings ------------------------------------------------------------------------

    def begin(self) -> None:
        """What was brought before and is not taken yet makes place."""
        with _translated(self._folder):
            self._forget(PARCEL)
            for name in (BLOBS, METADATA):
                (self._folder / name).mkdir(parents=True, exist_ok=True)
            sync(self._home)
            self._give()

    def keep_blob(self, sha256: str, pieces: Iterable[bytes]) -> None:
        """Keep a file whose content is known; BundleError for any other. Again is no work."""
        path = self._folder / BLOBS / sha256
        with _translated(path):
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

    def keep_metadata(self, files: dict[str, bytes]) -> None:
        """Exactly these; timestamp.json, which says what is current, comes last."""
        folder = self._folder / METADATA
        with _translated(folder):
            for path in folder.iterdir():
                if path.name not in files:
                    path.unlink()
            for name in sorted(files, key=lambda name: (name == "timestamp.json", name)):
                write_durable(folder / name, files[name])

    def complete(self, sealed: bytes, bearer: Bearer) -> None:
        """All is there: the agent may take it."""
        with _translated(self._folder):
            sync(self._folder / BLOBS)
            write_durable(self._folder / BY, msgspec.json.encode(bearer))
            sync(self._folder)
            self._give()
            write_durable(self._folder / PARCEL, sealed)
            self._give()

    def refuse(self, refusal: Refusal) -> None:
        """Leave word for the agent, which tells the controller."""
        with _translated(self._folder):
            self._folder.mkdir(exist_ok=True)
            write_durable(self._folder / REFUSED, msgspec.json.encode(refusal))
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

    def _forget(self, name: str) -> None:
        with _translated(self._folder):
            path = self._folder / name
            if path.exists():
                path.unlink()
                sync(self._folder)


class Brought:
    """Downloads, from what was brought where it was; else from the network. See ports.Downloads.

    network   what to fetch from otherwise
    stage     model -> folder of its stage
    """

    def __init__(
        self,
        network: Network,
        carried: Carried,
        stage: Callable[[str], Path],
        monotonic: Callable[[], float],
    ) -> None:
        self._network, self._carried, self._stage = network, carried, stage
        self._monotonic, self._away_until = monotonic, float("-inf")

    def metadata(self, name: str) -> bytes:
        """From the network, which is newer; from what was brought where it is away."""
        if not self._carried.there:
            return self._network.metadata(name)
        if self._monotonic() >= self._away_until:
            try:
                return self._network.metadata(name)
            except LinkError:
                self._away_until = self._monotonic() + AWAY_S
        return self._carried.metadata(name)

    def small(self, url: str, size: int, sha256: str) -> bytes:
        path = self._carried.blob(sha256)
        if path is not None and path.stat().st_size == size and bundle.sha256_of(path) == sha256:
            return path.read_bytes()
        return self._network.small(url, size, sha256)

    def file(self, url: str, model: str, file: File, stop: Callable[[], bool]) -> int:
        """Bytes that came over the network: none for what was brought."""
        path = self._carried.blob(file.sha256)
        if path is None or not self._copy(path, self._stage(model), file):
            return self._network.file(url, model, file, stop)
        return 0

    def delta(self, url: str, model: str, file: File, base: Path, stop: Callable[[], bool]) -> int:
        if self._carried.blob(file.sha256) is not None:
            raise AbsentError("need of a delta for", file.name, "the whole file is here")
        return self._network.delta(url, model, file, base, stop)

    def _copy(self, path: Path, stage: Path, file: File) -> bool:
        """Whether what was brought is in the stage now; False when it is damaged."""
        part = stage / f"{file.sha256}.part"
        with _translated(part):
            stage.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, part)
            try:
                bundle.verify_file(part, file)
            except BundleError:
                part.unlink()
                return False
            part.replace(stage / file.name)
        return True


def _decoded(data: bytes, kind: type[_T]) -> _T | None:
    try:
        return msgspec.json.decode(data, type=kind) if data else None
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None


@contextlib.contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if isinstance(error, BlockingIOError):
            raise
        raise StorageError(f"{path}: {error.strerror}", "make room, or look at the disk") from error
