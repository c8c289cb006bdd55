"""Drift of a subject over time: heatmap, histograms and findings for API and console."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from sqlalchemy import Connection, Row, select

from shoal.controller.host.context import Context
from shoal.controller.host.windows import StoredWindow
from shoal.controller.monitoring import drift, window_validation
from shoal.controller.monitoring import histograms as tables_of
from shoal.controller.monitoring.drift import I64, Baseline
from shoal.controller.monitoring.drift_monitor import usable
from shoal.controller.monitoring.findings import Subject, rows_of, windows_of
from shoal.controller.monitoring.records import DriftCell, DriftMap, Finding, Histograms
from shoal.controller.store import window_sums
from shoal.controller.store.tables import baseline, drift_point, finding
from shoal.errors import AbsentError

#: Windows that make up the current histogram, and windows of a site read for it, at most.
CURRENT, NEWEST = 4, 5_000
#: Columns of a heatmap; more are merged, and the worst of the merged ones is shown.
COLUMNS = 400


def drift_subjects(ctx: Context, model: str) -> list[tuple[str, str]]:
    """(scope, subject) that sent windows of `model`: sites first."""
    with ctx.store.read() as db:
        return [
            (scope, subject)
            for scope in ("site", "device")
            for subject in window_sums.subjects(db, model, scope)
        ]


def drift_map(ctx: Context, model: str, scope: str, subject: str, since: float = 0) -> DriftMap:
    """Heatmap, feature x time, of one subject since `since`, in at most COLUMNS columns.

    AbsentError if the subject sent no window of the model.
    """
    with ctx.store.read() as db:
        of = _current(db, model, scope, subject)
        references = window_validation.references_of(db, of.release)
        names = tables_of.names_of(references)
        fitted = _baseline(db, of)
        collected = fitted.windows if fitted else _collected(ctx, of)
        points = db.execute(
            select(drift_point)
            .where(*rows_of(drift_point, of), drift_point.c.at >= since)
            .order_by(drift_point.c.at)
        ).all()
    needed = max(3, ctx.settings.drift.baseline_windows)
    return DriftMap(
        model=model,
        scope=scope,
        subject=subject,
        release=of.release,
        ready=fitted is not None,
        baseline_windows=min(collected, needed),
        baseline_needed=needed,
        features=names,
        words=tables_of.words_of(references),
        cells=_cells([p for p in points if len(p.alarmed) == len(names)], names),
    )


def histograms(ctx: Context, model: str, scope: str, subject: str, feature: str) -> Histograms:
    """Shares per bin of a feature in training, baseline and the newest windows.

    The last share is that of missing values, after the bins that `edges` make. AbsentError for an
    unknown subject or feature.
    """
    with ctx.store.read() as db:
        of = _current(db, model, scope, subject)
        references = window_validation.references_of(db, of.release)
        names = tables_of.names_of(references)
        if feature not in names:
            raise AbsentError("feature", feature, f"{of.release} has: {', '.join(names[:20])}")
        row = _baseline(db, of)
        rows = _newest(ctx, of)
    i = names.index(feature)
    training = tables_of.training_of(references)
    counts = [tables_of.counts_of(references, r.inputs, r.outputs) for r in rows]
    now = np.asarray(sum(counts)) if counts else training * 0
    fitted = Baseline.from_bytes(row.state) if row else None
    past = fitted.counts.sum(0) if fitted else training * 0
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
        psi=_psi(fitted, now, training, i),
        hellinger=float(np.sqrt(np.square(np.sqrt(b) - np.sqrt(c)).sum() / 2)) if fitted else 0.0,
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


def _current(db: Connection, model: str, scope: str, name: str) -> Subject:
    """The subject with the release of its newest window; AbsentError if it sent none."""
    release = window_sums.newest_release(db, model, scope, name)
    if not release:
        raise AbsentError(scope, name, f"it has sent no window of {model}")
    return Subject(scope, name, model, release)


def _baseline(db: Connection, subject: Subject) -> Row[Any] | None:
    return db.execute(select(baseline).where(*rows_of(baseline, subject))).first()


def _collected(ctx: Context, subject: Subject) -> int:
    """Windows of a device, or buckets of a site, available for a baseline so far."""
    width, most = ctx.settings.fleet.window_s, max(3, ctx.settings.drift.baseline_windows)
    found = windows_of(ctx, subject, limit=NEWEST if subject.scope == "site" else most)
    buckets = {math.floor(one.start_at / width) for one in found}
    return len(buckets) if subject.scope == "site" else len(found)


def _newest(ctx: Context, subject: Subject) -> list[StoredWindow]:
    """The newest usable windows: CURRENT of a device, or of CURRENT buckets of a site."""
    if subject.scope != "site":
        found = windows_of(ctx, subject, limit=CURRENT, newest=True)
        return [one for one in found if usable(one)]
    found = windows_of(ctx, subject, limit=NEWEST, newest=True)
    since = max((one.start_at for one in found), default=0.0)
    since -= CURRENT * ctx.settings.fleet.window_s
    return [one for one in found if usable(one) and one.start_at > since]


def _cells(points: Sequence[Row[Any]], names: Sequence[str]) -> list[DriftCell]:
    step = max(1, math.ceil(len(points) / COLUMNS))
    cells = []
    for start in range(0, len(points), step):
        merged = points[start : start + step]
        log_p, psi = (
            np.stack([np.frombuffer(getattr(p, name), "<f4") for p in merged])
            for name in ("log10_p", "psi")
        )
        alarmed = np.stack([np.frombuffer(p.alarmed, np.uint8) for p in merged]).max(0)
        for i, name in enumerate(names):
            cells.append(
                DriftCell(
                    feature=name,
                    at=merged[-1].at,
                    log10_p=float(log_p[:, i].min()),
                    psi=float(psi[:, i].max()),
                    alarmed=bool(alarmed[i]),
                )
            )
    return cells


def _shares(counts: I64, edges: int) -> list[float]:
    """Bins that the edges make, then missing; all zero when nothing was counted."""
    bins = np.append(counts[: edges + 1], counts[-1]).astype(np.float64)
    return [float(v) for v in bins / max(bins.sum(), 1.0)]


def _psi(fitted: Baseline | None, now: I64, training: I64, feature: int) -> float:
    if fitted is None or not now[feature].sum():
        return 0.0
    return float(drift.psi(fitted, [{"": now}], 0, training)[feature])
