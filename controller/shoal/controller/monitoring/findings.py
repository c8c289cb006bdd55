"""Findings: store the results of drift tests, and raise or update the site's drift alert.

Findings of one model and release at one site share one alert: a fouled camera moves sixty
features on two devices, and is one incident.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from sqlalchemy import Connection, Row, select

from shoal.controller.alerts import alerts
from shoal.controller.alerts.records import Draft, listed
from shoal.controller.host.context import Context
from shoal.controller.host.windows import StoredWindow
from shoal.controller.monitoring import histograms, window_validation
from shoal.controller.monitoring.drift import Baseline
from shoal.controller.monitoring.records import Finding
from shoal.controller.store import changes
from shoal.controller.store.tables import alert, baseline, device, drift_point, finding

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
BOOL = npt.NDArray[np.bool_]
#: PSI from which a shift is critical: the usual reading of the index.
CRITICAL_PSI = 0.25
#: A drift alert closes after so many times the largest scale without another alarm.
CALM = 2


class Subject(NamedTuple):
    """A device or a site whose distributions are monitored, for one release.

    scope   "device" or "site"; name: the device's or the site's
    """

    scope: str
    name: str
    model: str
    release: str


class BaselineFit(NamedTuple):
    """A fitted baseline of `windows` windows. until: windows after this time are tested."""

    subject: Subject
    baseline: Baseline
    until: float
    windows: int


class DriftTest(NamedTuple):
    """Result of the drift test of one window, arrays over all features (F,).

    at      start of the window; site: the subject's site
    scale   merged windows of each feature's most significant test; rows: rows in them
    level   log10 of the significance level; alarmed: features below it
    """

    subject: Subject
    site: str
    at: float
    log10_p: F64
    psi: F64
    hellinger: F64
    scale: I64
    rows: I64
    alarmed: BOOL
    level: float


def save(
    db: Connection, ctx: Context, fits: Sequence[BaselineFit], tests: Sequence[DriftTest]
) -> None:
    """Store baselines, heatmap columns, findings and alerts. A test stored before is skipped."""
    for subject, fitted, until, windows in fits:
        values = {"windows": windows, "until_at": until, "state": fitted.to_bytes()}
        db.execute(baseline.insert().values(**columns(subject), **values))
        changes.note(db, ctx, "window", subject.name)
    found: dict[str, list[Finding]] = defaultdict(list)
    sites: dict[str, str] = {}
    for test in tests:
        key = alert_key(test.site, test.subject.model, test.subject.release)
        found[key] += _save_test(db, test)
        if test.alarmed.any():
            sites[key] = test.site
    for key, site in sites.items():
        if found[key]:
            references = window_validation.references_of(db, found[key][0].release)
            draft = alert_draft(site, found[key], histograms.words_of(references))
            alerts.raise_alert(db, ctx, draft, len(found[key]))
        else:
            alerts.touch(db, ctx, key, ctx.settings.fleet.window_s)


def close_alerts(ctx: Context) -> None:
    """Close drift alerts whose release the site does not serve any more, or without new alarms."""
    alerts.close_resolved(ctx, alert.c.kind == "drift", _resolved)


def rows_of(table: Any, subject: Subject) -> list[Any]:
    """Conditions for the rows of a subject in `table`; of a baseline, of its release too."""
    names = ("scope", "subject", "model", *(("release",) if table is baseline else ()))
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


def newly_alarmed(before: BOOL | None, now: BOOL) -> BOOL:
    """Features that alarm now and did not at the previous test: each is a new finding.

    >>> newly_alarmed(np.array([True, False]), np.array([True, True])).tolist()
    [False, True]
    """
    if before is None or before.shape != now.shape:
        return now
    return now & ~before


def alert_key(site: str, model: str, release: str) -> str:
    """Key of the drift alert of a site."""
    return f"drift/{model}/{site}/{release}"


def alert_draft(
    site: str, findings: Sequence[Finding], words: Mapping[str, str] = MappingProxyType({})
) -> Draft:
    """Alert text for one or more findings of one site, model and release.

    words   of features that their names do not say: histograms.words_of
    """
    worst = min(findings, key=lambda one: one.log10_p)
    features = list(dict.fromkeys(one.feature for one in findings))
    moved = listed([words.get(one, one) for one in features])
    strongest = words.get(worst.feature, worst.feature)
    devices = sorted({one.subject for one in findings if one.scope == "device"})
    largest_psi = max(one.psi for one in findings)
    where = f" ({', '.join(devices)})" if devices else ""
    return Draft(
        key=alert_key(site, worst.model, worst.release),
        kind="drift",
        severity="critical" if largest_psi >= CRITICAL_PSI else "warning",
        title=f"{worst.model}: inputs at {site} have drifted",
        detail=(
            f"{moved} moved away from {site}{where}'s own baseline with "
            f"{worst.release}: {strongest} by {worst.hellinger:.2f} (Hellinger; 10^"
            f"{worst.log10_p:.0f} by chance, the budget allows 10^{worst.log10_alpha:.0f}), "
            f"PSI against training {worst.psi:.2f}."
        ),
        next_step=(
            f"Check sensors and light at {site}; if the change is permanent, add newly "
            f"labelled data and retrain: shoal model train {worst.model}"
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
    windows = CALM * max(ctx.settings.drift.scales, default=1)
    if ctx.clock() - row.updated_at > windows * ctx.settings.fleet.window_s:
        return f"no alarm in the last {windows} windows"
    return ""


def _save_test(db: Connection, test: DriftTest) -> list[Finding]:
    """Store the heatmap column, and a finding for each feature that newly alarms."""
    mine = rows_of(drift_point, test.subject)
    of_release = drift_point.c.release == test.subject.release
    if db.scalar(select(drift_point.c.at).where(*mine, drift_point.c.at == test.at)) is not None:
        return []
    before = select(drift_point.c.alarmed).where(*mine, of_release, drift_point.c.at < test.at)
    last = db.scalar(before.order_by(drift_point.c.at.desc()).limit(1))
    db.execute(
        drift_point.insert().values(
            **columns(test.subject),
            at=test.at,
            log10_p=test.log10_p.astype("<f4").tobytes(),
            psi=test.psi.astype("<f4").tobytes(),
            alarmed=test.alarmed.astype(np.uint8).tobytes(),
        )
    )
    if not test.alarmed.any():
        return []
    old = None if last is None else np.frombuffer(last, np.uint8).astype(bool)
    names = histograms.names_of(window_validation.references_of(db, test.subject.release))
    new = np.flatnonzero(newly_alarmed(old, test.alarmed))
    return [_save_finding(db, test, int(i), names[i]) for i in new]


def _save_finding(db: Connection, test: DriftTest, i: int, feature: str) -> Finding:
    values: dict[str, Any] = {
        "at": test.at,
        "kind": "drift",
        **columns(test.subject),
        "feature": feature,
        "scale": int(test.scale[i]),
        "log10_p": float(test.log10_p[i]),
        "log10_alpha": test.level,
        "hellinger": float(test.hellinger[i]),
        "psi": float(test.psi[i]),
        "rows": int(test.rows[i]),
    }
    inserted = db.execute(finding.insert().values(**values))
    ident = int(inserted.inserted_primary_key[0])  # type: ignore[index]
    return Finding(id=ident, **values)
