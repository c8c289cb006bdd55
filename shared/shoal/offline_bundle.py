"""Offline bundle: the folder with releases for devices without a network, and with their reports.

    shoal-folder.json             label: for people and for a first look; never trusted
    metadata/<name>.json          TUF metadata of the image repository
    blobs/<sha256>                files of releases, by hash
    down/<device>.parcel          sealed messages for the device
    up/<device>/<name>.parcel     sealed messages of the device

It fits FAT: lower-case flat names, no links, no permissions, no file longer than 1 GiB. Its content
is verified before use, and no link in it is followed, neither to read nor to write nor to delete:
a drive with another file system may hold some.
"""

import contextlib
import errno
import hashlib
import itertools
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

import msgspec

from shoal.errors import AbsentError, BundleError, SettingError, StorageError
from shoal.validation_errors import decode_errors_as

LABEL, METADATA, BLOBS, DOWN, UP = "shoal-folder.json", "metadata", "blobs", "down", "up"
SCHEMA = 1
_AGAIN = "it was not copied whole, or was changed: export it again"
_FOREIGN = "remove it by hand, or use another drive"
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_LABEL_LIMIT, _PIECE, _MOST_FILES = 1 << 20, 1 << 20, 100_000
#: Errors of file systems that cannot sync a folder.
_CANNOT_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EBADF)


class Label(msgspec.Struct, frozen=True, kw_only=True):
    """Content of a bundle.

    ca              SHA-256 of the controller's root certificate, hex
    made_s          Unix seconds of the last export
    valid_until_s   Unix seconds until which its releases may be installed
    """

    ca: str
    made_s: float
    valid_until_s: float
    devices: list[str]
    releases: list[str]
    schema: int = SCHEMA


class OfflineBundle:
    """Files of one bundle. Reads are bounded; a written file is complete under its name, or absent.

    Raises AbsentError for a missing file, BundleError for an invalid one, StorageError when the
    drive refuses.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def label(self) -> Label:
        """The bundle's label; SettingError when the folder is not a bundle."""
        try:
            return self._label()
        except AbsentError as error:
            hint = "name the folder itself; one is made with: shoal bundle export FOLDER"
            raise SettingError(f"{self.folder} is not an offline bundle", hint) from error

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
        """Whether a file is there with this length and hash."""
        digest = hashlib.sha256()
        try:
            for piece in self.pieces(name, size):
                digest.update(piece)
        except (AbsentError, BundleError):
            return False
        return digest.hexdigest() == sha256

    def names(self, below: str, suffix: str) -> list[str]:
        """Files of a subfolder with this suffix, sorted; none where there is no such folder."""
        try:
            with self._translated(below), self._folder(below) as folder, os.scandir(folder) as all_:
                found = sorted(e.name for e in itertools.islice(all_, _MOST_FILES + 1))
        except AbsentError:
            return []
        if len(found) > _MOST_FILES:
            raise BundleError(f"{below}: more than {_MOST_FILES} files", _FOREIGN)
        return [f"{below}/{name}" for name in found if name.endswith(suffix)]

    def folders(self, below: str) -> list[str]:
        """Folders in a subfolder, sorted; none where there is no such folder."""
        try:
            with self._translated(below), self._folder(below) as folder, os.scandir(folder) as all_:
                return sorted(e.name for e in all_ if e.is_dir(follow_symlinks=False))
        except AbsentError:
            return []

    def write(self, name: str, *pieces: bytes) -> None:
        """Write a file, durable."""
        self.receive(name, pieces)

    def receive(self, name: str, pieces: Iterable[bytes]) -> None:
        """Write a file from a stream, durable; no part of it stays when `pieces` raises."""
        below, last = _split(name)
        new = f"{last}.new"
        with self._translated(name), self._folder(below, make=True) as folder:
            try:
                _remove(new, folder)  # left by an unplugged drive, or a planted link
                with os.fdopen(_create(new, folder), "wb") as file:
                    for piece in pieces:
                        file.write(piece)
                    file.flush()
                    os.fsync(file.fileno())
                os.rename(new, last, src_dir_fd=folder, dst_dir_fd=folder)
            except BaseException:
                with contextlib.suppress(OSError):
                    _remove(new, folder)
                raise
            _sync_folder(folder)

    def delete(self, name: str) -> None:
        below, last = _split(name)
        with (
            contextlib.suppress(AbsentError),
            self._translated(name),
            self._folder(below) as folder,
        ):
            _remove(last, folder)

    def _label(self) -> Label:
        data = self.read(LABEL, _LABEL_LIMIT)
        with decode_errors_as(lambda cause: BundleError(f"{LABEL}: {cause}", "export it again")):
            label = msgspec.json.decode(data, type=Label)
        if label.schema != SCHEMA:
            raise BundleError(
                f"{LABEL}: of schema {label.schema}, this is for {SCHEMA}", "update the older side"
            )
        return label

    @contextlib.contextmanager
    def _open(self, name: str) -> Iterator[int]:
        """Open a regular file; BundleError for a link, device or pipe."""
        below, last = _split(name)
        with self._translated(name), self._folder(below) as folder:
            flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
            descriptor = os.open(last, flags, dir_fd=folder)
            try:
                if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                    raise BundleError(f"{name} is no plain file", _AGAIN)
                yield descriptor
            finally:
                os.close(descriptor)

    @contextlib.contextmanager
    def _folder(self, below: str, *, make: bool = False) -> Iterator[int]:
        """Open a subfolder; each part of its path must be a folder and not a link."""
        if make:
            self.folder.mkdir(parents=True, exist_ok=True)
        here = os.open(self.folder, _FOLDER)  # the user named this one: it may be a link
        try:
            for part in PurePosixPath(below).parts:
                if make:
                    with contextlib.suppress(FileExistsError):
                        os.mkdir(part, dir_fd=here)
                step = os.open(part, _FOLDER | os.O_NOFOLLOW, dir_fd=here)
                os.close(here)
                here = step
            yield here
        finally:
            os.close(here)

    @contextlib.contextmanager
    def _translated(self, name: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            raise AbsentError("file", f"{self.folder}/{name}", _AGAIN) from error
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENOTDIR):
                what = f"{self.folder}/{name} is a link, or behind one"
                raise BundleError(what, _FOREIGN) from error
            what = f"{self.folder}/{name}: {error.strerror}"
            raise StorageError(what, "is the drive full, read-only or unplugged?") from error


def _split(name: str) -> tuple[str, str]:
    """Folder and last part of a name; BundleError for a name that leaves the bundle."""
    *below, last = name.split("/")
    if {"", ".", ".."} & {*below, last}:
        raise BundleError(f"{name!r:.200} is not a name in an offline bundle", _AGAIN)
    return "/".join(below), last


def _create(name: str, folder: int) -> int:
    """Create a new file; never through a link."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.open(name, flags, 0o666, dir_fd=folder)


def _remove(name: str, folder: int) -> None:
    """Delete the file or the link itself, if there is one."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name, dir_fd=folder)


def _pieces(descriptor: int, most: int) -> Iterator[bytes]:
    while most and (piece := os.read(descriptor, min(_PIECE, most))):
        most -= len(piece)
        yield piece


def _sync_folder(descriptor: int) -> None:
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _CANNOT_SYNC:
            raise
