"""Members of alerts: what single devices show. Those with one key share an alert.

A sign of a device is stored as pending while it has to last (hold_s), then stands; it ends when it
is seen to be over, or calm_s after its last sign. When that is, is in due_at, with an index: a look
costs by what is due, not by how many devices there are. The text of the alert is drafted by the
domain that knows the kind.
"""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from sqlalchemy import Connection, Row, delete, func, insert, select, tuple_, update

from shoal.controller.alerts import alerts, silences
from shoal.controller.alerts.records import PENDING, SEVERITIES, STANDING, Draft
from shoal.controller.host.context import Context
from shoal.controller.store.alert_tables import alert_member
from shoal.controller.store.chunks import chunks

_log = logging.getLogger(__name__)
#: Members looked at in one transaction, which holds the write lock.
BATCH = 50
#: Members whose text an alert may show; all are counted.
SHOWN = 20
_AGAIN_S = 3_600.0
Key = tuple[str, str, str]


class Sign(NamedTuple):
    """What a device shows.

    part     model or cause that it is about; "" for neither
    detail   what was measured, a few words
    hold_s   raised only after it lasted so long
    calm_s   over so long after its last sign; 0: only when it is seen to be over
    """

    device: str
    site: str
    kind: str
    part: str = ""
    severity: str = "warning"
    detail: str = ""
    hold_s: float = 0.0
    calm_s: float = 0.0

    @property
    def key(self) -> Key:
        return self.device, self.kind, self.part


class Group(NamedTuple):
    """Members of one alert: what its text is drafted from.

    devices standing members
    first   the SHOWN that stand longest, rows of alert_member
    """

    key: str
    kind: str
    site: str
    part: str
    severity: str
    devices: int
    first: Sequence[Row[Any]]


#: The text of a group's alert.
DraftGroup = Callable[[Connection, Context, Group], Draft]


def alert_key(kind: str, site: str, part: str) -> str:
    """Key of the alert that these members share: one of a kind, site, and model or cause.

    >>> alert_key("disk", "north", ""), alert_key("errors", "north", "pumps")
    ('disk/north', 'errors/north/pumps')
    """
    return f"{kind}/{site}" + (f"/{part}" if part else "")


def of_devices(db: Connection, devices: Iterable[str]) -> dict[Key, Row[Any]]:
    """What these devices show."""
    found: dict[Key, Row[Any]] = {}
    for names in chunks(list(devices)):
        query = select(alert_member).where(alert_member.c.device.in_(names))
        found |= {(row.device, row.kind, row.part): row for row in db.execute(query)}
    return found


def show(db: Connection, ctx: Context, signs: Iterable[Sign], known: Mapping[Key, Any]) -> set[str]:
    """Store signs; keys of alerts to `refresh`. known: `of_devices` of the devices."""
    now, new, dirty = ctx.clock(), [], set()
    latest = {sign.key: sign for sign in signs}
    silenced = silences.silenced_devices(db, now) if latest.keys() - known.keys() else {}
    for key, sign in latest.items():
        row = known.get(key)
        if row is None:
            made = _new(sign, now, silenced)
            new.append(made)
            if made["state"] == STANDING:
                dirty.add(made["alert_key"])
        elif _differs(row, sign, now):
            values = {"seen_at": now, "severity": sign.severity, "detail": sign.detail}
            if _measures(row, sign):
                values["calm_s"] = 0.0
            if row.state == STANDING:
                values["due_at"] = now + sign.calm_s if sign.calm_s else 0.0
                if sign.severity != row.severity:
                    dirty.add(row.alert_key)
            db.execute(update(alert_member).where(*_is(key)).values(**values))
    if new:
        db.execute(insert(alert_member), new)
    return dirty


def end(db: Connection, keys: Iterable[Key], known: Mapping[Key, Any]) -> set[str]:
    """Forget what devices do not show any more; keys of alerts to `refresh`."""
    over = [key for key in keys if key in known]
    _delete(db, over)
    return {known[key].alert_key for key in over if known[key].state == STANDING}


def refresh(db: Connection, ctx: Context, keys: Iterable[str], draft: DraftGroup) -> None:
    """Bring alerts to what their members are now. One that fails is logged, the others go on."""
    for key in sorted(keys):
        try:
            with db.begin_nested():
                _refresh(db, ctx, key, draft)
        except Exception:  # noqa: BLE001 - one bad alert must not stop the others
            _log.exception("alert %r", key[:200])


