"""Performance of a model in production, and health of the fleet."""

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
from sqlalchemy import Connection, Text, cast, func, select

from shoal.controller.host.context import Context
from shoal.controller.monitoring.records import FleetHealth, Performance, PerformanceMap
from shoal.controller.store import window_sums
from shoal.controller.store.rollout_tables import rollout
from shoal.controller.store.tables import alert, device
from shoal.errors import InputError
from shoal.sketch import Latency

#: Hours that are read one by one; a longer time is read by days.
HOURS = 96
#: Columns of a map, at most.
MOST_BUCKETS = 400
#: Measures of a map: what is counted, and of what, or where there is any.
MEASURES = {
    "rows": ("rows", "windows"),
    "windows": ("windows", "windows"),
    "errors": ("errors", "rows"),
    "slow": ("slow", "rows"),
    "accuracy": ("correct", "labelled"),
}


def performance(
    ctx: Context,
    *,
    model: str,
    site: str = "",
    device: str = "",
    release: str = "",
    since: float = 0,
    until: float = math.inf,
) -> list[Performance]:
    """Accuracy (labels are joined on the device), errors and latency of one device, of one site,
    or of each site when neither is given; windows that began in the hours from `since` to `until`,
    in its days (UTC) when they are more than HOURS.

    since, until of the answer: from the first window's start to the last one's end
    """
    scope, subject = ("device", device) if device else ("site", site)
    whole = until - since > HOURS * window_sums.HOUR
    with ctx.store.read() as db:
        rows = window_sums.of(
            db, model, scope, span=window_sums.DAY if whole else window_sums.HOUR,
            since=since, until=until, subject=subject, release=release,
        )  # fmt: skip
    subjects: dict[str, list[Any]] = defaultdict(list)
    for row in rows:
        subjects[row.subject].append(row)
    return [_performance(subjects[one], model, scope, one, release) for one in sorted(subjects)]


def performance_map(
    ctx: Context,
    *,
    model: str,
    measure: str,
    scope: str = "device",
    release: str = "",
    since: float = 0,
    until: float = math.inf,
) -> PerformanceMap:
    """A measure of every subject of a scope, by hours, or by days beyond HOURS.

    measure   of MEASURES: rows and windows as they are; errors and slow as a share of the rows;
              accuracy as the share of labelled rows that are correct

    Raises InputError for more than MOST_BUCKETS.
    """
    span = window_sums.DAY if until - since > HOURS * window_sums.HOUR else window_sums.HOUR
    with ctx.store.read() as db:
        found = window_sums.map_of(
            db, model, scope, MEASURES[measure], span=span, since=since, until=until,
            release=release,
        )  # fmt: skip
    if len(found.at) > MOST_BUCKETS:
        raise InputError(
            f"{len(found.at)} days at once, {MOST_BUCKETS} are possible", "set since and until"
        )
    above, below = found.above.astype(np.float64), found.below
    is_share = measure not in ("rows", "windows")
    shown = (above / np.maximum(below, 1)).round(6) if is_share else above
    cells = shown.astype(object)
    cells[below == 0] = None
    values: list[list[float | None]] = cells.tolist()
    return PerformanceMap(
        model=model, scope=scope, measure=measure, span_s=span, at=found.at.tolist(),
        subjects=found.subjects, values=values,
    )  # fmt: skip


def fleet_health(ctx: Context) -> FleetHealth:
    """Counts of devices, alerts, rollouts and rows per second, for the console's top strip."""
    now, fleet = ctx.clock(), ctx.settings.fleet
    span = max(3 * fleet.window_s, 15.0)
    enrolled = device.c.state == "enrolled"
    connected = device.c.online & (device.c.seen_at > now - fleet.offline_s)
    with ctx.store.read() as db:
        devices = db.scalar(select(func.count()).where(enrolled)) or 0
        online = db.scalar(select(func.count()).where(enrolled, connected)) or 0
        failing = db.scalar(select(func.count()).where(enrolled, device.c.error != "")) or 0
        alerts = db.scalar(select(func.count()).where(alert.c.state == "open")) or 0
        running = rollout.c.state.in_(("RUNNING", "STOPPING", "ROLLING_BACK"))
        rollouts = db.scalar(select(func.count()).where(running)) or 0
        releases = _serving(db)
    windows, rows = ctx.store.windows.count(now - span)
    return FleetHealth(
        devices=devices,
        online=online,
        failing=failing,
        alerts=alerts,
        rows_per_s=rows / span,
        windows_per_min=60 * windows / span,
        running_rollouts=rollouts,
        releases=releases,
    )


def _performance(
    sums: Sequence[Any], model: str, scope: str, subject: str, release: str
) -> Performance:
    latency = Latency()
    for one in sums:
        latency.merge(one.latency)
    filled = any(latency.counts)
    rows, labelled, correct, errors = (
        sum(getattr(one, name) for one in sums)
        for name in ("rows", "labelled", "correct", "errors")
    )
    return Performance(
        model=model,
        scope=scope,
        subject=subject,
        release=release,
        since=min(one.since for one in sums),
        until=max(one.until for one in sums),
        rows=rows,
        labelled=labelled,
        correct=correct,
        errors=errors,
        accuracy=correct / labelled if labelled else None,
        p50_us=latency.quantile_us(0.5) if filled else None,
        p99_us=latency.quantile_us(0.99) if filled else None,
    )


def _serving(db: Connection) -> dict[str, int]:
    """Release -> number of devices; grouped by the JSON text, so a large fleet is a few rows."""
    text = cast(device.c.releases, Text)
    query = select(text, func.count()).where(device.c.state == "enrolled").group_by(text)
    serving: Counter[str] = Counter()
    for releases, number in db.execute(query):
        for release in msgspec.json.decode(releases, type=dict[str, str]).values():
            serving[release] += number
    return dict(sorted(serving.items()))
