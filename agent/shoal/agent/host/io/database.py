"""SQLite databases that survive power cuts, and recovery from damaged ones."""

import abc
import contextlib
import shutil
import sqlite3
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, TypeVar

from shoal.durable import translated as files_translated
from shoal.errors import StorageError

if TYPE_CHECKING:
    from sqlite_utils import Database

_T = TypeVar("_T")
_DAMAGED = ("malformed", "not a database", "disk image", "corrupt")


def open_database(path: Path) -> "Database":
    """An sqlite-utils database: a commit is on the disk when it returns (WAL, synchronous=FULL).

    Raises DamagedError for a damaged file, StorageError when the disk refuses.
    """
    with translated(path):
        connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=FULL")
            connection.execute("PRAGMA cache_size=-256")
            found = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
            if found != "ok":
                raise DamagedError(f"{path}: {found}")
        except BaseException:
            connection.close()
            raise
    return _sqlite_utils()(connection, execute_plugins=False)


def open_memory() -> "Database":
    """An empty database in memory, for where the disk refuses one."""
    connection = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
    return _sqlite_utils()(connection, execute_plugins=False)


def open_copy(path: Path) -> "Database":
    """A copy in memory of a database that cannot be opened for writing: a read-only or full disk.

    The files are copied to a folder in memory first, where SQLite can read the write-ahead log,
    which may have the newest commits. Writes to the copy raise StorageError.

    Raises DamagedError for a damaged file, StorageError where there is no file, or no such folder.
    """
    db = open_memory()
    with _folder_in_memory() as folder:
        for name in (path.name, f"{path.name}-wal"):
            source = path.with_name(name)
            if source.exists() or name == path.name:
                with files_translated(source, "is the disk damaged?"):
                    shutil.copyfile(source, folder / name)
        with contextlib.closing(open_database(folder / path.name)) as copied:
            copied.conn.backup(db.conn)
    db.execute("PRAGMA query_only=ON")
    return db


@contextlib.contextmanager
def _folder_in_memory() -> Iterator[Path]:
    """A folder that is deleted afterwards: of the first place that takes one."""
    for parent in ("/dev/shm", "/run", tempfile.gettempdir()):  # noqa: S108 (0700, own name)
        with contextlib.suppress(OSError):
            folder = tempfile.TemporaryDirectory(dir=parent, prefix="shoal-")
            break
    else:
        raise StorageError("no place in memory for a copy", "mount a tmpfs at /dev/shm")
    with folder as path:
        yield Path(path)


@contextlib.contextmanager
def deferred_sync(db: "Database") -> Iterator[None]:
    """Make commits within durable only with the next full commit: for repeatable work."""
    db.execute("PRAGMA synchronous=NORMAL")
    try:
        yield
    finally:
        db.execute("PRAGMA synchronous=FULL")


class DamagedError(StorageError):
    """The file is damaged."""


def set_aside(path: Path) -> Path:
    """Rename a damaged database with its -wal and -shm files; its new path."""
    kept = path.with_name(f"{path.name}.damaged")
    with files_translated(path):
        for suffix in ("", "-wal", "-shm"):
            old = path.with_name(path.name + suffix)
            if old.exists():
                old.replace(kept.with_name(kept.name + suffix))
    return kept


@contextlib.contextmanager
def translated(path: Path) -> Iterator[None]:
    """sqlite3's errors as StorageError; DamagedError where the file itself is at fault."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        text = str(error)
        if any(word in text for word in _DAMAGED):
            raise DamagedError(f"{path}: {text}") from error
        hint = "make room on the disk" if "full" in text else "is the folder writable?"
        raise StorageError(f"{path}: {text}", hint) from error


def readable_rows(
    connection: sqlite3.Connection, select: str, most_failures: int
) -> Iterator[tuple]:
    """Rows of a table that may be damaged, in order: an unreadable page loses only its own rows.

    select   without WHERE; its first column is the key `id`
    most_failures   unreadable rows in sequence after which the search ends
    """
    at = failures = 0
    while failures < most_failures:
        try:
            for row in connection.execute(f"{select} NOT INDEXED WHERE id > ? ORDER BY id", [at]):
                if not isinstance(row[0], int) or row[0] <= at:
                    break  # a damaged tree may lead back
                at, failures = row[0], 0
                yield row
            else:
                return
        except (sqlite3.Error, UnicodeDecodeError):
            pass
        at, failures = at + 1, failures + 1


class SqliteStore(abc.ABC):
    """A store in one SQLite file, which goes on in a new file when this one is damaged.

    degraded   why it is not on the disk, "" when it is
    """

    _db: "Database"
    degraded = ""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._open_or_restart()
        except StorageError as error:
            self._degrade(error)

    def _open_or_restart(self) -> None:
        try:
            self._open()
        except DamagedError as error:
            self._restart(error)

    def _degrade(self, error: StorageError) -> None:
        """Go on without the disk, where the store can; else raise the error."""
        raise error

    @abc.abstractmethod
    def _open(self) -> None:
        """Open the file with its tables; DamagedError when it cannot be used."""

    @abc.abstractmethod
    def _restart(self, error: DamagedError) -> None:
        """Set the damaged file aside, open a new one, and copy what can be read."""

    def _retried(self, work: Callable[[], _T]) -> _T:
        """Do `work`; repeat it in the new file when this one is damaged. StorageError."""
        try:
            with translated(self._path):
                return work()
        except DamagedError as error:
            self._restart(error)
            with translated(self._path):
                return work()

    def close(self) -> None:
        self._db.close()


def _sqlite_utils() -> "type[Database]":
    """sqlite_utils.Database, without pandas, which it loads wherever it finds it, and without
    dateutil, which only its own command line needs.
    """
    unused = {"pandas": None, "sqlite_utils.recipes": ModuleType("sqlite_utils.recipes")}
    hidden = {name: module for name, module in unused.items() if name not in sys.modules}
    sys.modules.update(hidden)  # type: ignore[arg-type]
    try:
        from sqlite_utils import Database
    finally:
        for name in hidden:
            del sys.modules[name]
    return Database
