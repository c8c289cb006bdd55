"""What monitoring has found, for people: heatmap, histograms, performance, health, ledgers."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np
from sqlalchemy import Connection, Row, Text, case, cast, func, select, union

from shoal.controller.fleet.ledger import WIDEST, Ledger, Numbers, missing
from shoal.controller.host.context import Context
from shoal.controller.monitoring import drift, window_validation
from shoal.controller.monitoring import histograms as tables_of
from shoal.controller.monitoring.drift import Baseline
from shoal.controller.monitoring.drift_monitor import usable
from shoal.controller.monitoring.drift_records import DriftCell, DriftMap, Histograms
from shoal.controller.store.records import Finding, FleetHealth, Performance
from shoal.controller.store.tables import (
    alert,
    baseline,
    device,
    device_event,
    drift_point,
    finding,
    rollout,
    window,
)
from shoal.errors import AbsentError
from shoal.sketch import Latency

#: Windows that the current histogram is made of, and that latency quantiles are read from.
CURRENT, NEWEST = 4, 5_000
#: Columns of a heatmap; older ones are merged by worst.
COLUMNS = 400


def drift_subjects(ctx: Context, model: str) -> list[tuple[str, str]]:
    """(scope, subject) that sent windows of `model`: sites first."""
    query = select(window.c.site, window.c.device).where(window.c.model == model).distinct()
    with ctx.store.read() as db:
        rows = db.execute(query).all()
    sites = sorted({row.site for row in rows if row.site})
    return [("site", s) for s in sites] + [("device", d) for d in sorted({r.device for r in rows})]


def drift_map(ctx: Context, model: str, scope: str, subject: str, since: float = 0) -> DriftMap:
    """Feature x time of one subject since `since`; AbsentError if it sent no window of the model.

    At most COLUMNS columns: of more, neighbours are merged and the worst of them shown.
    """
    with ctx.store.read() as db:
        release = _release_of(db, model, scope, subject)
        names = tables_of.names_of(window_validation.references_of(db, release))
        kept = _baseline(db, model, scope, subject, release)
        seen = kept.windows if kept else _gathered(ctx, db, model, scope, subject, release)
        points = db.execute(
            select(drift_point)
            .where(
                drift_point.c.scope == scope,
                drift_point.c.subject == subject,
                drift_point.c.model == model,
                drift_point.c.at >= since,
            )
            .order_by(drift_point.c.at)
        ).all()
    needed = max(3, ctx.settings.drift.baseline_windows)
    return DriftMap(
        model=model,
        scope=scope,
        subject=subject,
        release=release,
        ready=kept is not None,
        baseline_windows=min(seen, needed),
        baseline_needed=needed,
        features=names,
        cells=_cells([p for p in points if len(p.alarmed) == len(names)], names),
    )


def histograms(ctx: Context, model: str, scope: str, subject: str, feature: str) -> Histograms:
    """Shares per bin in training, baseline and the newest windows; AbsentError for no such feature.

    The last share is that of missing values, after the bins that `edges` make.
    """
    with ctx.store.read() as db:
        release = _release_of(db, model, scope, subject)
        references = window_validation.references_of(db, release)
        names = tables_of.names_of(references)
        if feature not in names:
            raise AbsentError("feature", feature, f"{release} has: {', '.join(names[:20])}")
        i = names.index(feature)
        kept = _baseline(db, model, scope, subject, release)
        rows = _newest(db, ctx, model, scope, subject, release)
    counts = [tables_of.counts_of(references, r.inputs, r.outputs) for r in rows]
    now = np.asarray(sum(counts)) if counts else tables_of.training_of(references) * 0
    base = Baseline.from_bytes(kept.state) if kept else None
    past = base.counts.sum(0) if base else now * 0
    training = tables_of.training_of(references)
    edges = tables_of.edges_of(references, i)
    a, b, c = (_shares(table[i], len(edges)) for table in (training, past, now))
    return Histograms(
        model=model,
        subject=subject,
        feature=feature,
        edges=edges,
        training=a,
        baseline=b,
        current=c,
        rows=int(now[i].sum()),
        psi=_psi(base, now, training, i),
        hellinger=float(np.sqrt(np.square(np.sqrt(b) - np.sqrt(c)).sum() / 2)) if base else 0.0,
    )


def list_findings(
    ctx: Context,
    *,
    model: str = "",
    scope: str = "",
    subject: str = "",
    since: float = 0,
    limit: int = 200,
) -> list[Finding]:
    """Findings, newest first."""
    given = {"model": model, "scope": scope, "subject": subject}
    wanted = [finding.c[name] == value for name, value in given.items() if value]
    query = select(finding).where(finding.c.at >= since, *wanted)
    with ctx.store.read() as db:
        rows = db.execute(query.order_by(finding.c.at.desc(), finding.c.id.desc()).limit(limit))
        return [Finding(**row._mapping) for row in rows]


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
    """Accuracy from labels joined on the device, errors and latency: of one device, of one site,
    or of each site when neither is named. Windows that began from `since` on and before `until`.
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
        func.min(window.c.start_at).label("first"),
        func.max(window.c.start_at + window.c.window_s).label("last"),
    ).where(*wanted)
    with ctx.store.read() as db:
        rows = db.execute(sums.group_by(group).order_by(group)).all()
        latency = _latency(db, group, wanted)
    return [_performance(row, latency[row.subject], model, scope, release) for row in rows]


