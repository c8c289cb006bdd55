"""Alerts that are due: snoozes that end, nobody who took them, causes that stay away."""

import logging
from typing import Any

from sqlalchemy import Connection, Row, delete, select, update

from shoal.controller.alerts import alerts
from shoal.controller.alerts.machine import CLOSED, OPEN, SNOOZED, Event, step
from shoal.controller.host.context import Context
from shoal.controller.store.alert_tables import alert_event
from shoal.controller.store.tables import alert

_log = logging.getLogger(__name__)
#: Alerts looked at in one transaction.
BATCH = 100


def upkeep(ctx: Context) -> int:
    """Wake snoozed alerts, escalate and close those that are due; how many were looked at."""
    now = ctx.clock()
    query = select(alert).where(alert.c.due_at > 0, alert.c.due_at <= now)
    with ctx.store.read() as db:
        due = db.execute(query.order_by(alert.c.due_at).limit(BATCH)).all()
    if not due:
        return 0
    with ctx.store.write() as db:
        ids = [row.id for row in due]
        for row in db.execute(select(alert).where(alert.c.id.in_(ids))).all():
            try:
                with db.begin_nested():
                    _look(db, ctx, row, now)
            except Exception:  # noqa: BLE001 - one bad row must not stop the others
                _log.exception("alert %s: looked at again in an hour", row.id)
                db.execute(
                    update(alert).where(alert.c.id == row.id).values(due_at=now + alerts.REOPEN_S)
                )
    return len(due)


def delete_expired(ctx: Context) -> None:
    """Delete alerts that were closed before the retention of telemetry, and their history."""
    before = ctx.clock() - ctx.settings.fleet.retention_days * 86_400
    old = (alert.c.state == CLOSED) & (alert.c.closed_at < before)
    while True:
        with ctx.store.write() as db:
            ids = list(db.scalars(select(alert.c.id).where(old).limit(BATCH)))
            db.execute(delete(alert_event).where(alert_event.c.alert.in_(ids)))
            db.execute(delete(alert).where(alert.c.id.in_(ids)))
        if len(ids) < BATCH:
            return


def _look(db: Connection, ctx: Context, row: Row[Any], now: float) -> None:
    if row.state == CLOSED:
        alerts.change(db, ctx, row)
    elif 0 < row.ending_at <= now:
        alerts.end(db, ctx, row, "its cause is gone")
    elif row.state == SNOOZED and row.snoozed_until <= now:
        woken = step(row.state, Event.WOKEN, f"alert {row.id}")
        alerts.change(db, ctx, row, state=woken, snoozed_until=0.0, silence="")
        alerts.note(db, ctx, row.id, Event.WOKEN)
    elif (
        row.state == OPEN
        and (after := alerts.escalation_at(ctx, row.severity, row.opened_at)) <= now
    ):
        alerts.change(db, ctx, row, escalated_at=now)
        alerts.note(
            db, ctx, row.id, "escalated", text=f"nobody took it within {after - row.opened_at:g} s"
        )
    else:
        alerts.change(db, ctx, row)
