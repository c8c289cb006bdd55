"""Ledger of a device's outbox: which sequence numbers arrived, and whether any is missing."""

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

from sqlalchemy import Connection, case, func, select, union

from shoal.controller.fleet.records import Ledger
from shoal.controller.host.context import Context
from shoal.controller.store.tables import device, device_event, window
from shoal.errors import AbsentError

#: No outbox leaves out more numbers than this in one place.
WIDEST_GAP = 100_000


class Numbers(NamedTuple):
    """Sequence numbers of one boot. between: missing in gaps up to WIDEST_GAP."""

    received: int
    lowest: int
    highest: int
    between: int
    jumps: int


def missing(numbers: Numbers, *, whole: bool) -> tuple[int, int]:
    """Count missing numbers and jumps. whole: nothing of the boot has passed its retention.

    >>> missing(Numbers(received=3, lowest=3, highest=7, between=2, jumps=0), whole=True)
    (4, 0)
    >>> missing(Numbers(received=3, lowest=3, highest=7, between=2, jumps=0), whole=False)
    (2, 0)
    >>> missing(Numbers(received=1, lowest=2**53, highest=2**53, between=0, jumps=0), whole=True)
    (0, 1)
    """
    below = numbers.lowest - 1 if whole else 0
    if below > WIDEST_GAP:
        return numbers.between, numbers.jumps + 1
    return numbers.between + below, numbers.jumps


def ledgers(ctx: Context, name: str) -> list[Ledger]:
    """One ledger for each boot of a device, newest first; AbsentError."""
    with ctx.store.read() as db:
        since = db.scalar(select(device.c.enrolled_at).where(device.c.name == name))
        if since is None:
            raise AbsentError("device", name, "list them: shoal device list")
        parts = [_arrived(db, table, name) for table in (window, device_event)]
        numbers = _numbers(db, name)
    if since < ctx.clock() - ctx.settings.fleet.retention_days * 86_400:
        since = math.inf  # retention may have deleted some
    rows = [
        _ledger(name, boot, [p[boot] for p in parts if boot in p], found, since)
        for boot, found in numbers.items()
    ]
    return sorted(rows, key=lambda one: one.last_at, reverse=True)


class _Arrived(NamedTuple):
    first: float
    last: float
    windows: int
    rows: int


def _arrived(db: Connection, table: Any, name: str) -> dict[str, _Arrived]:
    is_window = table is window
    query = (
        select(
            table.c.boot,
            func.min(table.c.received_at).label("first"),
            func.max(table.c.received_at).label("last"),
            *((func.sum(table.c.merged), func.sum(table.c.rows)) if is_window else ()),
        )
        .where(table.c.device == name)
        .group_by(table.c.boot)
    )
    return {row[0]: _Arrived(*row[1:], *(() if is_window else (0, 0))) for row in db.execute(query)}


def _numbers(db: Connection, name: str) -> dict[str, Numbers]:
    """Boot -> its sequence numbers, of windows and events together."""
    both = union(
        *(select(t.c.boot, t.c.seq).where(t.c.device == name) for t in (window, device_event))
    ).subquery()
    before = func.lag(both.c.seq).over(partition_by=both.c.boot, order_by=both.c.seq)
    gaps = select(both.c.boot, both.c.seq, (both.c.seq - before - 1).label("gap")).subquery()
    narrow = gaps.c.gap <= WIDEST_GAP
    query = select(
        gaps.c.boot,
        func.count(),
        func.min(gaps.c.seq),
        func.max(gaps.c.seq),
        func.coalesce(func.sum(case((narrow, gaps.c.gap), else_=0)), 0),
        func.coalesce(func.sum(case((gaps.c.gap > WIDEST_GAP, 1), else_=0)), 0),
    ).group_by(gaps.c.boot)
    return {boot: Numbers(*map(int, rest)) for boot, *rest in db.execute(query)}


def _ledger(
    name: str, boot: str, parts: Iterable[_Arrived], numbers: Numbers, since: float
) -> Ledger:
    """since: nothing of a boot that arrived from then on has passed its retention."""
    every = list(parts)
    lacking, jumps = missing(numbers, whole=min(p.first for p in every) >= since)
    return Ledger(
        device=name,
        boot=boot,
        received=numbers.received,
        highest=numbers.highest,
        missing=lacking,
        jumps=jumps,
        windows=sum(p.windows for p in every),
        rows=sum(p.rows for p in every),
        first_at=min(p.first for p in every),
        last_at=max(p.last for p in every),
    )
