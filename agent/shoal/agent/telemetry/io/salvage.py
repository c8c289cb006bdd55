"""Recovery of a damaged outbox.

A row is taken when its checksum holds. Numbered rows are taken only together with the store's
identity (boot and the highest number): without it their numbers might be assigned again, and the
controller's database may have them already.
"""

import sqlite3
import zlib
from pathlib import Path
from typing import NamedTuple

from shoal.agent.host.io.database import readable_rows

#: Unreadable rows in sequence after which the search ends.
_MAX_FAILURES = 5_000
_FIELDS = "id, seq, kind, grouping, merged, size, coalesce(CAST(payload AS BLOB), x''), crc"


class SalvagedRow(NamedTuple):
    """A row that was read completely, by its columns."""

    id: int
    seq: int
    kind: str
    grouping: str
    merged: int
    size: int
    payload: bytes
    crc: int


class Salvaged(NamedTuple):
    """Recovered contents. boot: "" when it is lost; lost: rows that exist and cannot be read."""

    boot: str
    seq: int
    rows: list[SalvagedRow]
    keys: list[str]
    lost: int


def checksum(payload: bytes) -> int:
    """CRC-32 of a row's payload: SQLite has none, and a flipped bit must not change a value."""
    return zlib.crc32(payload)


def salvage(path: Path) -> Salvaged:
    """Read what can be read of the database at `path`; never raises."""
    try:
        connection = sqlite3.connect(path, isolation_level=None)
    except sqlite3.Error:
        return Salvaged("", 0, [], [], 0)
    try:
        boot, seq = _life(connection)
        select = f"SELECT {_FIELDS} FROM row"  # noqa: S608
        rows = readable_rows(connection, select, _MAX_FAILURES)
        found = [SalvagedRow(*row) for row in rows]
        keys = [str(row[0]) for row in _query(connection, "SELECT key FROM told ORDER BY rowid")]
        known = _query(connection, "SELECT count(*) FROM row")
    finally:
        connection.close()
    valid = [row for row in found if _is_valid(row)]
    if boot and max((row.seq for row in valid), default=0) > seq:
        boot, seq = "", 0
    kept = [row for row in valid if boot or not row.seq]
    count = int(known[0][0]) if known else len(found)
    return Salvaged(boot, seq, kept, keys, max(count, len(found)) - len(kept))


def _is_valid(row: SalvagedRow) -> bool:
    return checksum(row.payload) == row.crc and len(row.payload) == row.size


def _life(connection: sqlite3.Connection) -> tuple[str, int]:
    rows = _query(connection, "SELECT boot, seq FROM life")
    if len(rows) == 1 and isinstance(rows[0][0], str) and isinstance(rows[0][1], int):
        return rows[0][0], rows[0][1]
    return "", 0


def _query(connection: sqlite3.Connection, query: str) -> list[tuple]:
    try:
        return connection.execute(query).fetchall()
    except (sqlite3.Error, UnicodeDecodeError):
        return []
