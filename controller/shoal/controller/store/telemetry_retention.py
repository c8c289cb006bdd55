"""Retention: deletes telemetry and changes that are older than the settings say."""

from sqlalchemy import delete

from shoal.controller.host.context import Context
from shoal.controller.store import changes, tables

CHANGES_S = 3_600.0


def delete_expired(ctx: Context) -> None:
    """Delete telemetry past its retention, and changes that no console asks for any more."""
    now = ctx.clock()
    before = now - ctx.settings.fleet.retention_days * 86_400
    expired = (
        delete(tables.window).where(tables.window.c.received_at < before),
        delete(tables.drift_point).where(tables.drift_point.c.at < before),
        delete(tables.finding).where(tables.finding.c.at < before),
        delete(tables.device_event).where(tables.device_event.c.received_at < before),
    )
    with ctx.store.write() as db:
        for statement in expired:
            db.execute(statement)
        changes.forget(db, now - CHANGES_S)
