"""Performance of a model in production, and health of the fleet."""

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import msgspec
from sqlalchemy import Connection, Text, cast, func, select

from shoal.controller.host.context import Context
from shoal.controller.monitoring.records import FleetHealth, Performance
from shoal.controller.store.rollout_tables import rollout
from shoal.controller.store.tables import alert, device, window
from shoal.sketch import Latency

#: Windows that latency quantiles are computed from, at most.
NEWEST = 5_000


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
    or of each site when neither is given; windows with `since` <= start < `until`.
    """
    given = {"model": model, "site": site, "device": device, "release": release}
    wanted = [window.c[name] == value for name, value in given.items() if value]
    wanted += [window.c.start_at >= since]
    wanted += [window.c.start_at < until] if math.isfinite(until) else []
    scope = "device" if device else "site"
    group = window.c.device if device else window.c.site
    names = ("rows", "labelled", "correct", "errors")
    sums = select(
        group.label("subject"),
        *(func.sum(window.c[name]).label(name) for name in names),
        func.min(window.c.start_at).label("since"),
        func.max(window.c.start_at + window.c.window_s).label("until"),
    ).where(*wanted)
    with ctx.store.read() as db:
        rows = db.execute(sums.group_by(group).order_by(group)).all()
        latency = _latency(db, group, wanted)
    return [_performance(row, latency[row.subject], model, scope, release) for row in rows]


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
        rows, windows = db.execute(
            select(func.sum(window.c.rows), func.count()).where(window.c.received_at > now - span)
        ).one()
        releases = _serving(db)
    return FleetHealth(
        devices=devices,
        online=online,
        failing=failing,
        alerts=alerts,
        rows_per_s=(rows or 0) / span,
        windows_per_min=60 * windows / span,
        running_rollouts=rollouts,
        releases=releases,
    )


def _latency(db: Connection, group: Any, wanted: Sequence[Any]) -> dict[str, Latency]:
    query = select(group.label("subject"), window.c.latency).where(*wanted)
    merged: dict[str, Latency] = defaultdict(Latency)
    for row in db.execute(query.order_by(window.c.start_at.desc()).limit(NEWEST)):
        merged[row.subject].merge(row.latency)
    return merged


def _performance(row: Any, latency: Latency, model: str, scope: str, release: str) -> Performance:
    filled = any(latency.counts)
    return Performance.of_row(
        row,
        model=model,
        scope=scope,
        release=release,
        accuracy=row.correct / row.labelled if row.labelled else None,
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
