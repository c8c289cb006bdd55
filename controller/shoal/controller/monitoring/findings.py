"""Findings: store the results of the drift decision, and raise or update the site's drift alert.

Findings of one model and release at one site share one alert: a fouled camera moves sixty
features on two devices, and is one incident.
"""

import shlex
from collections import defaultdict
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from sqlalchemy import Connection, Row, select
from sqlalchemy.dialects.sqlite import insert

from shoal.controller.alerts import alerts
from shoal.controller.alerts.records import Draft, listed
from shoal.controller.host.context import Context
from shoal.controller.host.windows import StoredWindow
from shoal.controller.monitoring import bets, histograms, triggers, window_validation
from shoal.controller.monitoring.records import Finding
from shoal.controller.store import changes
from shoal.controller.store.drift_tables import drift_point, finding
from shoal.controller.store.tables import alert, device

F64 = npt.NDArray[np.float64]
BOOL = npt.NDArray[np.bool_]
#: How far a feature must have moved for its alert to be critical: one standard deviation.
CRITICAL = 1.0
#: A drift alert closes after so many windows without another alarm.
CALM = bets.HOLD


class Subject(NamedTuple):
    """A device or a site whose distributions are monitored, for one release.

    scope   "device" or "site"; name: the device's or the site's
    """

    scope: str
    name: str
    model: str
    release: str


class Found(NamedTuple):
    """A feature that begins to alarm.

    channel    of its strongest evidence; what: the change in words
    moved      how far: 1 is a shift of one standard deviation, or what matters as much
    psi        against training; rows: in the window
    """

    feature: str
    channel: str
    what: str
    log10_p: float
    moved: float
    psi: float
    rows: int


class DriftTest(NamedTuple):
    """What the decision said of one window, arrays over all features and the rows (F + 1,).

    at        start of the window; site: the subject's site
    windows   seen so far; covered: hours of a day seen so far, -1 if no cycle is forecast
    learning  it may not alarm yet; begins: this is the first window that may
    log10_p   evidence against "nothing changed"; moved: how far; alarmed: features in alarm
    found     those that begin to alarm; level: log10_p below which one does
    names     of the features
    """

    subject: Subject
    site: str
    at: float
    windows: int
    covered: int
    learning: bool
    begins: bool
    log10_p: F64
    moved: F64
    alarmed: BOOL
    found: list[Found]
    level: float
    names: list[str]

    @property
    def drifting(self) -> list[str]:
        """Names of the features in alarm."""
        return [self.names[i] for i in np.flatnonzero(self.alarmed)] if self.alarmed.any() else []


