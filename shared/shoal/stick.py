"""The folder that carries releases to devices without a network, and their reports back.

    shoal-folder.json             what this is: for people and for a first look, nobody trusts it
    metadata/<name>.json          TUF metadata of the image repository
    blobs/<sha256>                files of releases, by their content
    down/<device>.parcel          what the device is told
    up/<device>/<name>.parcel     what it says

Names are lower case and flat, there are no links and no permissions, and no file is longer than
1 GiB: it may lie on FAT. Nothing in it is believed for lying there.
"""

import contextlib
import errno
import hashlib
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from shoal.errors import AbsentError, BundleError, SettingError, StorageError

LABEL, METADATA, BLOBS, DOWN, UP = "shoal-folder.json", "metadata", "blobs", "down", "up"
SCHEMA = 1
_AGAIN = "it was not copied whole, or was changed: export it again"
_LABEL_LIMIT, _PIECE, _MOST_FILES = 1 << 20, 1 << 20, 100_000
#: File systems of sticks that cannot sync a folder say so with these.
_CANNOT_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EBADF)


class Label(msgspec.Struct, frozen=True, kw_only=True):
    """What is in a folder.

    ca              SHA-256 of the controller's root certificate, hex: whose folder it is
    made_s          when it was last exported to, and
    valid_until_s   until when what is in it may be installed: Unix seconds
    """

    ca: str
    made_s: float
    valid_until_s: float
    devices: list[str]
    releases: list[str]
    schema: int = SCHEMA


class Stick:
    """One such folder. Reading is bounded; what is written is whole under its name, or not there.

    AbsentError for a file that is not there, BundleError for one that cannot be right, StorageError
    when the stick refuses.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def label(self) -> Label:
        """What the folder says of itself; SettingError when it is none of Shoal's."""
        try:
            return self._label()
        except AbsentError as error:
            mend = "name the folder itself; one is made with: shoal bundle export FOLDER"
            raise SettingError(f"{self.folder} is no folder of Shoal's", mend) from error

    def read(self, name: str, limit: int) -> bytes:
        """A file of at most `limit` bytes."""
        with self._open(name) as descriptor:
            size = os.fstat(descriptor).st_size
            if size > limit:
                raise BundleError(f"{name}: {size} bytes, {limit} allowed", _AGAIN)
            return b"".join(_pieces(descriptor, limit))

    def pieces(self, name: str, size: int) -> Iterator[bytes]:
        """A file of exactly `size` bytes, piece by piece."""
        with self._open(name) as descriptor:
            found = os.fstat(descriptor).st_size
            if found != size:
                raise BundleError(f"{name}: {found} bytes, {size} are right", _AGAIN)
            yield from _pieces(descriptor, size)

    def holds(self, name: str, size: int, sha256: str) -> bool:
        """Whether a file is there, of this length and content."""
        digest = hashlib.sha256()
        try:
            for piece in self.pieces(name, size):
                digest.update(piece)
        except (AbsentError, BundleError):
            return False
        return digest.hexdigest() == sha256

    def names(self, below: str, suffix: str) -> list[str]:
        """Files of one folder in it, by their end, sorted."""
        with self._translated(below):
            if not (self.folder / below).is_dir():
                return []
            found = sorted(e.name for e in os.scandir(self.folder / below))
        if len(found) > _MOST_FILES:
            raise BundleError(f"{below}: {len(found)} files, {_MOST_FILES} allowed")
        return [f"{below}/{name}" for name in found if name.endswith(suffix)]

    def folders(self, below: str) -> list[str]:
        """Names of the folders in one folder in it, sorted."""
        with self._translated(below):
            if not (self.folder / below).is_dir():
                return []
            return sorted(e.name for e in os.scandir(self.folder / below) if e.is_dir())

    def write(self, name: str, *pieces: bytes) -> None:
        """Write a file, durable."""
        self.receive(name, pieces)

    def receive(self, name: str, pieces: Iterable[bytes]) -> None:
        """Write a file as it comes, durable; nothing of it is there when `pieces` raises."""
        path = self.folder / name
        new = path.with_name(f"{path.name}.new")
        with self._translated(name):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                with new.open("wb") as file:
                    for piece in pieces:
                        file.write(piece)
                    file.flush()
                    os.fsync(file.fileno())
                new.replace(path)
            except BaseException:
                with contextlib.suppress(OSError):
                    new.unlink(missing_ok=True)
                raise
            _sync_folder(path.parent)

    def delete(self, name: str) -> None:
        with self._translated(name):
            (self.folder / name).unlink(missing_ok=True)

    def _label(self) -> Label:
        data = self.read(LABEL, _LABEL_LIMIT)
        try:
            label = msgspec.json.decode(data, type=Label)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise BundleError(f"{LABEL}: {error}", "export it again") from error
        if label.schema != SCHEMA:
            raise BundleError(
                f"{LABEL}: of schema {label.schema}, this is for {SCHEMA}", "update the older side"
            )
        return label

    @contextlib.contextmanager
    def _open(self, name: str) -> Iterator[int]:
        """A plain file: no link, no device, no pipe that would never end."""
        with self._translated(name):
            flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
            descriptor = os.open(self.folder / name, flags)
            try:
                if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                    raise BundleError(f"{name} is no plain file", _AGAIN)
                yield descriptor
            finally:
                os.close(descriptor)

    @contextlib.contextmanager
    def _translated(self, name: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            raise AbsentError("file", f"{self.folder}/{name}", _AGAIN) from error
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise BundleError(f"{name} is a link, and no plain file", _AGAIN) from error
            said = f"{self.folder}/{name}: {error.strerror}"
            raise StorageError(said, "is the stick full, read-only or gone?") from error


def _pieces(descriptor: int, most: int) -> Iterator[bytes]:
    while most and (piece := os.read(descriptor, min(_PIECE, most))):
        most -= len(piece)
        yield piece


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _CANNOT_SYNC:
            raise
    finally:
        os.close(descriptor)
