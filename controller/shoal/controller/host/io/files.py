"""Files that are whole or not there: written beside, synced, renamed."""

import os
import secrets
from pathlib import Path

from shoal.errors import StorageError

SECRET, PUBLIC = 0o600, 0o644


def write_atomic(path: Path, data: bytes, mode: int = PUBLIC, *, listed: bool = True) -> None:
    """Put `data` at `path` so that a power cut leaves the old file or the new one, never half.

    listed   its folder is synced as well; without it, who writes many calls `sync_folder` after

    The file never exists with wider rights than `mode`. Raises StorageError.
    """
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
        if listed:
            sync_folder(path.parent)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise StorageError(f"cannot write {path}: {error.strerror}", "is the disk full?") from error


def private_folder(path: Path) -> Path:
    """Make `path`, readable by its owner alone. Raises StorageError."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        path.chmod(0o700)
    except OSError as error:
        raise StorageError(f"cannot make {path}: {error.strerror}") from error
    return path


def sync_folder(path: Path) -> None:
    """Make renames in `path` survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
