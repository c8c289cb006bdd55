"""Certificates of devices that end soon: a device renews its own long before."""

from typing import Any

from sqlalchemy import or_, select

from shoal.controller.alerts import members
from shoal.controller.alerts.members import Sign
from shoal.controller.conditions.drafts import draft, duration
from shoal.controller.host.context import Context
from shoal.controller.store.alert_tables import alert_member
from shoal.controller.store.chunks import chunks
from shoal.controller.store.tables import device

KIND = "certificate"
#: With less left it is critical, seconds.
SOON_S = 3 * 86_400.0


def step(ctx: Context) -> None:
    """Raise and end the alerts of certificates; costs by those that end soon, by their index."""
    now = ctx.clock()
    before = now + ctx.settings.alerts.certificate_s
    ends = device.c.certificate_expires_at
    columns = (device.c.name, device.c.site, ends)
    ending = select(*columns).where(ends > 0, ends < before, device.c.state == "enrolled")
    mine = (alert_member.c.alert_key >= f"{KIND}/") & (alert_member.c.alert_key < f"{KIND}0")
    renewed = (
        select(alert_member.c.device)
        .outerjoin(device, device.c.name == alert_member.c.device)
        .where(mine, or_(ends >= before, device.c.state != "enrolled", device.c.name.is_(None)))
    )
    standing = select(alert_member.c.device, alert_member.c.severity).where(mine)
    with ctx.store.read() as db:
        over = list(db.scalars(renewed))
        known = {row.device: row.severity for row in db.execute(standing)}
        signs = [_sign(row, now) for row in db.execute(ending)]
    signs = [sign for sign in signs if known.get(sign.device) != sign.severity]
    for names in chunks(over):
        with ctx.store.write() as db:
            found = members.of_devices(db, names)
            gone = members.end(db, [(name, KIND, "") for name in names], found)
            members.refresh(db, ctx, gone, draft)
    for some in chunks(signs):
        with ctx.store.write() as db:
            found = members.of_devices(db, [sign.device for sign in some])
            members.refresh(db, ctx, members.show(db, ctx, some, found), draft)


def _sign(row: Any, now: float) -> Sign:
    left = row.certificate_expires_at - now
    detail = f"ends in {duration(left)}" if left > 0 else f"ended {duration(-left)} ago"
    severity = "warning" if left > SOON_S else "critical"
    return Sign(row.name, row.site, KIND, severity=severity, detail=detail)
