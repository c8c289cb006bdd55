"""A folder as an uncompressed tar that is made while it is sent: nothing is written to disk.

Files in order of their paths, without owner and time: the same files are the same bytes.
"""

import io
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

from shoal.errors import SettingError

_BLOCK = 512
_CHUNK = 1 << 20


class FolderTar(io.RawIOBase):
    """A stream of known length, for an HTTP client that reads it once from its start.

    OSError when a file cannot be read; SettingError when one changes its size on the way.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files = [(path, path.stat().st_size) for path in _files(folder)]
        if not self._files:
            raise SettingError(f"{folder} has no files", "name the folder with the dataset's files")
        self.count = len(self._files)
        sizes = (len(self._header(path, size)) + _padded(size) for path, size in self._files)
        self.length = sum(sizes) + 2 * _BLOCK
        self._at, self._pieces, self._rest = 0, self._made(), b""

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Only to the end and back to the start, by which a client measures it."""
        if whence == os.SEEK_END:
            self._at = self.length + offset
        elif whence == os.SEEK_SET:
            self._at, self._pieces, self._rest = offset, self._made(), b""
        return self._at

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        if not self._rest:
            self._rest = next(self._pieces, b"")
        piece = self._rest[: len(buffer)]
        self._rest = self._rest[len(piece) :]
        buffer[: len(piece)] = piece
        self._at += len(piece)
        return len(piece)

    def _made(self) -> Iterator[bytes]:
        for path, size in self._files:
            yield self._header(path, size)
            sent = 0
            with path.open("rb") as file:
                while piece := file.read(min(_CHUNK, size - sent)):
                    sent += len(piece)
                    yield piece
            if sent != size:
                raise SettingError(f"{path} changed while it was sent", "send the folder again")
            if gap := _padded(size) - size:
                yield bytes(gap)
        yield bytes(2 * _BLOCK)

    def _header(self, path: Path, size: int) -> bytes:
        member = tarfile.TarInfo(path.relative_to(self._folder).as_posix())
        member.size = size
        return member.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def _files(folder: Path) -> list[Path]:
    """Files below the folder, by path; links are not followed, what begins with a dot is not."""
    found = []
    for root, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        paths = (Path(root) / name for name in names if not name.startswith("."))
        found += [path for path in paths if path.is_file() and not path.is_symlink()]
    return sorted(found)


def _padded(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK
