"""Durable files: after a power cut a file has the old content or the new, never half of it."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from shoal.errors import StorageError

#: File modes.
SECRET, PUBLIC = 0o600, 0o644


def write_durable(
    path: Path, data: bytes, mode: int = PUBLIC, *, sync_parent: bool = True, draft: str = "new"
) -> None:
    """Replace the file at `path` atomically: write a draft, fsync, rename, fsync the folder.

    mode          of the file; it never exists with wider rights
    sync_parent   False: the caller syncs the folder, once for many files
    draft         ends the draft's name: the same for every write where a path has one writer, so
                  that power cuts leave no more than one; another for each of concurrent writers

    Raises StorageError.
    """
    written = path.with_name(f".{path.name}.{draft}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
    with translated(path):
        try:
            with os.fdopen(os.open(written, flags, mode), "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            written.replace(path)
        except OSError:
            written.unlink(missing_ok=True)
            raise
        if sync_parent:
            sync(path.parent)


def sync(path: Path) -> None:
    """Make the content of a file, or the names in a folder, survive a power cut. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def translated(what: Path | str, hint: str = "") -> Iterator[None]:
    """Translate OSError into StorageError about `what`. hint: "" for one by the kind of error."""
    try:
        yield
    except OSError as error:
        found = hint or _HINTS.get(error.errno or 0, "make room on the disk")
        raise StorageError(f"{what}: {error.strerror or error}", found) from error


_HINTS = {
    errno.EROFS: "mount its disk writable",
    errno.EACCES: "let this user write there",
    errno.EPERM: "let this user write there",
    errno.EIO: "the disk is failing: replace it",
}
