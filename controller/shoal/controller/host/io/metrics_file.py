"""The engine's metrics, in a file of the controller's folder: the web process serves them.

In Prometheus' text format. The engine writes it every few seconds; who reads it tells by
shoal_engine_timestamp_seconds how old it is.
"""

from pathlib import Path

from shoal.errors import StorageError

_NAME = "engine.prom"


def write_metrics(folder: Path, text: bytes) -> None:
    """Replace the file at once, without a sync: what a power cut takes is written anew."""
    path = folder / _NAME
    draft = path.with_suffix(".draft")
    try:
        draft.write_bytes(text)
        draft.replace(path)
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror or error}", "free some disk space") from error


def read_metrics(folder: Path) -> str:
    """ "" before the engine has written any."""
    try:
        return (folder / _NAME).read_text()
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise StorageError(f"{folder / _NAME}: {error}", "look at the disk") from error