def fleet_health(ctx: Context) -> FleetHealth:
    """The strip on top of the console."""
    now, fleet = ctx.clock(), ctx.settings.fleet
    span = max(3 * fleet.window_s, 15.0)
    mine = device.c.state == "enrolled"
    heard = device.c.online & (device.c.seen_at > now - fleet.offline_s)
    with ctx.store.read() as db:
        everyone = db.scalar(select(func.count()).where(mine)) or 0
        online = db.scalar(select(func.count()).where(mine, heard)) or 0
        failing = db.scalar(select(func.count()).where(mine, device.c.error != "")) or 0
        alerts = db.scalar(select(func.count()).where(alert.c.state == "open")) or 0
        moving = rollout.c.state.in_(("RUNNING", "STOPPING", "ROLLING_BACK"))
        rollouts = db.scalar(select(func.count()).where(moving)) or 0
        rows, windows = db.execute(
            select(func.sum(window.c.rows), func.count()).where(window.c.received_at > now - span)
        ).one()
        releases = _serving(db)
    return FleetHealth(
        devices=everyone,
        online=online,
        failing=failing,
        alerts=alerts,
        rows_per_s=(rows or 0) / span,
        windows_per_min=60 * windows / span,
        running_rollouts=rollouts,
        releases=releases,
    )


def ledger(ctx: Context, name: str) -> list[Ledger]:
    """What arrived of each of a device's outboxes, the newest first; AbsentError."""
    with ctx.store.read() as db:
        since = db.scalar(select(device.c.enrolled_at).where(device.c.name == name))
        if since is None:
            raise AbsentError("device", name, "shoal device list says which there are")
        parts = [_arrived(db, table, name) for table in (window, device_event)]
        numbers = _numbers(db, name)
    if since < ctx.clock() - ctx.settings.fleet.retention_days * 86_400:
        since = math.inf  # some may have been dropped for its age
    rows = [
        _ledger(name, boot, [p[boot] for p in parts if boot in p], found, since)
        for boot, found in numbers.items()
    ]
    return sorted(rows, key=lambda one: one.last_at, reverse=True)


# --- drift ----------------------------------------------------------------------------------------


def _whose(scope: str, subject: str) -> Any:
    return (window.c.site if scope == "site" else window.c.device) == subject


def _release_of(db: Connection, model: str, scope: str, subject: str) -> str:
    """Release of the subject's newest window."""
    query = (
        select(window.c.release)
        .where(_whose(scope, subject), window.c.model == model)
        .order_by(window.c.start_at.desc())
        .limit(1)
    )
    found = db.scalar(query)
    if found is None:
        raise AbsentError(scope, subject, f"it has sent no window of {model}")
    return str(found)


def _baseline(
    db: Connection, model: str, scope: str, subject: str, release: str
) -> Row[Any] | None:
    return db.execute(
        select(baseline).where(
            baseline.c.scope == scope,
            baseline.c.subject == subject,
            baseline.c.model == model,
            baseline.c.release == release,
        )
    ).first()


def _gathered(
    ctx: Context, db: Connection, model: str, scope: str, subject: str, release: str
) -> int:
    """Windows, or a site's buckets, that are there for a baseline to come."""
    starts = db.scalars(
        select(window.c.start_at).where(
            _whose(scope, subject),
            window.c.model == model,
            window.c.release == release,
            window.c.rows > 0,
        )
    ).all()
    width = ctx.settings.fleet.window_s
    return len({math.floor(at / width) for at in starts}) if scope == "site" else len(starts)


def _newest(
    db: Connection, ctx: Context, model: str, scope: str, subject: str, release: str
) -> list[Row[Any]]:
    """The newest windows: CURRENT of a device, or of CURRENT buckets of a site."""
    query = select(window).where(
        _whose(scope, subject),
        window.c.model == model,
        window.c.release == release,
        window.c.rows > 0,
    )
    newest = window.c.start_at.desc()
    if scope != "site":
        return [row for row in db.execute(query.order_by(newest).limit(CURRENT)) if usable(row)]
    last = db.scalar(select(func.max(window.c.start_at)).where(_whose(scope, subject))) or 0.0
    since = last - CURRENT * ctx.settings.fleet.window_s
    rows = db.execute(query.where(window.c.start_at > since).order_by(newest).limit(NEWEST))
    return [row for row in rows if usable(row)]