def step(ctx: Context, draft: DraftGroup) -> int:
    """Raise what lasted, end what is calm; the number of members that were due."""
    now = ctx.clock()
    columns = (alert_member.c.device, alert_member.c.kind, alert_member.c.part)
    is_due = (alert_member.c.due_at > 0) & (alert_member.c.due_at <= now)
    with ctx.store.read() as db:
        query = select(*columns).where(is_due).order_by(alert_member.c.due_at).limit(BATCH)
        keys = [tuple(row) for row in db.execute(query)]
    if not keys:
        return 0
    with ctx.store.write() as db:
        query = select(alert_member).where(tuple_(*columns).in_(keys), is_due)
        dirty = {row.alert_key for row in db.execute(query).all() if _look(db, row, now)}
        refresh(db, ctx, dirty, draft)
    return len(keys)


def forget(db: Connection, ctx: Context, device: str, draft: DraftGroup) -> None:
    """Forget everything that a device shows: it was decommissioned, or enrolled again."""
    known = of_devices(db, [device])
    refresh(db, ctx, end(db, list(known), known), draft)


def _new(sign: Sign, now: float, silenced: dict[tuple[str, str], float]) -> dict[str, Any]:
    ends = [silenced.get((sign.device, kind), 0.0) for kind in ("", sign.kind)]
    until = max(now + sign.hold_s, *ends)
    standing = until <= now
    calm_at = now + sign.calm_s if sign.calm_s else 0.0
    return {
        **sign._asdict(), "alert_key": alert_key(sign.kind, sign.site, sign.part),
        "state": STANDING if standing else PENDING, "since_at": now, "seen_at": now,
        "due_at": calm_at if standing else until,
    }  # fmt: skip


def _differs(row: Row[Any], sign: Sign, now: float) -> bool:
    """Whether a repeated sign is worth a write: rarely, it only lasts."""
    stale = sign.calm_s and now - row.seen_at > sign.calm_s / 4
    waits = row.state == PENDING and now - row.seen_at > row.hold_s / 4
    return bool(stale or waits or sign.severity != row.severity or _measures(row, sign))


def _measures(row: Row[Any], sign: Sign) -> bool:
    """Whether what was only reported until now is measured: measurements end it from now on."""
    return bool(row.calm_s and not sign.calm_s)


def _look(db: Connection, row: Any, now: float) -> bool:
    """Whether the member began or ceased to stand."""
    key = (row.device, row.kind, row.part)
    calm_at = row.seen_at + row.calm_s if row.calm_s else float("inf")
    if (now >= calm_at and row.state == STANDING) or now > calm_at + row.hold_s:
        _delete(db, [key])
        return row.state == STANDING
    due_at = max(calm_at, now + 1.0) if calm_at < float("inf") else 0.0
    db.execute(update(alert_member).where(*_is(key)).values(state=STANDING, due_at=due_at))
    return row.state == PENDING


def _refresh(db: Connection, ctx: Context, key: str, draft: DraftGroup) -> None:
    mine = (alert_member.c.alert_key == key) & (alert_member.c.state == STANDING)
    query = select(alert_member).where(mine).order_by(alert_member.c.since_at).limit(SHOWN)
    first = db.execute(query).all()
    if not first:
        alerts.set_members(db, ctx, Draft(key, "", "", "", "", ""), 0)
        return
    by_severity = select(alert_member.c.severity, func.count()).where(mine)
    grouped = db.execute(by_severity.group_by(alert_member.c.severity)).all()
    counts = {severity: int(number) for severity, number in grouped}
    worst = next((name for name in SEVERITIES if name in counts), "warning")
    one = first[0]
    group = Group(key, one.kind, one.site, one.part, worst, sum(counts.values()), first)
    alerts.set_members(db, ctx, draft(db, ctx, group), group.devices)


def _delete(db: Connection, keys: Sequence[Key]) -> None:
    columns = (alert_member.c.device, alert_member.c.kind, alert_member.c.part)
    for some in chunks(keys):
        db.execute(delete(alert_member).where(tuple_(*columns).in_(some)))


def _is(key: Key) -> tuple[Any, ...]:
    device, kind, part = key
    columns = alert_member.c
    return columns.device == device, columns.kind == kind, columns.part == part
