"""The journal in SQLite: update records, floors, the assignment, rounds. It survives power cuts."""

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import msgspec

from shoal.agent.host.io.database import (
    DamagedError,
    SqliteStore,
    open_database,
    set_aside,
    translated,
)
from shoal.agent.installed.floors import Floors
from shoal.agent.installed.record import Participation, Record
from shoal.validation_errors import decode_errors_as

if TYPE_CHECKING:
    from sqlite_utils import Database

_T = TypeVar("_T")


class SqliteJournal(SqliteStore):
    """Journal in one SQLite file.

    lost   why an earlier file, with its floors, was set aside; "" when none was
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
        with translated(self._path), self._db.atomic():
            self._db.execute(sql, [name, msgspec.json.encode(value)])

    def _open(self) -> None:
        self._db = open_database(self._path)
        with translated(self._path):
            self._db.table("record").create(
                {"model": str, "data": bytes}, pk="model", if_not_exists=True
            )
            self._db.table("kept").create(
                {"name": str, "data": bytes}, pk="name", if_not_exists=True
            )
        self.records()
        self.floors()
        self.participation()

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