def _cells(points: Sequence[Row[Any]], names: Sequence[str]) -> list[DriftCell]:
    step = max(1, math.ceil(len(points) / COLUMNS))
    cells = []
    for start in range(0, len(points), step):
        some = points[start : start + step]
        log_p, psi = (
            np.stack([np.frombuffer(getattr(p, name), "<f4") for p in some])
            for name in ("log10_p", "psi")
        )
        alarmed = np.stack([np.frombuffer(p.alarmed, np.uint8) for p in some]).max(0)
        for i, name in enumerate(names):
            cells.append(
                DriftCell(
                    feature=name,
                    at=some[-1].at,
                    log10_p=float(log_p[:, i].min()),
                    psi=float(psi[:, i].max()),
                    alarmed=bool(alarmed[i]),
                )
            )
    return cells


def _shares(counts: "np.ndarray", edges: int) -> list[float]:
    """Bins that the edges make, then missing; all zero when nothing was counted."""
    kept = np.append(counts[: edges + 1], counts[-1]).astype(np.float64)
    return [float(v) for v in kept / max(kept.sum(), 1.0)]


def _psi(base: Baseline | None, now: "np.ndarray", training: "np.ndarray", feature: int) -> float:
    if base is None or not now[feature].sum():
        return 0.0
    return float(drift.psi(base, [{"": now}], 0, training)[feature])


# --- performance ----------------------------------------------------------------------------------


def _latency(db: Connection, group: Any, wanted: Sequence[Any]) -> dict[str, Latency]:
    query = select(group.label("subject"), window.c.latency).where(*wanted)
    merged: dict[str, Latency] = defaultdict(Latency)
    for row in db.execute(query.order_by(window.c.start_at.desc()).limit(NEWEST)):
        merged[row.subject].merge(row.latency)
    return merged


def _performance(row: Any, latency: Latency, model: str, scope: str, release: str) -> Performance:
    filled = any(latency.counts)
    return Performance(
        model=model,
        scope=scope,
        subject=row.subject,
        release=release,
        since=row.first,
        until=row.last,
        rows=row.rows,
        labelled=row.labelled,
        correct=row.correct,
        errors=row.errors,
        accuracy=row.correct / row.labelled if row.labelled else None,
        p50_us=latency.quantile_us(0.5) if filled else None,
        p99_us=latency.quantile_us(0.99) if filled else None,
    )


# --- health and ledger ----------------------------------------------------------------------------


def _serving(db: Connection) -> dict[str, int]:
    """Release -> devices. Devices that serve the same are one row: few texts, however many."""
    text = cast(device.c.releases, Text)
    query = select(text, func.count()).where(device.c.state == "enrolled").group_by(text)
    serving: Counter[str] = Counter()
    for releases, number in db.execute(query):
        for release in msgspec.json.decode(releases, type=dict[str, str]).values():
            serving[release] += number
    return dict(sorted(serving.items()))


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
    """Boot -> its numbers, in windows and events together."""
    both = union(
        *(select(t.c.boot, t.c.seq).where(t.c.device == name) for t in (window, device_event))
    ).subquery()
    before = func.lag(both.c.seq).over(partition_by=both.c.boot, order_by=both.c.seq)
    gaps = select(both.c.boot, both.c.seq, (both.c.seq - before - 1).label("gap")).subquery()
    narrow = gaps.c.gap <= WIDEST
    query = select(
        gaps.c.boot,
        func.count(),
        func.min(gaps.c.seq),
        func.max(gaps.c.seq),
        func.coalesce(func.sum(case((narrow, gaps.c.gap), else_=0)), 0),
        func.coalesce(func.sum(case((gaps.c.gap > WIDEST, 1), else_=0)), 0),
    ).group_by(gaps.c.boot)
    return {boot: Numbers(*map(int, rest)) for boot, *rest in db.execute(query)}


def _ledger(
    name: str, boot: str, parts: Iterable[_Arrived], numbers: Numbers, since: float
) -> Ledger:
    """since: of a boot that arrived from then on nothing has been dropped."""
    every = list(parts)
    lacks, jumps = missing(numbers, whole=min(p.first for p in every) >= since)
    return Ledger(
        device=name,
        boot=boot,
        received=numbers.received,
        highest=numbers.highest,
        missing=lacks,
        jumps=jumps,
        windows=sum(p.windows for p in every),
        rows=sum(p.rows for p in every),
        first_at=min(p.first for p in every),
        last_at=max(p.last for p in every),
    )
