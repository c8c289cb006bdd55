"""What devices sent in rounds, as files, until the round has ended: rounds/<round>/<kind>.<device>

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

from shoal.controller.io.files import SECRET, private_folder, sync_folder, write_atomic
from shoal.errors import StorageError
from shoal.params import F32

_SHELF = "shelf"


class RoundFiles:
    """The files below `folder`. Every method raises StorageError when the disk refuses.

    ident    "task.number"; kind: a slug; device: a checked name, or "" for what is everybody's
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._unlisted: set[Path] | None = None

    @contextmanager
    def together(self) -> Iterator[None]:
        """Many puts, which are durable when this ends, with one sync of their folder."""
        self._unlisted = set()
        try:
            yield
        finally:
            folders, self._unlisted = self._unlisted, None
            for folder in folders:
                self._sync(folder)

    def put(self, ident: str, kind: str, device: str, data: bytes) -> None:
        """Durable when it returns, or `together` does; in the place of what was there."""
        folder = self.folder / ident
        if not folder.is_dir():
            private_folder(self.folder)
            private_folder(folder)
        listed = self._unlisted is None
        write_atomic(folder / f"{kind}.{device}", data, SECRET, listed=listed)
        if self._unlisted is not None:
            self._unlisted.add(folder)

    def _sync(self, folder: Path) -> None:
        try:
            sync_folder(folder)
        except OSError as error:
            raise _refused(folder, error) from error

    def get(self, ident: str, kind: str, device: str = "") -> bytes | None:
        """None when there is none."""
        try:
            return (self.folder / ident / f"{kind}.{device}").read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _refused(self.folder / ident, error) from error

    def has(self, ident: str, kind: str, device: str = "") -> bool:
        return (self.folder / ident / f"{kind}.{device}").is_file()

    def size(self, ident: str, kind: str, device: str) -> int:
        """Bytes; 0 when there is none."""
        path = self.folder / ident / f"{kind}.{device}"
        return path.stat().st_size if path.is_file() else 0

    def devices(self, ident: str, kind: str) -> list[str]:
        """Who has a file of this kind, sorted."""
        folder = self.folder / ident
        if not folder.is_dir():
            return []
        return sorted(path.name.partition(".")[2] for path in folder.glob(f"{kind}.*"))

    def drop(self, ident: str, kind: str, device: str) -> None:
        """What is not there is not missed."""
        try:
            (self.folder / ident / f"{kind}.{device}").unlink(missing_ok=True)
        except OSError as error:
            raise _refused(self.folder / ident, error) from error

    def rounds(self) -> list[str]:
        """Of which there are files."""
        if not self.folder.is_dir():
            return []
        return sorted(path.name for path in self.folder.iterdir() if path.is_dir())

    def forget(self, ident: str) -> None:
        """Remove everything of a round."""
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
