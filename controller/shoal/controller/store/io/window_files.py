"""Windows in files: a SQLite file for each day of arrival, beside the database.

A day that has passed its retention is deleted as a file: that returns its disk at once, and no
writer waits for it. (Dropping a table of 140 MB held SQLite's write lock for 1.0 s.)

The database says which windows there are. It holds, for each file, the ids of its windows; a row of
a file with another id is not there yet: a batch is durable in its file before the transaction of
the database that counts it commits, and what a crash in between leaves behind is deleted before the
next batch is written. So every window is kept exactly once, without a commit over two files.
"""

import logging
import sqlite3
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import Connection, delete, insert, select, update

from shoal.controller.host.windows import NewWindow, StoredWindow, WindowKey
from shoal.controller.store.window_tables import window_file
from shoal.durable import sync
from shoal.errors import StorageError

_log = logging.getLogger(__name__)
BUSY_TIMEOUT_S = 15
#: Windows that are looked at to count the recent ones, at most.
COUNTED = 100_000
#: Rows of 1 to 5 kB fit these pages best: inserts and reads were a fifth faster than with 4 kB.
_PAGE_BYTES = 8_192
_SCHEMA = """
CREATE TABLE IF NOT EXISTS window (
    id INTEGER PRIMARY KEY, device TEXT NOT NULL, boot TEXT NOT NULL, seq INTEGER NOT NULL,
    site TEXT NOT NULL, model TEXT NOT NULL, "release" TEXT NOT NULL, reference TEXT NOT NULL,
    start_at REAL NOT NULL, window_s REAL NOT NULL, received_at REAL NOT NULL,
    "rows" INTEGER NOT NULL, errors INTEGER NOT NULL, slow INTEGER NOT NULL,
    labelled INTEGER NOT NULL, correct INTEGER NOT NULL, merged INTEGER NOT NULL,
    latency TEXT NOT NULL, health TEXT NOT NULL, inputs BLOB NOT NULL, outputs BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS window_key ON window (device, boot, seq);
CREATE INDEX IF NOT EXISTS window_site ON window (site);
"""
_MARKS = ", ".join("?" * len(StoredWindow._fields))
_INSERT = f"INSERT INTO window VALUES ({_MARKS})"  # noqa: S608 - marks alone
_SUFFIXES = ("", "-wal", "-shm")
_ORDER = (window_file.c.last_id, window_file.c.first_id)


class _File(NamedTuple):
    """A row of window_file. An empty one (first_id > last_id) has passed its retention."""

    name: str
    first_id: int
    last_id: int
    first_at: float
    last_at: float
    oldest_at: float
    newest_at: float


def window_folder(database: Path) -> Path:
    """Where the windows of a database are: controller.windows beside controller.db."""
    return database.with_suffix(".windows")


