"""Files of running rounds: what devices sent, until the round has ended; rounds/<round>/...

    <kind>.              of the round itself
    <kind>.<device>      head and chunks of an incomplete update
    batch.<number>       other messages of devices, one file for all that arrived together

A message is kept as received and synced before it counts, so that a restarted controller resumes
where it was, and aggregates with memory for one update. Only the controller may read them, and
they are deleted when the round has ended.

A batch is synced once for all its parts:

    4 bytes    length of the head, little-endian
    head       msgpack: [kind, device, length] of every part, in order
    parts      one after the other
"""

import itertools
import logging
import mmap
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import BinaryIO, NamedTuple

import msgspec
import numpy as np

from shoal.controller.host.io.files import private_folder, write_durable
from shoal.durable import SECRET, sync
from shoal.errors import StorageError
from shoal.params import F32

_log = logging.getLogger(__name__)
#: (kind, device)
Key = tuple[str, str]
_SHELF = "shelf"
#: Kinds that are deleted one by one while the round runs.
_LOOSE = ("head", "piece-")
#: Largest number of bytes that wait for their batch.
_MAX_WAITING = 8 << 20
_LENGTH = 4
_BATCH_NAME = "batch.{:08}"


class _Place(NamedTuple):
    """Position of a part: bytes `start` to `start + length` of a file."""

    path: Path
    start: int
    length: int

    def read(self) -> bytes:
        """OSError if the file is missing."""
        with self.path.open("rb") as file:
            file.seek(self.start)
            return file.read(self.length)

    def view(self) -> memoryview:
        """The part, mapped; OSError if the file is missing."""
        with self.path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return memoryview(mapped)[self.start : self.start + self.length]


def _write_batch(folder: Path, parts: Mapping[Key, bytes]) -> dict[Key, _Place]:
    """Write a new batch atomically; the caller syncs the folder. StorageError on a full disk."""
    number = int(_batch_files(folder)[-1].suffix[1:]) + 1 if _batch_files(folder) else 0
    path = folder / _BATCH_NAME.format(number)
    head = msgspec.msgpack.encode([(*key, len(data)) for key, data in parts.items()])
    whole = b"".join([len(head).to_bytes(_LENGTH, "little"), head, *parts.values()])
    write_durable(path, whole, SECRET, sync_parent=False)
    return _places(path, head)


def _read_batches(folder: Path) -> dict[Key, _Place]:
    """Positions of all parts in a folder's batches; the newest of each.

    A damaged batch is skipped: its messages are requested again. StorageError if the disk refuses.
    """
    found: dict[Key, _Place] = {}
    for path in _batch_files(folder):
        try:
            with path.open("rb") as file:
                head = file.read(int.from_bytes(file.read(_LENGTH), "little"))
            found |= _places(path, head)
        except OSError as error:
            raise StorageError(f"{path}: {error.strerror}", "look at the disk") from error
        except msgspec.MsgspecError as error:
            _log.error("%s is damaged and skipped: %s", path, error)
    return found


def _places(path: Path, head: bytes) -> dict[Key, _Place]:
    parts = msgspec.msgpack.decode(head, type=list[tuple[str, str, int]])
    starts = itertools.accumulate((one[2] for one in parts), initial=_LENGTH + len(head))
    return {
        (kind, device): _Place(path, start, length)
        for (kind, device, length), start in zip(parts, starts, strict=False)
    }


def _batch_files(folder: Path) -> list[Path]:
    """Oldest first."""
    return sorted(folder.glob("batch.*"))


