"""Files and folders of the controller, whose processes may write one path at the same time."""

import secrets
from pathlib import Path

from shoal import durable
from shoal.errors import StorageError


def write_durable(
    path: Path, data: bytes, mode: int = durable.PUBLIC, *, sync_parent: bool = True
) -> None:
    """As `shoal.durable.write_durable`, with a draft of its own for each call: the last wins."""
    draft = secrets.token_hex(4)
    durable.write_durable(path, data, mode, sync_parent=sync_parent, draft=draft)


def private_folder(path: Path) -> Path:
    """Make `path`, readable by its owner alone. Raises StorageError."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        path.chmod(0o700)
    except OSError as error:
        raise StorageError(f"cannot make {path}: {error.strerror}") from error
    return path
