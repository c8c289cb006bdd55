"""Sums of windows by hour and day, so that a page reads as many rows as it shows.

A window is added to the sums of its device, of the device's site and profile, and of the fleet, in
the transaction that stores it: exactly once. It counts in the hour and day (UTC) in which it began,
so a window of a week that a device merged while it was offline counts in its first.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
from sqlalchemy import Connection, Row, func, select, tuple_

from shoal.controller.host.context import Context
from shoal.controller.host.windows import NewWindow
from shoal.controller.store.window_tables import window_subject, window_sum
from shoal.sketch import Latency

HOUR, DAY = 3_600, 86_400
#: Subject of the scope "fleet".
FLEET = "fleet"


def _quoted(names: Sequence[str], prefix: str = "") -> str:
    return ", ".join(f'{prefix}"{name}"' for name in names)


_COUNTS = ("windows", "rows", "errors", "slow", "labelled", "correct")
_KEY = tuple(column.name for column in window_sum.primary_key)
_ALL = tuple(column.name for column in window_sum.columns)
_GIVEN = ", ".join(f"json_extract(value, '$[{i}]')" for i in range(len(_KEY)))
_SAME = " AND ".join(f's."{name}" = k."{name}"' for name in _KEY)
_FIND = (
    f"WITH k ({_quoted(_KEY)}) AS (SELECT {_GIVEN} FROM json_each(?)) "  # noqa: S608
    f"SELECT {_quoted(_ALL, 's.')} FROM k JOIN window_sum AS s ON {_SAME}"
)
_REPLACE = (
    f"INSERT OR REPLACE INTO window_sum ({_quoted(_ALL)}) "  # noqa: S608 - names of columns
    f"VALUES ({', '.join('?' * len(_ALL))})"
)
_SUBJECTS = """
WITH k (model, scope, subject) AS (
    SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]'), json_extract(value, '$[2]')
    FROM json_each(?)
)
SELECT s.model, s.scope, s.subject, s."release", s.start_at FROM k
JOIN window_subject AS s ON s.model = k.model AND s.scope = k.scope AND s.subject = k.subject
"""
_REPLACE_SUBJECT = """
INSERT OR REPLACE INTO window_subject (model, scope, subject, "release", start_at)
VALUES (?, ?, ?, ?, ?)
"""
_OF_DEVICES = """
WITH s (subject) AS (SELECT value FROM json_each(?)), h (at) AS (SELECT value FROM json_each(?))
SELECT w.subject, w.at, w."release", w.rows, w.errors, w.labelled, w.correct, w.latency
FROM s CROSS JOIN h JOIN window_sum AS w ON w.model = ? AND w.span = 3600
AND w.scope = 'device' AND w.at = h.at AND w.subject = s.subject
"""
I64 = npt.NDArray[np.int64]
F64 = npt.NDArray[np.float64]
Key = tuple[str, int, str, int, str, str]


class _Table(NamedTuple):
    """Sums of g groups: counts (g, 6) by _COUNTS, since and until (g,), latency (g, BINS)."""

    counts: I64
    since: F64
    until: F64
    latency: I64


def add(db: Connection, windows: Sequence[NewWindow], profiles: Mapping[str, str]) -> None:
    """Add new windows to the sums, in the transaction that stores them. profiles: of devices."""
    if not windows:
        return
    table = _table(windows)
    keys = [_keys(one, profiles.get(one.device, "")) for one in windows]
    rows = [i for i, some in enumerate(keys) for _ in some]
    number: dict[Key, int] = {}
    groups = [number.setdefault(key, len(number)) for some in keys for key in some]
    found = _grouped(table, np.array(rows), np.array(groups), len(number))
    text = msgspec.json.encode(list(number)).decode()
    _add_stored(found, number, db.exec_driver_sql(_FIND, (text,)).all())
    encode = msgspec.json.encode
    db.exec_driver_sql(
        _REPLACE,
        [
            (*key, *counts, since, until, encode(latency[:bins]).decode())
            for key, counts, since, until, latency, bins in zip(
                number,
                found.counts.tolist(),
                found.since.tolist(),
                found.until.tolist(),
                found.latency.tolist(),
                _bins(found.latency),
                strict=True,
            )
        ],
    )
    _note_subjects(db, windows)


def _add_stored(found: _Table, number: Mapping[Key, int], stored: Sequence[Any]) -> None:
    """Add rows of window_sum to the sums of their groups."""
    if not stored:
        return
    of_key, ends = len(_KEY), len(_KEY) + len(_COUNTS)
    groups = np.array([number[tuple(row[:of_key])] for row in stored])
    found.counts[groups] += np.array([row[of_key:ends] for row in stored], np.int64)
    since, until = np.array([row[ends : ends + 2] for row in stored]).T
    found.since[groups] = np.minimum(found.since[groups], since)
    found.until[groups] = np.maximum(found.until[groups], until)
    found.latency[groups] += _latencies([msgspec.json.decode(row[-1]) for row in stored])


def of(
    db: Connection,
    model: str,
    scope: str,
    *,
    span: int,
    since: float,
    until: float,
    subject: str = "",
    release: str = "",
) -> list[Row[Any]]:
    """Rows of window_sum in order of time: buckets that hold a moment from `since` to `until`.

    One subject's buckets are looked up one by one, all subjects' are read in a piece.
    """
    c = window_sum.c
    wanted = [c.model == model, c.span == span, c.scope == scope]
    wanted += [c.release == release] if release else []
    first, last = _bounds(db, model, scope, span, since, until)
    if subject:
        buckets = range(first, last + 1, span)
        wanted += [c.subject == subject, c.at.in_(list(buckets))]
    else:
        wanted += [c.at >= first, c.at <= last]
    return list(db.execute(select(window_sum).where(*wanted).order_by(c.at, c.subject)))


class DeviceHour(NamedTuple):
    """Sums of one device, hour and release. latency: counts of shoal.sketch.Latency."""

    device: str
    at: int
    release: str
    rows: int
    errors: int
    labelled: int
    correct: int
    latency: list[int]


def of_devices(
    db: Connection, model: str, devices: Sequence[str], hours: Sequence[int]
) -> Iterator[DeviceHour]:
    """Sums of some devices in some hours (their begins), each looked up by its key."""
    encode = msgspec.json.encode
    given = (encode(list(devices)).decode(), encode(list(hours)).decode(), model)
    for row in db.exec_driver_sql(_OF_DEVICES, given):
        yield DeviceHour._make([*row[:-1], msgspec.json.decode(row[-1], type=list[int])])


class SumMap(NamedTuple):
    """Two sums of every subject over time.

    at       int64 (T,): begin of each bucket, Unix seconds; subjects: S names
    above, below   int64 (S, T): sums of two columns, 0 where a subject sent nothing
    """

    at: I64
    subjects: list[str]
    above: I64
    below: I64


def map_of(
    db: Connection,
    model: str,
    scope: str,
    columns: tuple[str, str],
    *,
    span: int,
    since: float,
    until: float,
    release: str = "",
) -> SumMap:
    """Sums of two columns for every subject of a scope: one row of the result a bucket.

    SQLite makes the lists, so 10 000 subjects over 30 days are 30 rows and not 300 000.
    """
    c = window_sum.c
    first, last = _bounds(db, model, scope, span, since, until)
    wanted = [c.model == model, c.span == span, c.scope == scope, c.at >= first, c.at <= last]
    wanted += [c.release == release] if release else []
    lists = [func.json_group_array(c[name]) for name in ("subject", *columns)]
    rows = db.execute(select(c.at, *lists).where(*wanted).group_by(c.at).order_by(c.at)).all()
    number: dict[str, int] = {}
    indexes = [
        [number.setdefault(one, len(number)) for one in msgspec.json.decode(row[1], type=list[str])]
        for row in rows
    ]
    names = sorted(number)
    place = np.zeros(len(number), np.int64)
    place[[number[name] for name in names]] = np.arange(len(names))
    sums = np.zeros((2, len(names), len(rows)), np.int64)
    for i, (row, index) in enumerate(zip(rows, indexes, strict=True)):
        for table, numbers in zip(sums, row[2:], strict=True):
            values = np.array(msgspec.json.decode(numbers, type=list[int]), np.int64)
            np.add.at(table[:, i], place[index], values)
    return SumMap(np.array([row.at for row in rows], np.int64), names, sums[0], sums[1])


def pieces(ctx: Context, span: int, size: int) -> Iterator[list[Row[Any]]]:
    """All sums of a span, `size` at a time, each piece in a transaction of its own."""
    key = tuple(window_sum.c[name] for name in _KEY)
    query = select(window_sum).where(window_sum.c.span == span).order_by(*key).limit(size)
    rows: list[Row[Any]] = []
    while not rows or len(rows) == size:
        after = [tuple_(*key) > tuple_(*(getattr(rows[-1], one) for one in _KEY))] if rows else []
        with ctx.store.read() as db:
            rows = list(db.execute(query.where(*after)))
        if not rows:
            return
        yield rows


def subjects(db: Connection, model: str, scope: str) -> list[str]:
    """Subjects of a scope that have sent windows of a model, in order of their names."""
    c = window_subject.c
    query = select(c.subject).where(c.model == model, c.scope == scope)
    return list(db.scalars(query.order_by(c.subject)))


def newest_release(db: Connection, model: str, scope: str, subject: str) -> str:
    """Release of a subject's newest window of a model; "" if it has sent none."""
    c = window_subject.c
    query = select(c.release).where(c.model == model, c.scope == scope, c.subject == subject)
    return db.scalar(query) or ""


