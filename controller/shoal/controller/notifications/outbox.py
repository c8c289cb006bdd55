"""From events of alerts to messages that are due: by severity, site, quiet hours and digest."""

import uuid
from typing import Any

import msgspec
from sqlalchemy import Connection, Row, delete, func, insert, select, update

from shoal.controller.alerts.records import SEVERITIES
from shoal.controller.host.context import Context
from shoal.controller.notifications import quiet_hours
from shoal.controller.notifications.records import PENDING, Item
from shoal.controller.store import stored_values
from shoal.controller.store.alert_tables import alert_event
from shoal.controller.store.notification_tables import attempt, channel, delivery
from shoal.controller.store.tables import alert

#: Events read in one transaction, and those that somebody is told of.
BATCH = 200
TOLD = ("opened", "reopened", "grew", "escalated", "woken", "ended", "resolved")
#: An alert that was reopened more often flaps: its returns are not sent any more.
FLAPS = 2
#: Events in one message, at most; and more than so many waiting for a channel become one message.
_MOST_ITEMS, _DIGEST_FROM = 500, 5
_POSITION = "notifications.position"


def collect(ctx: Context) -> int:
    """Queue messages for new events; how many were read. Without a channel they are passed."""
    with ctx.store.read() as db:
        position = _position(db)
        newest = db.scalar(select(func.max(alert_event.c.id))) or 0
    if newest <= position:
        return 0
    with ctx.store.write() as db:
        channels = db.execute(select(channel)).all()
        rows = db.execute(_events(_position(db))).all()
        for one in channels:
            items = [_item(row) for row in rows if _wanted(one, row)]
            if items:
                _queue(db, ctx, one, items)
        read = max([position, *(row.event for row in rows)])
        position = read if channels else max(newest, read)
        stored_values.write(db, _POSITION, {"id": position})
    return len(rows)


def delete_expired(ctx: Context) -> None:
    """Delete messages that ended before the retention of telemetry, and their attempts."""
    before = ctx.clock() - ctx.settings.fleet.retention_days * 86_400
    old = (delivery.c.ended_at > 0) & (delivery.c.created_at < before) & (delivery.c.due_at == 0)
    while True:
        with ctx.store.write() as db:
            ids = list(db.scalars(select(delivery.c.id).where(old).limit(BATCH)))
            db.execute(delete(attempt).where(attempt.c.delivery.in_(ids)))
            db.execute(delete(delivery).where(delivery.c.id.in_(ids)))
        if len(ids) < BATCH:
            return


def _events(after: int) -> Any:
    columns = (
        alert_event.c.id.label("event"), alert_event.c.at, alert_event.c.what,
        alert.c.id.label("alert"), alert.c.severity, alert.c.kind, alert.c.site, alert.c.title,
        alert.c.detail, alert.c.next_step, alert.c.state, alert.c.reopened,
    )  # fmt: skip
    joined = select(*columns).join(alert, alert.c.id == alert_event.c.alert)
    return joined.where(alert_event.c.id > after).order_by(alert_event.c.id).limit(BATCH)


def _wanted(one: Row[Any], row: Row[Any]) -> bool:
    enough = SEVERITIES.index(one.severity) >= SEVERITIES.index(row.severity)
    at_site = not one.sites or row.site in one.sites
    told = row.what in TOLD and not (one.escalated_only and row.what != "escalated")
    quiet = row.state == "snoozed" or (row.what == "reopened" and row.reopened > FLAPS)
    return enough and at_site and told and not quiet


def _item(row: Row[Any]) -> Item:
    return Item(**{name: getattr(row, name) for name in Item.__struct_fields__})


def _queue(db: Connection, ctx: Context, one: Row[Any], items: list[Item]) -> None:
    """Add items to the channel's waiting message, or queue one: a digest of them when many."""
    now = ctx.clock()
    due_at = now + one.digest_s
    if all(item.severity != "critical" for item in items):
        due_at = quiet_hours.ends_at(one.quiet, one.zone, due_at)
    waiting = db.execute(
        select(delivery).where(
            delivery.c.channel == one.name, delivery.c.state == PENDING, delivery.c.attempts == 0,
            delivery.c.due_at > now,
        )
    ).first()  # fmt: skip
    if waiting is not None:
        events = [*waiting.events, *map(msgspec.structs.asdict, items)][-_MOST_ITEMS:]
        values = {"events": events, "due_at": min(waiting.due_at, due_at)}
        db.execute(update(delivery).where(delivery.c.id == waiting.id).values(**values))
        return
    together = due_at > now or len(items) > _DIGEST_FROM
    for some in [items] if together else [[item] for item in items]:
        db.execute(
            insert(delivery).values(
                id=uuid.uuid4().hex, channel=one.name, state=PENDING, created_at=now,
                due_at=due_at, events=[msgspec.structs.asdict(item) for item in some],
            )
        )  # fmt: skip


def _position(db: Connection) -> int:
    found = stored_values.read(db, _POSITION)
    return int(found["id"]) if found else 0
