"""What wants attention: a group, an alert of devices that a silence snoozed, and channels."""

import msgspec

from browser.seed import DeviceReports
from shoal import wire
from shoal.controller.alerts import listing, silences
from shoal.controller.host.context import Context
from shoal.controller.notifications import channels
from shoal.controller.notifications.records import FAILED, SENT
from shoal.controller.rollouts import groups
from shoal.controller.rollouts.records import Selector
from shoal.controller.store import notification_tables

BOOT, GROUP, CHANNEL = "a77e", "harbour-lines", "plant-chat"
SITE, DEVICES = "mill-road", ("station-10", "station-16")


def seed_attention(ctx: Context) -> int:
    """The alert's id. After browser.seed.seed."""
    sender = DeviceReports(ctx)
    sender.boot = BOOT
    groups.create(ctx, actor="admin", name=GROUP, select=Selector(site="harbour"))
    channels.create(
        ctx, actor="admin", name=CHANNEL, kind="apprise", url="ntfys://ntfy.example/plant",
        sites=[SITE], quiet="22:00-07:00", zone="Europe/Berlin",
    )  # fmt: skip
    faults = [
        wire.FaultEvent(**sender.ids(name), cause="disk-full", detail="0 MB free of 28 GB")
        for name in DEVICES
    ]
    sender.ingest(faults)
    [alert] = listing.page(ctx, kind="disk")[0]
    silences.create(
        ctx, actor="admin", lasts_s=4 * 3600.0, reason="new disks are on their way", kind="disk",
        site=SITE,
    )  # fmt: skip
    test = channels.send_test(ctx, actor="admin", name=CHANNEL)
    with ctx.store.write() as db:
        table = notification_tables.delivery
        sent = {"state": SENT, "due_at": 0.0, "ended_at": ctx.clock(), "attempts": 1}
        db.execute(table.update().where(table.c.id == test).values(**sent))
        events = [msgspec.to_builtins(event) for event in channels.deliveries(ctx)[0].events]
        refused = sent | {"state": FAILED, "error": "ntfy.example: refused (403)", "attempts": 8}
        db.execute(
            table.insert().values(
                id="d-1", channel=CHANNEL, events=events * 2, created_at=ctx.clock(), **refused
            )
        )
    return alert.id
