"""Ledger of a device's outbox: which sequence numbers arrived, and whether any is missing."""

import math
from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from sqlalchemy import select

from shoal.controller.fleet.records import Ledger
from shoal.controller.host.context import Context
from shoal.controller.store import arrivals
from shoal.controller.store.arrivals import Run
from shoal.controller.store.tables import device
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
        runs: dict[str, list[Run]] = defaultdict(list)
        for boot, run in arrivals.runs_of(db, name):
            runs[boot].append(run)
    if since < ctx.clock() - ctx.settings.fleet.retention_days * 86_400:
        since = math.inf  # retention may have deleted some
    rows = [_ledger(name, boot, found, since) for boot, found in runs.items()]
    return sorted(rows, key=lambda one: one.last_at, reverse=True)


def numbers_of(runs: Sequence[Run]) -> Numbers:
    """Numbers of one boot, of its runs in order.

    >>> numbers_of([Run(3, 4, 0, 0, 0.0, 0.0), Run(7, 7, 0, 0, 0.0, 0.0)])
    Numbers(received=3, lowest=3, highest=7, between=2, jumps=0)
    """
    gaps = [after.first - before.last - 1 for before, after in pairwise(runs)]
    return Numbers(
        received=sum(run.last - run.first + 1 for run in runs),
        lowest=runs[0].first,
        highest=runs[-1].last,
        between=sum(gap for gap in gaps if gap <= WIDEST_GAP),
        jumps=sum(gap > WIDEST_GAP for gap in gaps),
    )


def _ledger(name: str, boot: str, runs: Sequence[Run], since: float) -> Ledger:
    """since: nothing of a boot that arrived from then on has passed its retention."""
    numbers, first_at = numbers_of(runs), min(run.first_at for run in runs)
    lacking, jumps = missing(numbers, whole=first_at >= since)
    return Ledger(
        device=name,
        boot=boot,
        received=numbers.received,
        highest=numbers.highest,
        missing=lacking,
        jumps=jumps,
        windows=sum(run.windows for run in runs),
        rows=sum(run.rows for run in runs),
        first_at=first_at,
        last_at=max(run.last_at for run in runs),
    )
