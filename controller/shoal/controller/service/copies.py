"""Raises an alert for a device that is there twice, and closes it when one has been alone."""

from sqlalchemy import Connection, select

from shoal.controller import copies
from shoal.controller.io.tables import alert
from shoal.controller.service import alerts
from shoal.controller.service.context import Context


def tell(db: Connection, ctx: Context, device: str, site: str, sign: str) -> None:
    """There is a sign of a second agent."""
    alerts.raise_alert(db, ctx, copies.draft(device, site, sign))


def watch(ctx: Context) -> None:
    """Close what had no sign for a while."""
    calm = (
        alert.c.key.startswith(copies.KEY),
        alert.c.state.in_(alerts.STANDING),
        alert.c.updated_at < ctx.clock() - copies.CALM_S,
    )
    with ctx.store.read() as db:
        keys = db.scalars(select(alert.c.key).where(*calm)).all()
    if keys:
        with ctx.store.write() as db:
            for key in keys:
                why = f"no sign of a second one for {copies.CALM_S / 60:.0f} minutes"
                alerts.close(db, ctx, key, why)
