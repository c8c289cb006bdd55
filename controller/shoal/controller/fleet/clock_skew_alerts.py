"""Looks at what devices have told of their clocks, and raises an alert for a site's wrong ones."""

from collections import defaultdict

from sqlalchemy import select

from shoal.controller.alerts import alerts
from shoal.controller.fleet import clock_skew
from shoal.controller.fleet.clock_skew import Clock
from shoal.controller.host.context import Context
from shoal.controller.store.tables import alert, device


def watch(ctx: Context) -> None:
    """Open, change and close the alerts of clocks: one a site, as long as one there is off."""
    limit_s, sites = ctx.settings.fleet.clock_skew_s, _known(ctx)
    with ctx.store.read() as db:
        standing = {
            row.key: row.detail
            for row in db.execute(
                select(alert.c.key, alert.c.detail).where(
                    alert.c.key.startswith("clock/"), alert.c.state.in_(alerts.STANDING)
                )
            )
        }
    wrong = {}
    for site, known in sites.items():
        off = [one for one in known if clock_skew.is_off(one, limit_s)]
        if off:
            said = clock_skew.draft(site, off, len(known), limit_s)
            wrong[said.key] = said
    new = [said for key, said in wrong.items() if standing.get(key) != said.detail]
    gone = standing.keys() - wrong.keys()
    if new or gone:
        with ctx.store.write() as db:
            for said in new:
                alerts.raise_alert(db, ctx, said, findings=said.key not in standing)
            for key in gone:
                alerts.close(db, ctx, key, "every clock there is right now")


def _known(ctx: Context) -> dict[str, list[Clock]]:
    """Site -> clocks of its enrolled devices that have told of them."""
    told = select(
        device.c.site, device.c.name, device.c.clock_skew_s, device.c.clock_error_s
    ).where(device.c.state == "enrolled", device.c.clock_error_s >= 0)
    sites: dict[str, list[Clock]] = defaultdict(list)
    with ctx.store.read() as db:
        for row in db.execute(told):
            sites[row.site].append(Clock(row.name, row.clock_skew_s, row.clock_error_s))
    return sites
