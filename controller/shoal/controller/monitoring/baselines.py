"""Baselines as people read them: a page of a model's, and what is usual for one subject."""

import math
from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, func, select, tuple_

from shoal.controller.host.context import Context
from shoal.controller.monitoring import (
    baseline_rows,
    change_words,
    histograms,
    window_validation,
)
from shoal.controller.monitoring.drift_history import list_findings, needed_windows
from shoal.controller.monitoring.drift_state import State
from shoal.controller.monitoring.findings import Subject, columns
from shoal.controller.monitoring.records import Baseline, BaselineDetail, UsualFeature
from shoal.controller.monitoring.usual import Usual, usual
from shoal.controller.releases import models
from shoal.controller.store import cursors
from shoal.controller.store.drift_tables import drift_baseline, drift_point, drift_state
from shoal.controller.store.records import Page
from shoal.errors import AbsentError, InputError

STATES = ("learning", "watching", "drifting", "frozen")
FINDINGS = 20
_ORDER = tuple(drift_baseline.c[n] for n in ("site", "scope", "subject", "release"))


def page(
    ctx: Context,
    *,
    model: str,
    scope: str = "",
    device: str = "",
    site: str = "",
    release: str = "",
    state: str = "",
    cursor: str = "",
    limit: int = 50,
) -> tuple[list[Baseline], Page]:
    """Baselines of a model by site, a site's devices before the site itself.

    scope    device or site; "" for both
    release  "": of the releases that are served
    state    one of STATES; "" for all
    Raises AbsentError for an unknown model, InputError for a state, limit or cursor.
    """
    limit = cursors.bounded(limit)
    models.get_model(ctx, model)
    wanted = baseline_rows.selected(model, device_name=device, site=site, release=release)
    wanted += _of_state(state)
    if scope:
        wanted.append(drift_baseline.c.scope == scope)
    query = select(drift_baseline).where(*wanted).order_by(*_ORDER)
    total = -1
    if cursor:
        *key, total = cursors.decode(cursor, str, str, str, str, int)
        query = query.where(tuple_(*_ORDER) > tuple_(*key))
    with ctx.store.read() as db:
        rows = db.execute(query.limit(limit + 1)).all()
        if total < 0:
            count = select(func.count()).select_from(drift_baseline).where(*wanted)
            total = db.execute(count).scalar_one() if len(rows) > limit else len(rows)
        found = [_baseline(db, ctx, row) for row in rows[:limit]]
    more = ""
    if len(rows) > limit:
        last = found[-1]
        more = cursors.encode(last.site, last.scope, last.subject, last.release, total)
    return found, Page(next=more, total=total)


def show(ctx: Context, model: str, scope: str, subject: str, release: str = "") -> BaselineDetail:
    """One subject's baseline with what is usual. release "": the newest one.

    AbsentError where the subject has none.
    """
    wanted = {"scope": scope, "subject": subject, "model": model}
    wanted |= {"release": release} if release else {}
    query = select(drift_baseline).where(*(drift_baseline.c[k] == v for k, v in wanted.items()))
    with ctx.store.read() as db:
        row = db.execute(query.order_by(drift_baseline.c.updated_at.desc()).limit(1)).first()
        if row is None:
            raise AbsentError(
                "baseline", subject, f"list those that there are: shoal drift list {model}"
            )
        of = Subject(row.scope, row.subject, row.model, row.release)
        kept = db.execute(
            select(drift_state.c.saved_at, drift_state.c.state).where(
                *(drift_state.c[k] == v for k, v in columns(of).items())
            )
        ).first()
        names = histograms.names_of(window_validation.references_of(db, of.release))
        baseline = _baseline(db, ctx, row)
    found = list_findings(ctx, model=model, scope=scope, subject=subject, limit=FINDINGS)
    state = State.from_bytes(bytes(kept.state)) if kept is not None else None
    normal = usual(state, ctx.settings.fleet.window_s) if state is not None else None
    return BaselineDetail(
        baseline=baseline,
        saved_at=kept.saved_at if kept is not None else 0.0,
        rows=_known(normal.rows) if normal is not None else None,
        features=_features([*names, change_words.ROWS], baseline.drifting, normal),
        findings=[one for one in found if one.release == of.release],
    )


def _features(
    names: Sequence[str], drifting: Sequence[str], normal: Usual | None
) -> list[UsualFeature]:
    fields = ("mean", "sd", "swing", "missing", "rare")
    nothing: dict[str, float | None] = dict.fromkeys(fields)
    found = []
    for i, name in enumerate(names):
        known = normal is not None and i < len(normal.mean)
        values = {f: _known(getattr(normal, f)[i]) for f in fields} if known else nothing
        found.append(UsualFeature(feature=name, alarmed=name in drifting, **values))
    return found


def _known(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _baseline(db: Connection, ctx: Context, row: Row[Any]) -> Baseline:
    newest = db.execute(
        select(drift_point.c.windows, drift_point.c.covered)
        .where(
            drift_point.c.scope == row.scope,
            drift_point.c.subject == row.subject,
            drift_point.c.model == row.model,
            drift_point.c.at >= row.began_at,
            drift_point.c.release == row.release,
        )
        .order_by(drift_point.c.at.desc())
        .limit(1)
    ).first()
    windows, covered = newest if newest is not None else (0, 0)
    needed = needed_windows(ctx, row.scope)
    return Baseline.of_row(row, windows=windows, needed=needed, covered=covered)


def _of_state(state: str) -> list[ColumnElement[bool]]:
    if not state:
        return []
    if state not in STATES:
        raise InputError(f"state {state!r:.40} of a baseline", f"use one of {', '.join(STATES)}")
    if state == "drifting":
        return [func.json_array_length(drift_baseline.c.drifting) > 0]
    if state == "frozen":
        return [drift_baseline.c.frozen_at > 0]
    return [drift_baseline.c.state == state]
