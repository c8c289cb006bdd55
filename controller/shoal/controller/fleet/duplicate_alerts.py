"""Raises an alert for a device that is there twice, and closes it when one has been alone."""

from sqlalchemy import Connection, select

from shoal.controller.alerts import alerts
from shoal.controller.fleet import duplicate_devices
from shoal.controller.host.context import Context
from shoal.controller.store.tables import alert


def tell(db: Connection, ctx: Context, device: str, site: str, sign: str) -> None:
    """There is a sign of a second agent."""
    alerts.raise_alert(db, ctx, duplicate_devices.draft(device, site, sign))


def watch(ctx: Context) -> None:
    """Close what had no sign for a while."""
    calm = (
        alert.c.key.startswith(duplicate_devices.KEY),
        alert.c.state.in_(alerts.STANDING),
        alert.c.updated_at < ctx.clock() - duplicate_devices.CALM_S,
    )
    with ctx.store.read() as db:
        keys = db.scalars(select(alert.c.key).where(*calm)).all()
    if keys:
        with ctx.store.write() as db:
            for key in keys:
                why = f"no sign of a second one for {duplicate_devices.CALM_S / 60:.0f} minutes"
                alerts.close(db, ctx, key, why)
