"""Database: SQLAlchemy Core on SQLite in WAL mode, one engine per process."""

import functools
import logging
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from sqlalchemy import Connection, Engine, create_engine, event, inspect
from sqlalchemy.exc import DatabaseError, OperationalError, SQLAlchemyError

from shoal.controller.host.settings import Settings
from shoal.controller.store.io.window_files import WindowFiles, window_folder
from shoal.errors import StorageError

_MIGRATIONS = Path(__file__).parent / "migrations"
_BUSY_TIMEOUT_S = 15
_NEXT_STEP = "free some disk space, or look for a stuck process"
#: For every new SQLite connection. FULL: a device is acked when its row survives a power cut.
_PRAGMAS = ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON")


def url_of(folder: Path, settings: Settings) -> str:
    """SQLAlchemy URL of the controller in `folder`."""
    return settings.database or f"sqlite:///{folder / 'controller.db'}"


class Store:
    """Transactions on the database; every process of a controller opens its own Store.

    Do not open a write inside another: the inner would wait for the outer.

    windows   what devices saw, in files beside the database's: controller.windows/2026-12-01.db
    """

    def __init__(self, engine: Engine) -> None:
        self._reader = engine
        self._writer = engine.execution_options(shoal_write=True)
        path = Path(engine.url.database or "controller.db")
        self.windows = WindowFiles(window_folder(path), self.read, self.write)
        self._watcher: sqlite3.Connection | None = None
        self._watching = threading.Lock()

    @classmethod
    def open(cls, url: str) -> Self:
        """Connect and migrate the schema; StorageError with the database's message."""
        engine = _engine(url)
        try:
            with engine.execution_options(shoal_write=True).begin() as db:
                migrate(db)
        except (SQLAlchemyError, OSError) as error:
            raise StorageError(
                f"database {engine.url.render_as_string()}: {_short(error)}",
                "check that its folder exists, is writable and has space",
            ) from error
        return cls(engine)

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """Open a read transaction: a consistent view."""
        with _translated(), self._reader.connect() as db:
            yield db

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """Open a transaction that holds SQLite's one write lock from its start; durable at exit.

        An exception inside rolls back and propagates. StorageError when the disk is full, or when
        another process held the lock for 15 s.
        """
        with _translated(), self._writer.begin() as db:
            yield db

    def commits(self) -> object:
        """A value that differs from earlier ones once any thread or process has committed.

        Microseconds instead of a query: whoever looks again and again for something to do asks this
        first. PRAGMA data_version (https://sqlite.org/pragma.html#pragma_data_version) of a
        connection that writes nothing; another database has no such thing, and always differs.
        """
        if self._reader.dialect.name != "sqlite":
            return object()
        with self._watching:
            try:
                if self._watcher is None:
                    path = self._reader.url.database or ""
                    self._watcher = sqlite3.connect(path, _BUSY_TIMEOUT_S, check_same_thread=False)
                return self._watcher.execute("PRAGMA data_version").fetchone()
            except sqlite3.Error as error:
                raise StorageError(f"database: {error}", _NEXT_STEP) from error

    def close(self) -> None:
        self.windows.close()
        with self._watching:
            if self._watcher is not None:
                self._watcher.close()
                self._watcher = None
        self._reader.dispose()


def migrate(db: Connection, revision: str = "head") -> None:
    """Run the Alembic migrations up to `revision` inside the transaction of `db`.

    A schema that is the newest already costs one query: Alembic would compile every migration.
    """
    if revision == "head" and _has_newest_schema(db):
        return
    from alembic import command  # a quarter of a second, at the first start of a version alone
    from alembic.config import Config

    logging.getLogger("alembic").setLevel(logging.WARNING)  # it logs its dialect at every start
    config = Config(attributes={"connection": db})
    config.set_main_option("script_location", str(_MIGRATIONS))
    command.upgrade(config, revision)


def _has_newest_schema(db: Connection) -> bool:
    if not inspect(db).has_table("alembic_version"):
        return False
    found = db.exec_driver_sql("SELECT version_num FROM alembic_version").scalars().all()
    return found == [_newest_revision()]


@functools.cache
def _newest_revision() -> str:
    """Files are named after their revisions: m0007_alerts.py holds "0007"."""
    return max(path.name[1:5] for path in (_MIGRATIONS / "versions").glob("m[0-9]*_*.py"))


def _engine(url: str) -> Engine:
    sqlite = url.startswith("sqlite")
    engine = create_engine(url, connect_args={"timeout": _BUSY_TIMEOUT_S} if sqlite else {})
    if sqlite:
        event.listen(engine, "connect", _prepare)
        event.listen(engine, "begin", _begin)
    return engine


def _prepare(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # _begin sends BEGIN: the driver would send it too late
    for pragma in _PRAGMAS:
        connection.execute(f"PRAGMA {pragma}").close()


def _begin(db: Connection) -> None:
    write = db.get_execution_options().get("shoal_write")
    db.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")


@contextmanager
def _translated() -> Iterator[None]:
    """Translate errors of disk and lock into StorageError; errors of a wrong statement pass."""
    try:
        yield
    except OperationalError as error:
        raise StorageError(f"database: {_short(error)}", _NEXT_STEP) from error
    except DatabaseError as error:
        if "malformed" not in str(error.orig):
            raise
        raise StorageError(
            f"database is damaged: {_short(error)}", "restore controller.db from a backup"
        ) from error


def _short(error: Exception) -> str:
    return str(getattr(error, "orig", None) or error)