def _bounds(
    db: Connection, model: str, scope: str, span: int, since: float, until: float
) -> tuple[int, int]:
    """The first and the last bucket of a span of time, of those that there are."""
    c = window_sum.c
    mine = (c.model == model, c.span == span, c.scope == scope)
    first = db.scalar(select(c.at).where(*mine).order_by(c.at).limit(1))
    last = db.scalar(select(c.at).where(*mine).order_by(c.at.desc()).limit(1))
    if first is None or last is None:
        return 0, -1
    if math.isfinite(since):
        first = max(first, math.floor(since / span) * span)
    if math.isfinite(until):
        last = min(last, (math.ceil(until / span) - 1) * span)
    return first, last


def _keys(window: NewWindow, profile: str) -> list[Key]:
    """Keys of the sums that a window counts in."""
    scopes = [("device", window.device), ("fleet", FLEET)]
    scopes += [("site", window.site)] if window.site else []
    scopes += [("profile", profile)] if profile else []
    return [
        (window.model, span, scope, int(window.start_at // span) * span, subject, window.release)
        for span in (HOUR, DAY)
        for scope, subject in scopes
    ]


def _table(windows: Sequence[NewWindow]) -> _Table:
    fields = _COUNTS[1:]
    counts = [[one.merged, *(getattr(one, name) for name in fields)] for one in windows]
    return _Table(
        np.array(counts, np.int64),
        np.array([one.start_at for one in windows]),
        np.array([one.start_at + one.window_s for one in windows]),
        _latencies([one.latency for one in windows]),
    )


def _latencies(given: Sequence[Sequence[int]]) -> I64:
    table = np.zeros((len(given), Latency.BINS), np.int64)
    for row, counts in zip(table, given, strict=True):
        row[: len(counts)] = counts
    return table


def _grouped(table: _Table, rows: I64, groups: I64, number: int) -> _Table:
    """Sums of the table's `rows` by their `groups`, both (n,)."""
    found = _Table(
        np.zeros((number, len(_COUNTS)), np.int64),
        np.full(number, np.inf),
        np.full(number, -np.inf),
        np.zeros((number, Latency.BINS), np.int64),
    )
    np.add.at(found.counts, groups, table.counts[rows])
    np.add.at(found.latency, groups, table.latency[rows])
    np.minimum.at(found.since, groups, table.since[rows])
    np.maximum.at(found.until, groups, table.until[rows])
    return found


def _bins(latency: I64) -> list[int]:
    """Bins up to the last one that is not 0, of each row (n, BINS)."""
    at = np.arange(1, latency.shape[1] + 1)
    bins: list[int] = np.where(latency > 0, at, 0).max(1, initial=0).tolist()
    return bins


def _note_subjects(db: Connection, windows: Sequence[NewWindow]) -> None:
    """Note new subjects, and releases that a subject serves from now on.

    start_at is brought up to date by the hour: a row is not written with every window.
    """
    newest: dict[tuple[Any, ...], tuple[str, float]] = {}
    for one in sorted(windows, key=lambda one: one.start_at):
        for scope, subject in (("device", one.device), ("site", one.site)):
            newest[one.model, scope, subject] = one.release, one.start_at
    text = msgspec.json.encode(list(newest)).decode()
    for *key, release, start_at in db.exec_driver_sql(_SUBJECTS, (text,)).all():
        told, at = newest[tuple(key)]
        if at < start_at or (told == release and at < start_at + HOUR):
            del newest[tuple(key)]
    rows = [(*key, release, at) for key, (release, at) in newest.items() if key[2]]
    if rows:
        db.exec_driver_sql(_REPLACE_SUBJECT, rows)