def save(
    db: Connection,
    ctx: Context,
    tests: Sequence[DriftTest],
    explained: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Store heatmap columns, findings and alerts. What was stored before is left as it is.

    explained   which devices drift and what they share, a sentence by release
    """
    _save_points(db, tests)
    found: dict[str, list[Finding]] = defaultdict(list)
    sites: dict[str, str] = {}
    for test in tests:
        if test.begins:
            changes.note(db, ctx, "window", test.subject.name)
        if not test.alarmed.any():
            continue
        key = alert_key(test.site, test.subject.model, test.subject.release)
        sites[key] = test.site
        found[key] += [one for each in test.found if (one := _save_finding(db, test, each))]
    for key, site in sites.items():
        if found[key]:
            references = window_validation.references_of(db, found[key][0].release)
            retrain = triggers.retrain_step(db, found[key][0].release)
            draft = alert_draft(site, found[key], retrain, histograms.words_of(references))
            if why := explained.get(found[key][0].release, ""):
                draft = draft._replace(detail=f"{draft.detail} Of the fleet, {why}")
            alerts.raise_alert(db, ctx, draft, len(found[key]))
        else:
            alerts.touch(db, ctx, key, ctx.settings.fleet.window_s)


def close_alerts(ctx: Context) -> None:
    """Close drift alerts whose release the site does not serve any more, or without new alarms."""
    alerts.close_resolved(ctx, alert.c.kind == "drift", _resolved)


def rows_of(table: Any, subject: Subject) -> list[Any]:
    """Conditions for the rows of a subject in `table`, whatever the release."""
    names = ("scope", "subject", "model")
    return [table.c[name] == value for name, value in columns(subject).items() if name in names]


def windows_of(ctx: Context, subject: Subject, **wanted: Any) -> list[StoredWindow]:
    """Windows of a subject and its release that hold rows and their sketches; wanted: as in
    shoal.controller.host.context.Windows.of."""
    found = ctx.store.windows.of(
        model=subject.model,
        release=subject.release,
        device=subject.name if subject.scope == "device" else "",
        site=subject.name if subject.scope == "site" else "",
        **wanted,
    )
    return [one for one in found if one.rows and one.inputs]  # it may have looked at no row


def columns(subject: Subject) -> dict[str, str]:
    """Column values of a subject."""
    scope, name, model, release = subject
    return {"scope": scope, "subject": name, "model": model, "release": release}


def alert_key(site: str, model: str, release: str) -> str:
    """Key of the drift alert of a site."""
    return f"drift/{model}/{site}/{release}"


def alert_draft(
    site: str,
    findings: Sequence[Finding],
    retrain: str,
    words: Mapping[str, str] = MappingProxyType({}),
) -> Draft:
    """Alert text for one or more findings of one site, model and release.

    retrain  what to do about a change that stays: triggers.retrain_step
    words    of features that their names do not say: histograms.words_of
    """
    worst = min(findings, key=lambda one: one.log10_p)
    features = list(dict.fromkeys(one.feature for one in findings))
    moved = listed([words.get(one, one) for one in features])
    strongest = words.get(worst.feature, worst.feature)
    devices = sorted({one.subject for one in findings if one.scope == "device"})
    furthest = max(findings, key=lambda one: one.moved)
    where = f" ({', '.join(devices)})" if devices else ""
    return Draft(
        key=alert_key(site, worst.model, worst.release),
        kind="drift",
        severity="critical" if furthest.moved >= CRITICAL else "warning",
        title=f"{worst.model}: inputs at {site} have drifted",
        detail=(
            f"{moved} moved away from {site}{where}'s own past with {worst.release}: "
            f"{strongest}: {worst.what} (10^{worst.log10_p:.0f} by chance, the budget allows "
            f"10^{worst.log10_alpha:.0f}). PSI against training {worst.psi:.2f}."
        ),
        next_step=(
            f"Check sensors and light at {site}; if this is normal now: "
            f"shoal drift accept {worst.model} --site {shlex.quote(site)}; "
            f"if the model has to follow, {retrain}"
        ),
        site=site,
        model=worst.model,
        release=worst.release,
        features=features,
    )


def _resolved(db: Connection, ctx: Context, row: Row[Any]) -> str:
    """Why a drift alert is resolved; "" while it is not."""
    serving = db.scalars(
        select(device.c.releases).where(device.c.site == row.site, device.c.state == "enrolled")
    ).all()
    now = {releases.get(row.model, "") for releases in serving} - {""}
    if now and row.release not in now:
        return f"{row.site} serves {', '.join(sorted(now))} now"
    if ctx.clock() - row.updated_at > CALM * ctx.settings.fleet.window_s:
        return f"no alarm in the last {CALM} windows"
    return ""


def _save_points(db: Connection, tests: Sequence[DriftTest]) -> None:
    """A heatmap column for each test, in one statement."""
    rows = [
        {
            **columns(test.subject),
            "at": test.at,
            "windows": test.windows,
            "covered": test.covered,
            "log10_p": test.log10_p.astype("<f4").tobytes(),
            "moved": test.moved.astype("<f4").tobytes(),
            "alarmed": test.alarmed.astype(np.uint8).tobytes(),
        }
        for test in tests
    ]
    if rows:
        db.execute(insert(drift_point).on_conflict_do_nothing(), rows)


def _save_finding(db: Connection, test: DriftTest, found: Found) -> Finding | None:
    """Store a finding; None if it was stored before."""
    values: dict[str, Any] = {
        "at": test.at,
        "kind": "drift",
        **columns(test.subject),
        "log10_alpha": test.level,
        **found._asdict(),
    }
    query = insert(finding).values(**values).on_conflict_do_nothing().returning(finding.c.id)
    ident = db.scalar(query)
    return None if ident is None else Finding(id=ident, **values)