class WindowFiles:
    """Windows of all devices; every process of a controller opens its own.

    folder   of the files, made when the first window comes
    read, write   transactions on the database
    """

    def __init__(
        self,
        folder: Path,
        read: Callable[[], AbstractContextManager[Connection]],
        write: Callable[[], AbstractContextManager[Connection]],
    ) -> None:
        self.folder = folder
        self._read, self._write = read, write
        self._writer: tuple[str, sqlite3.Connection] | None = None
        self._missed: set[str] = set()
        self._closing = threading.Lock()

    # --- reading ------------------------------------------------------------------------------

    def last(self) -> int:
        """Id of the newest window, 0 if none has ever come. Ids have no gaps."""
        with self._read() as db:
            return newest[0].last_id if (newest := _files(db, newest=True)) else 0

    def spans(self) -> list[tuple[str, int, int]]:
        """Name (day of arrival first), first and last id of each file, in order of arrival."""
        with self._read() as db:
            files = _files(db, newest=False)
        return [file[:3] for file in files if file.first_id <= file.last_id]

    def after(self, position: int, limit: int) -> list[StoredWindow]:
        """Up to `limit` windows with a higher id than `position`, in order of arrival."""
        return self.of(after=position, limit=limit)

    def of(
        self,
        *,
        device: str = "",
        site: str = "",
        model: str = "",
        release: str = "",
        since: float = -float("inf"),
        until: float = float("inf"),
        after: int = 0,
        limit: int,
        newest: bool = False,
    ) -> list[StoredWindow]:
        """Up to `limit` windows in order of arrival: the first that fit, or the newest.

        since, until   of their start; after: an id
        """
        given = {"device": device, "site": site, "model": model, '"release"': release}
        texts = {name: value for name, value in given.items() if value}
        wanted = " AND ".join([f"{name} = ?" for name in texts] + ["id > ? AND id <= ?"])
        values: list[Any] = list(texts.values())
        if since > -float("inf") or until < float("inf"):
            wanted += " AND start_at >= ? AND start_at < ?"
        order = "id DESC" if newest else "id"
        query = (
            f"SELECT * FROM window WHERE id IN (SELECT id FROM window WHERE {wanted} "  # noqa: S608
            f"ORDER BY {order} LIMIT ?) ORDER BY {order}"
        )
        with self._read() as db:
            files = _files(db, newest=newest, after=after)
        found: list[StoredWindow] = []
        for file in files:
            if len(found) >= limit:
                break
            if file.newest_at < since or file.oldest_at >= until:
                continue
            span = [since, until] if "start_at" in wanted else []
            bounds = [max(after, file.first_id - 1), file.last_id, *span, limit - len(found)]
            found += map(_stored, self._select(file.name, query, [*values, *bounds]))
        return found[::-1] if newest else found

    def count(self, since: float) -> tuple[int, int]:
        """Windows that arrived after `since`, and rows in them; of COUNTED windows at most."""
        with self._read() as db:
            files = _files(db, newest=True)
        windows, rows = 0, 0
        query = (
            'SELECT count(*), coalesce(sum("rows"), 0) FROM (SELECT "rows", received_at FROM window'
            " WHERE id >= ? AND id <= ? ORDER BY id DESC LIMIT ?) WHERE received_at > ?"
        )
        for file in files:
            if file.last_at <= since or windows >= COUNTED:
                break
            bounds = [file.first_id, file.last_id, COUNTED - windows, since]
            for more, of_them in self._select(file.name, query, bounds):
                windows, rows = windows + more, rows + of_them
        return windows, rows

    def find(self, keys: Iterable[WindowKey]) -> dict[WindowKey, NewWindow]:
        """The windows with these keys, of those that are in the newest two files."""
        left = set(keys)
        found: dict[WindowKey, NewWindow] = {}
        with self._read() as db:
            files = _files(db, newest=True)[:2]
        query = "SELECT * FROM window WHERE device = ? AND boot = ? AND seq = ? AND id <= ?"
        for file in files if left else ():
            for key in sorted(left):
                for row in self._select(file.name, query, [*key, file.last_id]):
                    found[key] = NewWindow(*_stored(row)[1:])
            left -= set(found)
        return found

    def _select(self, name: str, query: str, values: Sequence[Any]) -> list[tuple[Any, ...]]:
        """Rows of one file; none, and a line in the log, of one that is lost or damaged."""
        path = self.folder / f"{name}.db"
        try:
            with closing(_connect(path, "rw")) as db:
                return db.execute(query, values).fetchall()
        except sqlite3.Error as error:
            if isinstance(error, sqlite3.OperationalError) and path.exists():
                raise StorageError(f"{path}: {error}", "look for a stuck process") from error
            if name not in self._missed:
                _log.error("the windows in %s cannot be read: %s", path, error)
            self._missed.add(name)
            return []

    # --- writing ------------------------------------------------------------------------------

    def add(self, db: Connection, windows: Sequence[NewWindow]) -> None:
        """Keep windows that have not arrived before, in the write transaction `db`.

        They are there when it commits. Raises StorageError when the disk refuses.
        """
        if not windows:
            return
        newest = _files(db, newest=True)[:1]
        last, at = (newest[0].last_id if newest else 0), windows[-1].received_at
        day = datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d")
        name = newest[0].name if newest and newest[0].name[:10] == day else _free_name(db, day)
        try:
            self._append(name, last, windows)
        except sqlite3.DatabaseError as error:
            if type(error) is not sqlite3.DatabaseError:
                raise
            _log.error("%s is damaged, windows go on in another file: %s", name, error)
            name = _free_name(db, day, name)
            self._append(name, last, windows)
        starts = [window.start_at for window in windows]
        ends = {"last_id": last + len(windows), "last_at": at}
        if newest and newest[0].name == name:
            ends["oldest_at"] = min(newest[0].oldest_at, *starts)
            ends["newest_at"] = max(newest[0].newest_at, *starts)
            db.execute(update(window_file).where(window_file.c.name == name).values(**ends))
        else:
            began = _File(name, last + 1, 0, at, 0.0, min(starts), max(starts))
            db.execute(insert(window_file).values(**began._asdict() | ends))

    def drop(self, before: float) -> int:
        """Delete the files whose last window arrived earlier than `before`; their number.

        A file that another followed is as old as that one at most, whatever the clock said.
        """
        with self._write() as db:
            files, names, follower = _files(db, newest=True), [], float("inf")
            for i, file in enumerate(files):
                if min(file.last_at, follower) < before:
                    names.append(file.name)
                    mine = window_file.c.name == file.name
                    if i:
                        db.execute(delete(window_file).where(mine))
                    else:  # the newest says which id comes next
                        db.execute(
                            update(window_file).where(mine).values(first_id=file.last_id + 1)
                        )
                follower = min(follower, file.first_at)
            if self._writer is not None and self._writer[0] in names:
                self._close_writer()
        for name in names:
            for suffix in _SUFFIXES:
                (self.folder / f"{name}.db{suffix}").unlink(missing_ok=True)
        return len(names)

    def close(self) -> None:
        self._close_writer()

    def _append(self, name: str, last: int, windows: Sequence[NewWindow]) -> None:
        """Make windows durable in a file, with the ids after `last`.

        sqlite3.DatabaseError itself, none of its subclasses, says that the file is damaged.
        """
        rows = [(last + i, *_columns(one)) for i, one in enumerate(windows, 1)]
        try:
            db = self._open_writer(name)
            db.execute("BEGIN IMMEDIATE")
            db.execute("DELETE FROM window WHERE id > ?", (last,))
            db.executemany(_INSERT, rows)
            db.execute("COMMIT")
        except (sqlite3.OperationalError, OSError) as error:
            self._close_writer()
            raise StorageError(
                f"{self.folder / name}.db: {error}", "free some disk space, or look at its rights"
            ) from error
        except BaseException:
            self._close_writer()  # rolls back
            raise

    def _open_writer(self, name: str) -> sqlite3.Connection:
        """The connection that adds to a file: one at a time, as the database has one writer."""
        if self._writer is not None and self._writer[0] == name:
            return self._writer[1]
        self._close_writer()
        path = self.folder / f"{name}.db"
        is_new = not path.exists()
        self.folder.mkdir(exist_ok=True)
        db = _connect(path, "rwc")
        try:
            db.execute(f"PRAGMA page_size = {_PAGE_BYTES}")
            db.execute("PRAGMA journal_mode = WAL").close()
            db.execute("PRAGMA synchronous = FULL")
            db.executescript(_SCHEMA)
            if is_new:
                sync(self.folder)
                sync(self.folder.parent)
        except BaseException:
            db.close()
            raise
        self._writer = name, db
        return db

    def _close_writer(self) -> None:
        with self._closing:
            writer, self._writer = self._writer, None
        if writer is not None:
            writer[1].close()


