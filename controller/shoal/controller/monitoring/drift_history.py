"""Drift of a subject over time: heatmap, histograms and findings for API and console."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from sqlalchemy import Connection, Row, case, select

from shoal.controller.host.context import Context
from shoal.controller.host.windows import StoredWindow
from shoal.controller.monitoring import change_words, effect_sizes, window_validation
from shoal.controller.monitoring import histograms as tables_of
from shoal.controller.monitoring.drift_monitor import usable
from shoal.controller.monitoring.drift_state import State, own_shares
from shoal.controller.monitoring.findings import Subject, columns, rows_of, windows_of
from shoal.controller.monitoring.records import DriftCell, DriftMap, Finding, Histograms
from shoal.controller.store import window_sums
from shoal.controller.store.drift_tables import drift_point, drift_state, finding
from shoal.controller.store.paging import Orders, has_text, page_of
from shoal.controller.store.records import Page
from shoal.controller.store.window_tables import window_subject
from shoal.errors import AbsentError

I64 = npt.NDArray[np.int64]

#: Windows that make up the current histogram, and windows of a site read for it, at most.
CURRENT, NEWEST = 4, 5_000
#: Devices of a site whose first windows are its baseline, at most.
MEMBERS = 64
#: Columns of a heatmap; more are merged, and the worst of the merged ones is shown.
COLUMNS = 400
_PLACE = case((window_subject.c.scope == "site", 0), else_=1).label("place")


def drift_subjects(ctx: Context, model: str) -> list[tuple[str, str]]:
    """(scope, subject) that sent windows of `model`: sites first."""
    with ctx.store.read() as db:
        return [
            (scope, subject)
            for scope in ("site", "device")
            for subject in window_sums.subjects(db, model, scope)
        ]


def find_subjects(
    ctx: Context, model: str, *, scope: str = "", q: str = "", cursor: str = "", limit: int = 100
) -> tuple[list[tuple[str, str]], Page]:
    """A page of (scope, subject) that sent windows of `model`, sites first, those of one scope or
    with `q` in their name only. InputError for an invalid limit or cursor."""
    mine = window_subject.c
    wanted = [mine.model == model, mine.scope.in_([scope] if scope else ["site", "device"])]
    query = select(mine.scope, mine.subject, _PLACE).where(*wanted, *has_text(q, mine.subject))
    orders: Orders = {"scope": (_PLACE, mine.subject)}
    with ctx.store.read() as db:
        rows, page = page_of(db, query, orders, sort="scope", cursor=cursor, limit=limit)
    return [(row.scope, row.subject) for row in rows], page


def is_subject(ctx: Context, model: str, scope: str, subject: str) -> bool:
    """Whether a device or site has sent windows of `model`."""
    with ctx.store.read() as db:
        return bool(window_sums.newest_release(db, model, scope, subject))


def drift_map(
    ctx: Context, model: str, scope: str, subject: str, since: float = 0, most: int = COLUMNS
) -> DriftMap:
    """Heatmap, feature x time, of one subject since `since`, in at most `most` columns.

    AbsentError if the subject sent no window of the model.
    """
    with ctx.store.read() as db:
        of = _current(db, model, scope, subject)
        references = window_validation.references_of(db, of.release)
        names = tables_of.names_of(references)
        names = [*names, change_words.ROWS] if names else []
        mine = rows_of(drift_point, of)
        newest = db.execute(
            select(drift_point.c.windows, drift_point.c.covered)
            .where(*mine, drift_point.c.release == of.release)
            .order_by(drift_point.c.at.desc())
            .limit(1)
        ).first()
        points = db.execute(
            select(drift_point).where(*mine, drift_point.c.at >= since).order_by(drift_point.c.at)
        ).all()
    seen, covered = (newest.windows, newest.covered) if newest is not None else (0, 0)
    needed = needed_windows(ctx, scope)
    return DriftMap(
        model=model,
        scope=scope,
        subject=subject,
        release=of.release,
        ready=seen > needed,
        baseline_windows=min(seen, needed),
        baseline_needed=needed,
        covered=covered,
        features=names,
        words=tables_of.words_of(references),
        cells=_cells([p for p in points if len(p.alarmed) == len(names)], names, most),
    )


def histograms(ctx: Context, model: str, scope: str, subject: str, feature: str) -> Histograms:
    """Shares per bin of a feature in training, in the subject's first windows, and in the newest.

    The last share is that of missing values, after the bins that `edges` make; the first windows'
    are of rows with a value. The number of rows has no bins. AbsentError for an unknown subject or
    feature.
    """
    with ctx.store.read() as db:
        of = _current(db, model, scope, subject)
        references = window_validation.references_of(db, of.release)
    names = tables_of.names_of(references)
    if feature not in (*names, change_words.ROWS):
        raise AbsentError("feature", feature, f"{of.release} has: {', '.join(names[:20])}")
    rows = _newest(ctx, of)
    if feature == change_words.ROWS:
        return Histograms(
            model=model, subject=subject, feature=feature, edges=[], training=[], baseline=[],
            current=[], rows=sum(row.rows for row in rows), psi=0.0, hellinger=0.0,
        )  # fmt: skip
    i = names.index(feature)
    training = tables_of.training_of(references)[i]
    counts = [tables_of.counts_of(references, r.inputs, r.outputs)[i] for r in rows]
    now = np.asarray(sum(counts)) if counts else training * 0
    past = _first_shares(ctx, of, {row.device for row in rows}, i, len(training) - 1)
    edges = tables_of.edges_of(references, i)
    known = past is not None and now[:-1].any()
    return Histograms(
        model=model,
        subject=subject,
        feature=feature,
        edges=edges,
        training=_shares(training, len(edges)),
        baseline=_shares(np.append(past, 0), len(edges)) if past is not None else [],
        current=_shares(now, len(edges)),
        rows=int(now.sum()),
        psi=float(effect_sizes.psi(now[None], training[None])[0]) if now.any() else 0.0,
        hellinger=float(effect_sizes.hellinger(now[None, :-1], past[None])[0])
        if known and past is not None
        else 0.0,
    )


def needed_windows(ctx: Context, scope: str) -> int:
    """First windows in which a subject does not alarm; a site's begin half way of its devices'."""
    first = max(2, ctx.settings.drift.baseline_windows)
    return max(2, first // 2) if scope == "site" else first


def list_findings(
    ctx: Context,
    *,
    model: str = "",
    scope: str = "",
    subject: str = "",
    since: float = 0,
    limit: int = 200,
) -> list[Finding]:
    """The newest findings, `limit` at most."""
    found = findings_page(ctx, model=model, scope=scope, subject=subject, since=since, limit=limit)
    return found[0]


def findings_page(
    ctx: Context,
    *,
    model: str = "",
    scope: str = "",
    subject: str = "",
    since: float = 0,
    cursor: str = "",
    limit: int = 100,
) -> tuple[list[Finding], Page]:
    """Findings that match every given filter, newest first. InputError for an invalid limit or
    cursor."""
    given = {"model": model, "scope": scope, "subject": subject}
    wanted = [finding.c[name] == value for name, value in given.items() if value]
    query = select(finding).where(finding.c.at >= since, *wanted)
    orders = {"at": (finding.c.at, finding.c.id)}
    with ctx.store.read() as db:
        rows, page = page_of(db, query, orders, sort="-at", cursor=cursor, limit=limit)
    return [Finding(**row._mapping) for row in rows], page


def _current(db: Connection, model: str, scope: str, name: str) -> Subject:
    """The subject with the release of its newest window; AbsentError if it sent none."""
    release = window_sums.newest_release(db, model, scope, name)
    if not release:
        raise AbsentError(scope, name, f"it has sent no window of {model}")
    return Subject(scope, name, model, release)


def _newest(ctx: Context, subject: Subject) -> list[StoredWindow]:
    """The newest usable windows: CURRENT of a device, or of CURRENT buckets of a site."""
    width = ctx.settings.fleet.window_s
    if subject.scope == "site":
        found = windows_of(ctx, subject, limit=NEWEST, newest=True)
        last = max((row.start_at for row in found), default=0.0)
        found = [row for row in found if row.start_at > last - CURRENT * width]
    else:
        found = windows_of(ctx, subject, limit=CURRENT, newest=True)
    return [row for row in found if usable(row)]


def _first_shares(
    ctx: Context, subject: Subject, devices: set[str], feature: int, bins: int
) -> npt.NDArray[np.float64] | None:
    """Shares (bins,) of a device's first rows, or the mean over a site's devices; None: unknown."""
    names = sorted(devices)[:MEMBERS] if subject.scope == "site" else [subject.name]
    wanted = [columns(Subject("device", one, subject.model, subject.release)) for one in names]
    with ctx.store.read() as db:
        kept = [
            db.scalar(
                select(drift_state.c.state).where(*(drift_state.c[k] == v for k, v in w.items()))
            )
            for w in wanted
        ]
    found = [own_shares(State.from_bytes(bytes(data)))[feature] for data in kept if data]
    found = [one for one in found if len(one) == bins and one.any()]
    return np.mean(found, axis=0, dtype=np.float64) if found else None


def _cells(points: Sequence[Row[Any]], names: Sequence[str], most: int) -> list[DriftCell]:
    step = max(1, math.ceil(len(points) / most))
    cells: list[DriftCell] = []
    if not points:
        return cells
    log_p, moved = (
        np.frombuffer(b"".join(getattr(p, name) for p in points), "<f4").reshape(len(points), -1)
        for name in ("log10_p", "moved")
    )
    alarmed = np.frombuffer(b"".join(p.alarmed for p in points), np.uint8).reshape(log_p.shape)
    starts = np.arange(0, len(points), step)
    lowest, furthest, any_alarm = (
        reduce.reduceat(table, starts).tolist()
        for reduce, table in ((np.minimum, log_p), (np.maximum, moved), (np.maximum, alarmed))
    )
    for column, start in enumerate(starts.tolist()):
        at = points[min(start + step, len(points)) - 1].at
        for name, *cell in zip(
            names, lowest[column], furthest[column], any_alarm[column], strict=True
        ):
            cells.append(
                DriftCell(feature=name, at=at, log10_p=cell[0], moved=cell[1], alarmed=cell[2] > 0)
            )
    return cells


def _shares(counts: I64, edges: int) -> list[float]:
    """Bins that the edges make, then missing; all zero when nothing was counted."""
    bins = np.append(counts[: edges + 1], counts[-1]).astype(np.float64)
    return [float(v) for v in bins / max(bins.sum(), 1.0)]
