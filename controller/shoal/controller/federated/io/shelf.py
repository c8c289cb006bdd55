"""A round's updates side by side in one file, so that comparing them takes little memory."""

from pathlib import Path

import numpy as np

from shoal.errors import StorageError
from shoal.params import F32


class FileShelf:
    """Updates of `size` elements, one after the other, float32; the file is made anew.

    An OSError (disk full) becomes StorageError.
    """

    def __init__(self, path: Path, size: int) -> None:
        self._path, self._size, self._count = path, size, 0
        path.write_bytes(b"")

    def put(self, row: F32) -> None:
        try:
            with self._path.open("r+b") as file:
                file.seek(self._count * self._size * 4)
                file.write(np.ascontiguousarray(row, "<f4").data)
        except OSError as error:
            raise StorageError(f"cannot keep an update: {error}", "free disk space") from error
        self._count += 1

    def columns(self, start: int, stop: int) -> F32:
        shape = (self._count, self._size)
        rows = np.memmap(self._path, np.dtype("<f4"), mode="r", shape=shape)
        return np.array(rows[:, start:stop])
