"""The journal in SQLite: update records, floors, the assignment, rounds. It survives power cuts."""

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import msgspec

from shoal.agent.host.io.database import (
    DamagedError,
    SqliteStore,
    open_copy,
    open_database,
    open_memory,
    set_aside,
    translated,
)
from shoal.agent.installed.floors import Floors
from shoal.agent.installed.record import Participation, Record
from shoal.errors import StorageError
from shoal.validation_errors import decode_errors_as

if TYPE_CHECKING:
    from sqlite_utils import Database

_T = TypeVar("_T")


class SqliteJournal(SqliteStore):
    """Journal in one SQLite file.

    lost   why an earlier file, with its floors, was set aside; "" when none was

    Where the disk refuses the file it is read from a copy in memory, so that the committed releases
    serve; a save then opens the file again, or raises StorageError and changes nothing.
    """

    def __init__(self, path: Path) -> None:
        self.lost = ""
        super().__init__(path)

    def records(self) -> dict[str, Record]:
        """Every model's record; DamagedError for one that cannot be read."""
        return _records(self._path, self._db)

    def save(self, record: Record) -> None:
        self._put("INSERT OR REPLACE INTO record VALUES (?, ?)", record.model, record)

    def floors(self) -> Floors:
        data = _kept(self._path, self._db, "floors")
        return _read(self._path, data, Floors) if data else Floors()

    def save_floors(self, floors: Floors) -> None:
        self._put("INSERT OR REPLACE INTO kept VALUES (?, ?)", "floors", floors)

    def assignment(self) -> bytes:
        return _kept(self._path, self._db, "assignment")

    def save_assignment(self, payload: bytes, floors: Floors) -> None:
        """Save both in one transaction."""
        self._return_to_disk()
        with translated(self._path), self._db.atomic():
            self._db.execute("INSERT OR REPLACE INTO kept VALUES ('assignment', ?)", [payload])
            data = msgspec.json.encode(floors)
            self._db.execute("INSERT OR REPLACE INTO kept VALUES ('floors', ?)", [data])

    def participation(self) -> Participation:
        data = _kept(self._path, self._db, "participation")
        return _read(self._path, data, Participation) if data else Participation()

    def save_participation(self, known: Participation) -> None:
        """Save the record and the privacy ledger in one transaction."""
        self._put("INSERT OR REPLACE INTO kept VALUES (?, ?)", "participation", known)

    def _put(self, sql: str, name: str, value: msgspec.Struct) -> None:
        self._return_to_disk()
        with translated(self._path), self._db.atomic():
            self._db.execute(sql, [name, msgspec.json.encode(value)])

    def _return_to_disk(self) -> None:
        """Open the file again if it could not be opened; StorageError while it cannot."""
        if self.degraded:
            self._open_or_restart()
            self.degraded = ""

    def _degrade(self, error: StorageError) -> None:
        self.degraded = str(error)
        try:
            self._db = open_copy(self._path)
            self.records()
        except StorageError:
            self._db = open_memory()
        with translated(self._path):
            self._create_tables()

    def _open(self) -> None:
        self._db = open_database(self._path)
        with translated(self._path):
            self._create_tables()
        self.records()
        self.floors()
        self.participation()

    def _create_tables(self) -> None:
        for name, key in (("record", "model"), ("kept", "name")):
            self._db.table(name).create({key: str, "data": bytes}, pk=key, if_not_exists=True)

    def _restart(self, error: DamagedError) -> None:
        kept = set_aside(self._path)
        self.lost = f"{error}; it is kept as {kept.name}"
        self._open()


def read_records(path: Path) -> dict[str, Record]:
    """The records in a journal, unrepaired; StorageError when they cannot be read."""
    with contextlib.closing(open_database(path)) as db:
        return _records(path, db)


def read_floors(path: Path) -> Floors:
    """Read the floors of a journal, likewise; those of a new device where there is none."""
    if not path.exists():
        return Floors()
    with contextlib.closing(open_database(path)) as db:
        data = _kept(path, db, "floors")
    return _read(path, data, Floors) if data else Floors()


def _records(path: Path, db: "Database") -> dict[str, Record]:
    with translated(path):
        rows = db.execute("SELECT model, data FROM record").fetchall()
    return {model: _read(path, data, Record) for model, data in rows}


def _kept(path: Path, db: "Database", name: str) -> bytes:
    with translated(path):
        found = db.execute("SELECT data FROM kept WHERE name = ?", [name]).fetchone()
    return bytes(found[0]) if found else b""


def _read(path: Path, data: bytes, kind: type[_T]) -> _T:
    with decode_errors_as(lambda error: DamagedError(f"{path}: {kind.__name__}: {error}")):
        return msgspec.json.decode(data, type=kind)
