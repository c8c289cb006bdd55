"""Writes down what a look found: the heatmap, findings where something begins, and alerts."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from sqlalchemy import Connection, select

from shoal.controller.alerts import alerts
from shoal.controller.alerts import text as drafts
from shoal.controller.host.context import Context
from shoal.controller.monitoring import histograms, window_validation
from shoal.controller.monitoring.drift import Baseline
from shoal.controller.store import changes
from shoal.controller.store.records import Finding
from shoal.controller.store.tables import baseline, drift_point, finding

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]


class Subject(NamedTuple):
    """Whose distribution is watched. scope: "device" or "site"."""

    scope: str
    name: str
    model: str
    release: str


class Fitted(NamedTuple):
    """A baseline that is complete. until: where the windows go on that are compared with it."""

    subject: Subject
    made: Baseline
    until: float
    windows: int


class Seen(NamedTuple):
    """One look's outcome, arrays of all features (F,). level: log10 of the one that was kept to."""

    subject: Subject
    site: str
    at: float
    log10_p: F64
    psi: F64
    hellinger: F64
    scale: I64
    rows: I64
    alarmed: npt.NDArray[np.bool_]
    level: float


def keep(db: Connection, ctx: Context, fitted: Sequence[Fitted], looks: Sequence[Seen]) -> None:
    """Write everything. A look that was written before is passed over."""
    for subject, made, until, windows in fitted:
        values = {"windows": windows, "until_at": until, "state": made.to_bytes()}
        db.execute(baseline.insert().values(**columns(subject), **values))
        changes.note(db, ctx, "window", subject.name)
    fresh: dict[str, list[Finding]] = defaultdict(list)
    sites: dict[str, str] = {}
    for seen in looks:
        key = drafts.drift_key(seen.site, seen.subject.model, seen.subject.release)
        fresh[key] += _keep_look(db, seen)
        if seen.alarmed.any():
            sites[key] = seen.site
    for key, site in sites.items():
        if fresh[key]:
            alerts.raise_alert(db, ctx, drafts.drift(site, fresh[key]), len(fresh[key]))
        else:
            alerts.touch(db, ctx, key, ctx.settings.fleet.window_s)


def same(table: Any, subject: Subject) -> list[Any]:
    """Which rows of `table` are the subject's; of a baseline also: its release's."""
    names = ("scope", "subject", "model", *(("release",) if table is baseline else ()))
    return [table.c[name] == value for name, value in columns(subject).items() if name in names]


def columns(subject: Subject) -> dict[str, str]:
    """The subject as tables name it."""
    scope, name, model, release = subject
    return {"scope": scope, "subject": name, "model": model, "release": release}


def _keep_look(db: Connection, seen: Seen) -> list[Finding]:
    """The heatmap's column, and a finding for each feature that began to alarm."""
    mine = same(drift_point, seen.subject)
    of_release = drift_point.c.release == seen.subject.release
    if db.scalar(select(drift_point.c.at).where(*mine, drift_point.c.at == seen.at)) is not None:
        return []
    before = select(drift_point.c.alarmed).where(*mine, of_release, drift_point.c.at < seen.at)
    last = db.scalar(before.order_by(drift_point.c.at.desc()).limit(1))
    db.execute(
        drift_point.insert().values(
            **columns(seen.subject),
            at=seen.at,
            log10_p=seen.log10_p.astype("<f4").tobytes(),
            psi=seen.psi.astype("<f4").tobytes(),
            alarmed=seen.alarmed.astype(np.uint8).tobytes(),
        )
    )
    if not seen.alarmed.any():
        return []
    old = None if last is None else np.frombuffer(last, np.uint8).astype(bool)
    names = histograms.names_of(window_validation.references_of(db, seen.subject.release))
    fresh = np.flatnonzero(drafts.rising(old, seen.alarmed))
    return [_keep_finding(db, seen, int(i), names[i]) for i in fresh]


def _keep_finding(db: Connection, seen: Seen, i: int, feature: str) -> Finding:
    values: dict[str, Any] = {
        "at": seen.at,
        "kind": "drift",
        **columns(seen.subject),
        "feature": feature,
        "scale": int(seen.scale[i]),
        "log10_p": float(seen.log10_p[i]),
        "log10_alpha": seen.level,
        "hellinger": float(seen.hellinger[i]),
        "psi": float(seen.psi[i]),
        "rows": int(seen.rows[i]),
    }
    made = db.execute(finding.insert().values(**values))
    ident = int(made.inserted_primary_key[0])  # type: ignore[index]
    return Finding(id=ident, **values)
