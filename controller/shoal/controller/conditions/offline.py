"""Devices that are silent beyond their usual rhythm.

A device that speaks steadily costs nothing here: its row says when to look at it, and then it is
looked at where it was last heard. What is learnt from (conditions.rhythm) are its gaps.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, bindparam, delete, func, select, update
from sqlalchemy.dialects.sqlite import insert

from shoal.controller.alerts import members
from shoal.controller.alerts.members import Sign
from shoal.controller.conditions import uptime
from shoal.controller.conditions.drafts import draft, duration
from shoal.controller.conditions.rhythm import Limits, Rhythm
from shoal.controller.host.context import Context
from shoal.controller.store.alert_tables import device_rhythm
from shoal.controller.store.chunks import chunks
from shoal.controller.store.tables import device

_log = logging.getLogger(__name__)
KIND = "offline"
#: Devices looked at in one transaction, which holds the write lock.
BATCH = 25
_AGAIN_S = 3_600.0
#: Rows of a site that a new device's rhythm is chosen from.
_PEERS = 5


#: One statement for all rows of a batch.
_UPDATE = (
    update(device_rhythm)
    .where(device_rhythm.c.device == bindparam("name"))
    .values(state=bindparam("state"), due_at=bindparam("due_at"))
)


def limits(ctx: Context, devices: int) -> Limits:
    """Limits for a fleet of so many devices."""
    fleet, alerts = ctx.settings.fleet, ctx.settings.alerts
    rate = alerts.offline_per_day / max(1, devices)
    return Limits(fleet.offline_s, alerts.offline_most_s, rate, noted_s(ctx))


def noted_s(ctx: Context) -> float:
    """Gaps longer than this are learnt from."""
    return ctx.settings.fleet.offline_s / 2


def spoke(
    db: Connection, ctx: Context, heard: Mapping[str, tuple[float, str]], now: float
) -> set[str]:
    """Learn from devices that spoke at `now`; keys of alerts to refresh.

    When they may be overdue is computed at the first look, which is off the path of messages.

    heard   device -> when it was heard before (0: never), and its site
    """
    noted = noted_s(ctx)
    gaps = {n: one for n, one in heard.items() if one[0] == 0 or now - one[0] >= noted}
    if not gaps:
        return set()
    began = uptime.since(db) if uptime.is_current(db, now) else now  # back, and not noted yet
    look_at = now + ctx.settings.fleet.offline_s
    states: dict[str, bytes] = {}
    for names in chunks(list(gaps)):
        query = select(device_rhythm).where(device_rhythm.c.device.in_(names))
        states |= {row.device: row.state for row in db.execute(query)}
    rows = []
    for name, (last, site) in gaps.items():
        rhythm = _learn(db, name, site, last, now, states.get(name), began, noted)
        rows.append({"device": name, "state": rhythm.encode(), "due_at": look_at})
    upsert = insert(device_rhythm)
    new = {name: upsert.excluded[name] for name in ("state", "due_at")}
    db.execute(upsert.on_conflict_do_update(index_elements=["device"], set_=new), rows)
    known = members.of_devices(db, gaps)
    return members.end(db, [(name, KIND, "") for name in gaps], known)


def step(ctx: Context) -> int:
    """Look at devices that may be overdue; how many were looked at."""
    now = ctx.clock()
    is_due = (device_rhythm.c.due_at > 0) & (device_rhythm.c.due_at <= now)
    due = select(device_rhythm.c.device).where(is_due).order_by(device_rhythm.c.due_at)
    with ctx.store.read() as db:
        names = list(db.scalars(due.limit(BATCH)))
        current = not names or uptime.is_current(db, now)
    if not names or not current:
        return 0
    with ctx.store.write() as db:
        columns = (
            device_rhythm, device.c.name, device.c.site, device.c.seen_at,
            device.c.state.label("enrolment"),
        )  # fmt: skip
        joined = device_rhythm.outerjoin(device, device.c.name == device_rhythm.c.device)
        query = select(*columns).select_from(joined).where(device_rhythm.c.device.in_(names))
        bounds, began = limits(ctx, _enrolled(db)), uptime.since(db)
        signs: list[Sign] = []
        after: list[dict[str, Any]] = []
        for row in db.execute(query).all():
            if row.enrolment != "enrolled":
                forget(db, row.device)
                continue
            state, due_at = row.state, now + _AGAIN_S
            try:
                state, due_at, found = _look(row, now, began, bounds)
                signs += found
            except Exception:  # noqa: BLE001 - one bad row must not stop the others
                _log.exception("rhythm of %s: looked at again in an hour", row.device)
            after.append({"name": row.device, "state": state, "due_at": due_at})
        if after:
            db.execute(_UPDATE, after)
        known = members.of_devices(db, [sign.device for sign in signs])
        members.refresh(db, ctx, members.show(db, ctx, signs, known), draft)
    return len(names)


def forget(db: Connection, name: str) -> None:
    """Forget the rhythm of a device: it was decommissioned, or enrols again."""
    db.execute(delete(device_rhythm).where(device_rhythm.c.device == name))


def _learn(
    db: Connection,
    name: str,
    site: str,
    last: float,
    now: float,
    state: bytes | None,
    began: float,
    noted: float,
) -> Rhythm:
    if state is None:
        return _inherit(db, name, site, now)
    rhythm = Rhythm.decode(state, last or now)
    if last >= began and last > 0:
        rhythm.gap(last, now, noted)
    else:  # the controller was not listening all the time
        rhythm.spoke(last)
        rhythm.until_s = now
    return rhythm


def _inherit(db: Connection, name: str, site: str, now: float) -> Rhythm:
    """The rhythm of the site's best known device, or a new one."""
    query = (
        select(device_rhythm.c.state)
        .join(device, device.c.name == device_rhythm.c.device)
        .where(device.c.site == site, device.c.name != name)
        .limit(_PEERS)
    )
    peers = [Rhythm.decode(state, now) for state in db.scalars(query)]
    best = max(peers, key=lambda one: one.days, default=None)
    return best.inherited(now) if best is not None else Rhythm.new(now)


def _look(
    row: Any, now: float, began: float, bounds: Limits
) -> tuple[bytes, float, Sequence[Sign]]:
    """State, when it is looked at next (0: when it has spoken), and a sign if it is overdue."""
    rhythm = Rhythm.decode(row.state, row.seen_at)
    due = rhythm.due(max(row.seen_at, began), bounds)
    if due > now:
        rhythm.spoke(row.seen_at)
        return rhythm.encode(), due, ()
    usual = duration(rhythm.bound_s(bounds))
    detail = f"silent for {duration(now - row.seen_at)}, usually at most {usual} of its hours"
    return row.state, 0.0, (Sign(row.device, row.site, KIND, detail=detail),)


def _enrolled(db: Connection) -> int:
    """Devices whose rhythm is known; counted by an index of that table, not of devices."""
    return db.scalar(select(func.count()).select_from(device_rhythm)) or 0
