"""Arrivals: which sequence numbers of a device have arrived, so that each message counts once.

Kept as runs of numbers for each boot: a device that loses nothing has one row, however long it
runs. Windows and events share the numbers of one outbox.
"""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

import msgspec
from sqlalchemy import Connection, func, select

from shoal.controller.host.windows import WindowKey
from shoal.controller.store.window_tables import received

#: The run that a number lies in or behind, and the one that begins right after it.
_AROUND = """
WITH sent (device, boot, seq) AS (
    SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]'), json_extract(value, '$[2]')
    FROM json_each(?)
)
SELECT r.device, r.boot, r."first", r."last", r.windows, r.rows, r.first_at, r.last_at
FROM sent JOIN received AS r ON r.device = sent.device AND r.boot = sent.boot AND r."first" = (
    SELECT max(b."first") FROM received AS b
    WHERE b.device = sent.device AND b.boot = sent.boot AND b."first" <= sent.seq)
UNION
SELECT r.device, r.boot, r."first", r."last", r.windows, r.rows, r.first_at, r.last_at
FROM sent JOIN received AS r
ON r.device = sent.device AND r.boot = sent.boot AND r."first" = sent.seq + 1
"""
_DELETE = 'DELETE FROM received WHERE device = ? AND boot = ? AND "first" = ?'
_KEEP = """
INSERT INTO received (device, boot, "first", "last", windows, rows, first_at, last_at)
VALUES (?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (device, boot, "first") DO UPDATE SET "last" = excluded."last",
    windows = excluded.windows, rows = excluded.rows,
    first_at = excluded.first_at, last_at = excluded.last_at
"""


class Run(NamedTuple):
    """Numbers first to last of one boot; windows (as the device made them) and rows among them."""

    first: int
    last: int
    windows: int
    rows: int
    first_at: float
    last_at: float


class Arrivals:
    """The arrivals around some keys, in the write transaction that stores what is new."""

    def __init__(self, db: Connection, keys: Iterable[WindowKey]) -> None:
        self._db = db
        self._runs: dict[tuple[str, str], list[Run]] = defaultdict(list)
        self._changed: set[WindowKey] = set()
        text = msgspec.json.encode(list(keys)).decode()
        for device, boot, *run in db.exec_driver_sql(_AROUND, (text,)).all():
            self._runs[device, boot].append(Run(*run))
        for runs in self._runs.values():
            runs.sort()

    def add(self, key: WindowKey, at: float, *, windows: int = 0, rows: int = 0) -> bool:
        """Note an arrival of a key that was given; False if it had arrived before."""
        device, boot, seq = key
        runs = self._runs[device, boot]
        i = bisect_right(runs, seq, key=lambda run: run.first)
        before = runs[i - 1] if i else None
        if before is not None and seq <= before.last:
            return False
        found = [Run(seq, seq, windows, rows, at, at)]
        start, end = i, i
        if before is not None and before.last == seq - 1:
            found, start = [before, *found], i - 1
        if i < len(runs) and runs[i].first == seq + 1:
            found, end = [*found, runs[i]], i + 1
        self._changed |= {(device, boot, run.first) for run in found}
        runs[start:end] = [_joined(found)]
        return True

    def save(self) -> None:
        """Store what was noted."""
        now = {
            (device, boot, run.first): run
            for (device, boot) in {key[:2] for key in self._changed}
            for run in self._runs[device, boot]
        }
        gone = [key for key in self._changed if key not in now]
        kept = [(*key[:2], *now[key]) for key in sorted(self._changed) if key in now]
        if gone:
            self._db.exec_driver_sql(_DELETE, gone)
        if kept:
            self._db.exec_driver_sql(_KEEP, kept)


def runs_of(db: Connection, device: str) -> list[tuple[str, Run]]:
    """Boot and run of everything that has arrived from a device, the runs of a boot in order."""
    columns = (received.c.boot, *(received.c[name] for name in Run._fields))
    query = select(*columns).where(received.c.device == device)
    return [(boot, Run(*run)) for boot, *run in db.execute(query.order_by(*columns[:2]))]


def acked_of(db: Connection, device: str, most: int) -> dict[str, list[int]]:
    """Boot -> sequence numbers that have arrived, ascending: the newest `most` of them."""
    query = select(received).where(received.c.device == device).order_by(received.c.last_at.desc())
    found: dict[str, list[int]] = defaultdict(list)
    for row in db.execute(query):
        numbers = range(max(row.first, row.last - most + 1), row.last + 1)
        found[row.boot] += numbers
        most -= len(numbers)
        if most <= 0:
            break
    return {boot: sorted(numbers) for boot, numbers in found.items()}


def count_of(db: Connection, device: str) -> int:
    """Number of messages that have arrived from a device."""
    numbers = func.sum(received.c.last - received.c.first + 1)
    return db.scalar(select(numbers).where(received.c.device == device)) or 0


def _joined(runs: list[Run]) -> Run:
    return Run(
        runs[0].first,
        runs[-1].last,
        sum(run.windows for run in runs),
        sum(run.rows for run in runs),
        min(run.first_at for run in runs),
        max(run.last_at for run in runs),
    )