def _files(db: Connection, *, newest: bool, after: int = 0) -> list[_File]:
    """The files with windows after an id, in order of arrival or against it."""
    order = [column.desc() for column in _ORDER] if newest else list(_ORDER)
    query = select(window_file).where(window_file.c.last_id > after).order_by(*order)
    return [_File(*row) for row in db.execute(query)]


def _free_name(db: Connection, day: str, *damaged: str) -> str:
    """A day's name; of a day that comes again, because a clock was set back, another one."""
    taken = {*db.scalars(select(window_file.c.name)), *damaged}
    number, name = 1, day
    while name in taken:
        number += 1
        name = f"{day}-{number}"
    return name


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    return sqlite3.connect(
        f"file:{_quoted(path)}?mode={mode}",
        uri=True,
        timeout=BUSY_TIMEOUT_S,
        isolation_level=None,
        check_same_thread=False,
    )


def _quoted(path: Path) -> str:
    return path.absolute().as_uri().removeprefix("file:")


def _columns(window: NewWindow) -> tuple[Any, ...]:
    *plain, latency, health, inputs, outputs = window
    encode = msgspec.json.encode
    return (*plain, encode(latency).decode(), encode(health).decode(), inputs, outputs)


def _stored(row: tuple[Any, ...]) -> StoredWindow:
    *plain, latency, health, inputs, outputs = row
    decode = msgspec.json.decode
    values = [*plain, decode(latency), decode(health), inputs, outputs]
    return StoredWindow._make(values)
