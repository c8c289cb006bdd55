"""Clock skew of devices: the start of a window by the controller's clock, and alerts for a site.

A device with a wrong clock keeps measuring and its windows are kept. The start of a window is
corrected by the skew that the device measured; a window that claims to come from the future or
from years ago is placed at its arrival. The time bucket of such a window is uncertain, so it is
left out of its site's.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import select

from shoal.controller.alerts import alerts
from shoal.controller.alerts.records import Draft, listed
from shoal.controller.host.context import Context
from shoal.controller.store.tables import alert, device
from shoal.wire import WindowReport

#: Largest plausible difference between a device's time and ours, seconds; beyond it, the time of
#: arrival is used.
PLAUSIBLE_S = 400 * 86_400
_KEY = "clock/"


class WindowStart(NamedTuple):
    """Start of a window by the controller's clock, Unix seconds. synced: the time is certain."""

    at: float
    synced: bool


class DeviceClock(NamedTuple):
    """A device's clock: `skew_s` ahead of the controller's, give or take `error_s`."""

    device: str
    skew_s: float
    error_s: float


def window_start(report: WindowReport, now: float, limit_s: float) -> WindowStart:
    """Start of a window that arrived at `now`. limit_s: how far ahead a clock may be."""
    synced, at = report.health.clock_synced, report.window_start_s
    if not synced and isinstance(report.health.clock, msgspec.Struct):
        at -= report.health.clock.skew_s
    if not now - PLAUSIBLE_S < at <= now + limit_s:
        return WindowStart(max(0.0, now - report.window_s), False)
    return WindowStart(min(at, now) if not synced else at, synced)


def skew_columns(facts: Mapping[str, Any]) -> dict[str, float]:
    """Device columns for the clock in an inventory's facts; empty when absent or implausible."""
    given = {name: facts.get(name) for name in ("clock_skew_s", "clock_error_s")}
    numbers = {k: float(v) for k, v in given.items() if isinstance(v, int | float)}
    complete = len(numbers) == 2 and all(abs(v) < 2**33 for v in numbers.values())
    return numbers if complete and numbers["clock_error_s"] >= 0 else {}


def is_wrong(clock: DeviceClock, limit_s: float) -> bool:
    """Whether the clock is off by more than `limit_s`, measurement error deducted.

    >>> is_wrong(DeviceClock("cam-1", -93.0, 0.2), limit_s=30.0)
    True
    >>> is_wrong(DeviceClock("cam-1", 31.0, 2.0), limit_s=30.0)
    False
    """
    return clock.error_s >= 0 and abs(clock.skew_s) - clock.error_s > limit_s


def update_alerts(ctx: Context) -> None:
    """Open, update and close clock alerts: one per site with at least one wrong clock."""
    limit_s, sites = ctx.settings.fleet.clock_skew_s, _clocks_by_site(ctx)
    with ctx.store.read() as db:
        unresolved = select(alert.c.key, alert.c.detail).where(
            alert.c.key.startswith(_KEY), alert.c.state.in_(alerts.UNRESOLVED)
        )
        standing = {row.key: row.detail for row in db.execute(unresolved)}
    drafts = [
        alert_draft(site, off, len(clocks), limit_s)
        for site, clocks in sites.items()
        if (off := [one for one in clocks if is_wrong(one, limit_s)])
    ]
    changed = [draft for draft in drafts if standing.get(draft.key) != draft.detail]
    resolved = standing.keys() - {draft.key for draft in drafts}
    if changed or resolved:
        with ctx.store.write() as db:
            for draft in changed:
                alerts.raise_alert(db, ctx, draft, findings=draft.key not in standing)
            for key in resolved:
                alerts.close(db, ctx, key, "every clock of the site is right again")


def alert_draft(site: str, off: Sequence[DeviceClock], of: int, limit_s: float) -> Draft:
    """Alert text for the wrong clocks `off` of a site; `of`: devices there that reported one."""
    worst = sorted(off, key=lambda one: (-abs(one.skew_s), one.device))
    named = listed([f"{one.device} by {_offset(one.skew_s)}" for one in worst])
    return Draft(
        key=f"{_KEY}{site}",
        kind="device",
        severity="warning",
        title=f"Clocks at {site or 'no site'} are wrong",
        detail=(
            f"{len(off)} of {of} devices are off by more than {limit_s:g} s: {named}. The "
            "start times of their windows are corrected where possible; these windows count for "
            "the device and not for the site."
        ),
        next_step=(
            "Every device reports it: check this controller's own clock first (timedatectl)"
            if len(off) == of > 1
            else "Enable time synchronisation on the device (timedatectl set-ntp true), or set it"
        ),
        site=site,
    )


def describe_clock(skew_s: float, error_s: float) -> str:
    """Text for a device's clock.

    >>> describe_clock(0.2, 0.3), describe_clock(-93.4, 0.1)
    ('right to 0.5 s', '-93 s from the controller')
    """
    if abs(skew_s) <= max(1.0, error_s):
        return f"right to {abs(skew_s) + error_s:.1f} s"
    return f"{_offset(skew_s)} from the controller"


def _clocks_by_site(ctx: Context) -> dict[str, list[DeviceClock]]:
    """Site -> clocks of its enrolled devices that reported one."""
    reported = select(
        device.c.site, device.c.name, device.c.clock_skew_s, device.c.clock_error_s
    ).where(device.c.state == "enrolled", device.c.clock_error_s >= 0)
    sites: dict[str, list[DeviceClock]] = defaultdict(list)
    with ctx.store.read() as db:
        for row in db.execute(reported):
            sites[row.site].append(DeviceClock(row.name, row.clock_skew_s, row.clock_error_s))
    return sites


def _offset(skew_s: float) -> str:
    """
    >>> _offset(93.4), _offset(-7200.0), _offset(-172800.0)
    ('+93 s', '-2 h', '-2 d')
    """
    size, unit = next(
        (size, unit)
        for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s"))
        if abs(skew_s) >= 2 * size or size == 1
    )
    return f"{math.copysign(round(abs(skew_s) / size), skew_s):+.0f} {unit}"
