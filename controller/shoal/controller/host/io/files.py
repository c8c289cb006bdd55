"""Private folders."""

from pathlib import Path

from shoal.errors import StorageError


def private_folder(path: Path) -> Path:
    """Make `path`, readable by its owner alone. Raises StorageError."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        path.chmod(0o700)
    except OSError as error:
        raise StorageError(f"cannot make {path}: {error.strerror}") from error
    return path
