"""Clocks of devices that are wrong: signs by what inventories report, and the alert of a site."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from sqlalchemy import Connection, func, select

from shoal.controller.alerts import alerts, members
from shoal.controller.alerts.members import DraftGroup, Key, Sign
from shoal.controller.alerts.records import Draft, listed
from shoal.controller.host.context import Context
from shoal.controller.store.alert_tables import alert_member
from shoal.controller.store.chunks import chunks
from shoal.controller.store.tables import alert, device

KIND = "clock"


class DeviceClock(NamedTuple):
    """A device's clock: `skew_s` ahead of the controller's, give or take `error_s`."""

    device: str
    skew_s: float
    error_s: float


def is_wrong(clock: DeviceClock, limit_s: float) -> bool:
    """Whether the clock is off by more than `limit_s`, measurement error deducted.

    >>> is_wrong(DeviceClock("cam-1", -93.0, 0.2), limit_s=30.0)
    True
    >>> is_wrong(DeviceClock("cam-1", 31.0, 2.0), limit_s=30.0)
    False
    """
    return clock.error_s >= 0 and abs(clock.skew_s) - clock.error_s > limit_s


def offset(seconds: float) -> str:
    """
    >>> offset(93.4), offset(-7200.0), offset(-172800.0)
    ('+93 s', '-2 h', '-2 d')
    """
    size, unit = next(
        (size, unit)
        for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s"))
        if abs(seconds) >= 2 * size or size == 1
    )
    return f"{math.copysign(round(abs(seconds) / size), seconds):+.0f} {unit}"


def reported(columns: Mapping[str, Mapping[str, Any]]) -> list[DeviceClock]:
    """Clocks that are among columns of devices."""
    return [
        DeviceClock(name, values["clock_skew_s"], values["clock_error_s"])
        for name, values in columns.items()
        if "clock_error_s" in values
    ]


def signs_of(
    clocks: Iterable[tuple[DeviceClock, str]], limit_s: float
) -> tuple[list[Sign], list[Key]]:
    """Signs of clocks that are wrong, and keys of those that are right.

    clocks   with the site of each
    """
    signs, right = [], []
    for clock, site in clocks:
        if is_wrong(clock, limit_s):
            signs.append(Sign(clock.device, site, KIND, detail=offset(clock.skew_s)))
        else:
            right.append((clock.device, KIND, ""))
    return signs, right


def look_again(ctx: Context, draft: DraftGroup) -> None:
    """Judge all clocks by the limit of the settings: when the controller starts, and once a day.

    In between, a clock is judged when its device reports it.
    """
    limit_s = ctx.settings.fleet.clock_skew_s
    reported = (device.c.state == "enrolled") & (device.c.clock_error_s >= 0)
    columns = (device.c.name, device.c.clock_skew_s, device.c.clock_error_s, device.c.site)
    mine = alert_member.c.kind == KIND
    open_alerts = alert.c.key.startswith(f"{KIND}/") & alert.c.state.in_(alerts.UNRESOLVED)
    with ctx.store.read() as db:
        rows = db.execute(select(*columns).where(reported)).all()
        shown = set(db.scalars(select(alert_member.c.device).where(mine)))
        keyed = set(db.scalars(select(alert_member.c.alert_key).where(mine)))
        stale = set(db.scalars(select(alert.c.key).where(open_alerts))) - keyed
    signs, right = signs_of(((DeviceClock(*row[:3]), row.site) for row in rows), limit_s)
    for new in chunks([sign for sign in signs if sign.device not in shown]):
        with ctx.store.write() as db:
            known = members.of_devices(db, [sign.device for sign in new])
            members.refresh(db, ctx, members.show(db, ctx, new, known), draft)
    for over in chunks([key for key in right if key[0] in shown]):
        with ctx.store.write() as db:
            known = members.of_devices(db, [key[0] for key in over])
            members.refresh(db, ctx, members.end(db, over, known), draft)
    if stale:  # raised by an earlier version, for devices that have none now
        with ctx.store.write() as db:
            members.refresh(db, ctx, stale, draft)


def alert_draft(db: Connection, ctx: Context, group: members.Group) -> Draft:
    """The alert of a site whose clocks are wrong."""
    named = [row.device for row in group.first]
    columns = (device.c.name, device.c.clock_skew_s, device.c.clock_error_s)
    found = db.execute(select(*columns).where(device.c.name.in_(named))).all()
    at_site = (device.c.site == group.site) & (device.c.state == "enrolled")
    total = select(func.count()).where(at_site, device.c.clock_error_s >= 0)
    return _draft(group, [DeviceClock(*row) for row in found], db.scalar(total) or 0, ctx)


def _draft(group: members.Group, off: Sequence[DeviceClock], of: int, ctx: Context) -> Draft:
    worst = sorted(off, key=lambda one: (-abs(one.skew_s), one.device))
    names = listed([f"{one.device} by {offset(one.skew_s)}" for one in worst])
    return Draft(
        key=group.key,
        kind=KIND,
        severity="warning",
        title=f"Clocks at {group.site or 'no site'} are wrong",
        detail=(
            f"{group.devices} of {of} devices are off by more than "
            f"{ctx.settings.fleet.clock_skew_s:g} s: {names}. The start times of their windows "
            "are corrected where possible; these windows count for the device and not for the "
            "site."
        ),
        next_step=(
            "Every device reports it: check this controller's own clock first (timedatectl)"
            if group.devices >= of > 1
            else "Enable time synchronisation on the device (timedatectl set-ntp true), or set it"
        ),
        site=group.site,
    )
