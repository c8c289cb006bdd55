"""What devices sent in rounds, as files, until the round has ended: rounds/<round>/...

    <kind>.              of the round itself
    <kind>.<device>      head and pieces of an update that is not whole yet
    batch.<number>       everything else of devices, as many together as came together

Kept as it came and synced before it counts, so that a controller that was killed reads on where it
was, and aggregates with memory for one update, however many there are. Nobody but the controller
may read them, and nothing of a round stays when it has ended.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np

from shoal.controller.federated.io import round_batches
from shoal.controller.federated.io.round_batches import Key, Place
from shoal.controller.host.io.files import private_folder
from shoal.durable import SECRET, sync, write_durable
from shoal.errors import StorageError
from shoal.params import F32

_SHELF = "shelf"
#: Kinds that are dropped one by one while the round runs.
_LOOSE = ("head", "piece-")
#: Bytes that wait for the others of their batch, at most.
_MOST = 8 << 20


class RoundFiles:
    """The files below `folder`. Every method raises StorageError when the disk refuses.

    ident    "task.number"; kind: a slug; device: a checked name, or "" for what is everybody's

    There must be no second one for the same folder: this one knows what is in which batch.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._known: dict[str, dict[Key, Place]] = {}
        self._waiting: dict[str, dict[Key, bytes]] = {}
        self._gathers, self._weight = False, 0
        self._unlisted: set[Path] = set()

    @contextmanager
    def together(self) -> Iterator[None]:
        """Many puts, durable when this ends well: one file for all, and two syncs.

        When it does not end well they may be lost, and nobody may go by them.
        """
        self._gathers = True
        try:
            yield
            self._write_down()
        finally:
            self._gathers = False
            self._forget_waiting()

    def put(self, ident: str, kind: str, device: str, data: bytes) -> None:
        """Durable when it returns, or `together` does; in the place of what was there."""
        if not self._gathers:
            with self.together():
                self._put(ident, (kind, device), data)
        else:
            self._put(ident, (kind, device), data)

    def _put(self, ident: str, key: Key, data: bytes) -> None:
        folder, (kind, device) = self.folder / ident, key
        if not folder.is_dir():
            private_folder(self.folder)
            private_folder(folder)
            self._unlisted.add(self.folder)
        if device and not kind.startswith(_LOOSE):
            self._waiting.setdefault(ident, {})[key] = data
            self._weight += len(data)
        else:
            write_durable(self._loose(ident, kind, device), data, SECRET, sync_parent=False)
            self._unlisted.add(folder)
        if self._weight > _MOST:
            self._write_down()

    def _write_down(self) -> None:
        """What waits, onto the disk."""
        for ident, parts in self._waiting.items():
            known, folder = self._placed(ident), self.folder / ident
            known |= round_batches.write(folder, parts)
            self._unlisted.add(folder)
        for folder in self._unlisted:
            self._sync(folder)
        self._forget_waiting()

    def _forget_waiting(self) -> None:
        self._waiting.clear()
        self._unlisted.clear()
        self._weight = 0

    def _placed(self, ident: str) -> dict[Key, Place]:
        if ident not in self._known:
            self._known[ident] = round_batches.places(self.folder / ident)
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
        """Who has a file of this kind, sorted."""
        keys = {*self._placed(ident), *self._waiting.get(ident, {})}
        loose = (self.folder / ident).glob(f"{kind}.*")
        found = {device for one, device in keys if one == kind}
        return sorted(found | {path.name.partition(".")[2] for path in loose})

    def drop(self, ident: str, kind: str, device: str) -> None:
        """Of heads and pieces; what is not there is not missed."""
        try:
            self._loose(ident, kind, device).unlink(missing_ok=True)
        except OSError as error:
            raise _refused(self.folder / ident, error) from error

    def _loose(self, ident: str, kind: str, device: str) -> Path:
        return self.folder / ident / f"{kind}.{device}"

    def rounds(self) -> list[str]:
        """Of which there are files."""
        if not self.folder.is_dir():
            return []
        return sorted(path.name for path in self.folder.iterdir() if path.is_dir())

    def forget(self, ident: str) -> None:
        """Remove everything of a round."""
        self._known.pop(ident, None)
        try:
            shutil.rmtree(self.folder / ident)
        except FileNotFoundError:
            return
        except OSError as error:
            raise _refused(self.folder / ident, error) from error

    @contextmanager
    def shelf(self, ident: str, size: int) -> Iterator["FileShelf"]:
        """An empty shelf for updates of `size` elements, gone afterwards."""
        path = self.folder / ident / _SHELF
        try:
            with path.open("w+b") as file:
                yield FileShelf(file, size)
        except OSError as error:
            raise _refused(path, error) from error
        finally:
            path.unlink(missing_ok=True)


class FileShelf:
    """shoal.controller.federated.gathering.Shelf in a file: float32, one update after the other."""

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