class RoundFiles:
    """The files below `folder`. Every method raises StorageError when the disk refuses.

    ident    "task.number"; kind: a slug; device: a checked name, or "" for files of the round

    Only one instance per folder: it caches which part is in which batch.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._known: dict[str, dict[Key, _Place]] = {}
        self._waiting: dict[str, dict[Key, bytes]] = {}
        self._batching, self._waiting_bytes = False, 0
        self._unlisted: set[Path] = set()

    @contextmanager
    def together(self) -> Iterator[None]:
        """Batch of puts, durable when the block ends without an error: one file and two syncs.

        After an error they may be lost, and must not be used.
        """
        self._batching = True
        try:
            yield
            self._flush()
        finally:
            self._batching = False
            self._clear_waiting()

    def put(self, ident: str, kind: str, device: str, data: bytes) -> None:
        """Write or replace a file; durable when this returns, or the enclosing `together`."""
        with nullcontext() if self._batching else self.together():
            self._put(ident, (kind, device), data)

    def _put(self, ident: str, key: Key, data: bytes) -> None:
        folder, (kind, device) = self.folder / ident, key
        if not folder.is_dir():
            private_folder(self.folder)
            private_folder(folder)
            self._unlisted.add(self.folder)
        if device and not kind.startswith(_LOOSE):
            self._waiting.setdefault(ident, {})[key] = data
            self._waiting_bytes += len(data)
        else:
            write_durable(self._loose(ident, kind, device), data, SECRET, sync_parent=False)
            self._unlisted.add(folder)
        if self._waiting_bytes > _MAX_WAITING:
            self._flush()

    def _flush(self) -> None:
        """Write the waiting parts to disk."""
        for ident, parts in self._waiting.items():
            known, folder = self._placed(ident), self.folder / ident
            known |= _write_batch(folder, parts)
            self._unlisted.add(folder)
        for folder in self._unlisted:
            self._sync(folder)
        self._clear_waiting()

    def _clear_waiting(self) -> None:
        self._waiting.clear()
        self._unlisted.clear()
        self._waiting_bytes = 0

    def _placed(self, ident: str) -> dict[Key, _Place]:
        if ident not in self._known:
            self._known[ident] = _read_batches(self.folder / ident)
        return self._known[ident]

    def _sync(self, folder: Path) -> None:
        try:
            sync(folder)
        except OSError as error:
            raise _refused(folder, error) from error

    def get(self, ident: str, kind: str, device: str = "") -> bytes | None:
        """None when there is none."""
        waiting = self._waiting.get(ident, {}).get((kind, device))
        if waiting is not None:
            return waiting
        place = self._placed(ident).get((kind, device))
        try:
            return place.read() if place else self._loose(ident, kind, device).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _refused(self.folder / ident, error) from error

    def view(self, ident: str, kind: str, device: str) -> memoryview | None:
        """As `get`, for a kind that is kept in batches: of a file, read as far as it is used."""
        waiting = self._waiting.get(ident, {}).get((kind, device))
        if waiting is not None:
            return memoryview(waiting)
        place = self._placed(ident).get((kind, device))
        try:
            return place.view() if place else None
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _refused(self.folder / ident, error) from error

    def has(self, ident: str, kind: str, device: str = "") -> bool:
        key = (kind, device)
        batched = key in self._waiting.get(ident, {}) or key in self._placed(ident)
        return batched or self._loose(ident, kind, device).is_file()

    def size(self, ident: str, kind: str, device: str) -> int:
        """Bytes; 0 when there is none."""
        key = (kind, device)
        if (waiting := self._waiting.get(ident, {}).get(key)) is not None:
            return len(waiting)
        if (place := self._placed(ident).get(key)) is not None:
            return place.length
        path = self._loose(ident, kind, device)
        return path.stat().st_size if path.is_file() else 0

    def devices(self, ident: str, kind: str) -> list[str]:
        """Devices with a file of this kind, sorted."""
        keys = {*self._placed(ident), *self._waiting.get(ident, {})}
        loose = (self.folder / ident).glob(f"{kind}.*")
        found = {device for one, device in keys if one == kind}
        return sorted(found | {path.name.partition(".")[2] for path in loose})

    def drop(self, ident: str, kind: str, device: str) -> None:
        """Delete a head or a chunk, if it exists."""
        try:
            self._loose(ident, kind, device).unlink(missing_ok=True)
        except OSError as error:
            raise _refused(self.folder / ident, error) from error

    def _loose(self, ident: str, kind: str, device: str) -> Path:
        return self.folder / ident / f"{kind}.{device}"

    def rounds(self) -> list[str]:
        """Ids of rounds with files."""
        if not self.folder.is_dir():
            return []
        return sorted(path.name for path in self.folder.iterdir() if path.is_dir())

    def forget(self, ident: str) -> None:
        """Delete everything of a round."""
        self._known.pop(ident, None)
        try:
            shutil.rmtree(self.folder / ident)
        except FileNotFoundError:
            return
        except OSError as error:
            raise _refused(self.folder / ident, error) from error

    @contextmanager
    def shelf(self, ident: str, size: int) -> Iterator["FileShelf"]:
        """Temporary shelf for updates of `size` elements."""
        with self.draft(ident, _SHELF) as file:
            yield FileShelf(file, size)

    @contextmanager
    def draft(self, ident: str, name: str) -> Iterator[BinaryIO]:
        """Temporary empty file, to write and read; its `name` is a path."""
        path = self.folder / ident / name
        try:
            with path.open("w+b") as file:
                yield file
        except OSError as error:
            raise _refused(path, error) from error
        finally:
            path.unlink(missing_ok=True)


class FileShelf:
    """gathering.Shelf in a file: float32, one update after the other."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self._size, self._rows = file, size, 0

    def put(self, row: F32) -> None:
        self._file.seek(0, 2)
        self._file.write(row.astype("<f4", copy=False).data)
        self._rows += 1

    def columns(self, start: int, stop: int) -> F32:
        """float32 (N, stop - start)."""
        block = np.empty((self._rows, stop - start), "<f4")
        for at, row in enumerate(block):
            self._file.seek(4 * (at * self._size + start))
            row[:] = np.frombuffer(self._file.read(4 * (stop - start)), "<f4")
        return block


def _refused(path: Path, error: OSError) -> StorageError:
    return StorageError(f"{path}: {error.strerror or error}", "free some disk space")
