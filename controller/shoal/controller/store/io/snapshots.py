"""Snapshots of a database and its files of windows, while other processes write to them."""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from shoal.controller.store.io.window_files import window_folder
from shoal.durable import sync
from shoal.errors import StorageError


def copy_database(source: Path, target: Path) -> None:
    """Copy a database as it is at one moment (SQLite's online backup), and sync the copy.

    The copy is one file, without a write-ahead log. Raises StorageError.
    """
    with _translated(source), closing(_connect(source, "rw")) as old:
        with closing(sqlite3.connect(target)) as new:
            old.backup(new)  # all pages in one read transaction: nobody waits for it
            new.execute("PRAGMA journal_mode = DELETE").close()
        sync(target)


def copy_windows(
    source: Path, target: Path, copied: Callable[[Path], None] = lambda path: None
) -> None:
    """Copy the files of windows of the database `source`, for its copy `target`.

    Called after copy_database: a file may then hold more windows than the copy knows, which are no
    windows there, and never fewer. A file whose windows have passed their retention since is taken
    out of the copy. copied: called with each file. Raises StorageError.
    """
    folder = window_folder(target)
    with _translated(target), closing(_connect(target, "rw")) as db:
        names = [
            name for (name,) in db.execute("SELECT name FROM window_file WHERE first_id <= last_id")
        ]
        for name in names:
            folder.mkdir(mode=0o700, exist_ok=True)
            old, new = window_folder(source) / f"{name}.db", folder / f"{name}.db"
            if old.exists():
                copy_database(old, new)
                copied(new)
            else:
                db.execute("UPDATE window_file SET first_id = last_id + 1 WHERE name = ?", (name,))
        db.commit()
    sync(target)


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode={mode}", uri=True, timeout=15)


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        raise StorageError(
            f"cannot copy {path}: {error}", "free some disk space, or look at its rights"
        ) from error
