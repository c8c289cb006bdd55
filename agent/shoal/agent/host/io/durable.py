"""Files that are what they were or what they became, whenever the power fails."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from shoal.errors import StorageError


def write_durable(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Write a file so that either the old or the new content is there, whenever the power fails."""
    new = path.with_name(path.name + ".new")
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
    descriptor = os.open(new, flags, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
    sync(path.parent)


def sync(path: Path) -> None:
    """What `path`, a file or a folder, holds now survives a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def translated(what: Path | str, hint: str = "make room on the disk") -> Iterator[None]:
    """The disk's complaints about `what` as StorageError."""
    try:
        yield
    except OSError as error:
        raise StorageError(f"{what}: {error.strerror}", hint) from error
