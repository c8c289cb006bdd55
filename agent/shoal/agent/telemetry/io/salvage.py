"""What can still be read of a damaged outbox, and what must not be believed of it.

A row is taken when its checksum holds. Numbered rows are taken only together with the store's
life (boot and the highest number given): without it their numbers might be given out again, and
they may lie in the controller's database already.
"""

import sqlite3
import zlib
from pathlib import Path
from typing import NamedTuple

#: Rows that cannot be read, one after the other, until nothing more is looked for.
_PATIENCE = 5_000
_FIELDS = "id, seq, kind, grouping, merged, size, coalesce(CAST(payload AS BLOB), x''), crc"


class Kept(NamedTuple):
    """A row that was read whole, by its columns."""

    id: int
    seq: int
    kind: str
    grouping: str
    merged: int
    size: int
    payload: bytes
    crc: int


class Salvaged(NamedTuple):
    """What was found. boot "" when the store's life is lost; lost: rows known of and not read."""

    boot: str
    seq: int
    rows: list[Kept]
    told: list[str]
    lost: int


def checksum(payload: bytes) -> int:
    """CRC-32 of a row's payload: SQLite has none, and a flipped bit must not become a number."""
    return zlib.crc32(payload)


def salvage(path: Path) -> Salvaged:
    """Read what can be read of the database at `path`; never raises."""
    try:
        connection = sqlite3.connect(path, isolation_level=None)
    except sqlite3.Error:
        return Salvaged("", 0, [], [], 0)
    try:
        boot, seq = _life(connection)
        found = _rows(connection)
        told = [str(row[0]) for row in _tried(connection, "SELECT key FROM told ORDER BY rowid")]
        known = _tried(connection, "SELECT count(*) FROM row")
    finally:
        connection.close()
    sound = [row for row in found if _is_true(row)]
    if boot and max((row.seq for row in sound), default=0) > seq:
        boot, seq = "", 0
    kept = [row for row in sound if boot or not row.seq]
    count = int(known[0][0]) if known else len(found)
    return Salvaged(boot, seq, kept, told, max(count, len(found)) - len(kept))


def _is_true(row: Kept) -> bool:
    return checksum(row.payload) == row.crc and len(row.payload) == row.size


def _life(connection: sqlite3.Connection) -> tuple[str, int]:
    rows = _tried(connection, "SELECT boot, seq FROM life")
    if len(rows) == 1 and isinstance(rows[0][0], str) and isinstance(rows[0][1], int):
        return rows[0][0], rows[0][1]
    return "", 0


def _rows(connection: sqlite3.Connection) -> list[Kept]:
    """Rows in order, each by itself: a page that cannot be read costs what lies on it."""
    found: list[Kept] = []
    at = failures = 0
    while failures < _PATIENCE:
        try:
            row = connection.execute(
                f"SELECT {_FIELDS} FROM row WHERE id > ? ORDER BY id LIMIT 1",  # noqa: S608
                [at],
            ).fetchone()
        except (sqlite3.Error, UnicodeDecodeError):
            at, failures = at + 1, failures + 1
            continue
        if row is None:
            break
        if not isinstance(row[0], int) or row[0] <= at:  # a damaged tree leads back, for ever
            at, failures = at + 1, failures + 1
            continue
        found.append(Kept(*row))
        at, failures = row[0], 0
    return found


def _tried(connection: sqlite3.Connection, query: str) -> list[tuple]:
    try:
        return connection.execute(query).fetchall()
    except (sqlite3.Error, UnicodeDecodeError):
        return []
