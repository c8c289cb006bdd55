"""Devices that send more than their budget: an alert for each, and its connection cut in the end.

The broker admits no device whose row says that it is cut off (broker.io.process). It is admitted
again by itself; each further time it stays out twice as long.
"""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, delete, select, update

from shoal.controller.alerts import alerts
from shoal.controller.alerts.records import Draft
from shoal.controller.host.context import Context
from shoal.controller.ingest.message_budgets import Excess
from shoal.controller.store.chunks import chunks
from shoal.controller.store.flood_tables import flood
from shoal.controller.store.tables import device

#: Seconds of the first cut, and of the longest.
CUT_S, LONGEST_S = 60.0, 3_600.0
#: The alert closes after so many seconds without a refused message.
CALM_S = 600.0
#: Devices of one report; if more do, the budget is too small, and their alerts say enough.
_MOST = 200
_KEY = "flood/"


def record(ctx: Context, excess: Sequence[Excess]) -> None:
    """Store what was refused, raise the alerts, and cut off who goes on."""
    reported = {one.device: one for one in _cut_first(excess)[:_MOST]}
    if not reported:
        return
    with ctx.store.write() as db:
        sites = _sites(db, list(reported))
        known = _rows(db, list(reported))
        for name, one in reported.items():
            if name in sites:
                row = _store(db, ctx, one, known.get(name))
                alerts.raise_alert(db, ctx, alert_draft(ctx, row, sites[name]), findings=0)


def close_alerts(ctx: Context) -> None:
    """Close alerts of devices that keep to their budget again."""
    calm = (flood.c.refused_at < ctx.clock() - CALM_S) & (flood.c.cut_until < ctx.clock())
    with ctx.store.read() as db:
        names = list(db.scalars(select(flood.c.device).where(calm)))
    if names:
        with ctx.store.write() as db:
            for name in names:
                alerts.close(db, ctx, f"{_KEY}{name}", "it keeps to its budget")
                db.execute(delete(flood).where(flood.c.device == name))


def _cut_first(excess: Sequence[Excess]) -> list[Excess]:
    return sorted(excess, key=lambda one: (not one.cut, -one.messages))


def _store(db: Connection, ctx: Context, one: Excess, row: Any) -> dict[str, Any]:
    """The device's row, updated. What arrives while it is cut off was on its way already."""
    now = ctx.clock()
    values = dict(row._mapping) if row is not None else _new(one.device, now)
    values |= {
        "refused_at": now,
        "messages": values["messages"] + one.messages,
        "bytes": values["bytes"] + one.bytes,
    }
    if one.cut and values["cut_until"] <= now:
        wait_s = min(LONGEST_S, CUT_S * 2 ** min(values["cuts"], 10))
        values |= {"cut_until": now + wait_s, "cuts": values["cuts"] + 1}
    if row is None:
        db.execute(flood.insert().values(**values))
    else:
        db.execute(update(flood).where(flood.c.device == one.device).values(**values))
    return values


def _new(name: str, now: float) -> dict[str, Any]:
    zero = dict.fromkeys(("messages", "bytes", "cut_until", "cuts"), 0)
    return {"device": name, "since": now, "refused_at": now, **zero}


def alert_draft(ctx: Context, row: dict[str, Any], site: str) -> Draft:
    """Alert of a device over its budget. row: of the table of floods."""
    name, limits, cut_s = row["device"], ctx.settings.ingest, row["cut_until"] - ctx.clock()
    detail = (
        f"{row['messages']} messages ({row['bytes'] / 2**20:.1f} MB) were refused: a device may "
        f"send {limits.device_messages_s:g} messages and {limits.device_kib_s:g} KiB a second, and "
        "what cannot be read counts double. They are not acknowledged: an agent keeps them and "
        "sends them again."
    )
    if cut_s > 0:
        detail += f" The broker refuses its connection for {cut_s:.0f} s from now."
    return Draft(
        key=f"{_KEY}{name}",
        kind="device",
        severity="critical" if row["cuts"] else "warning",
        title=f"{name} sends more than its budget",
        detail=detail,
        next_step=(
            f"If its certificate may be stolen: shoal device decommission {name}. If it has this "
            "much to say: raise device_messages_s or device_kib_s under [ingest] of "
            "controller.toml and restart the controller"
        ),
        site=site,
    )


def _sites(db: Connection, names: Sequence[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for some in chunks(names):
        rows = db.execute(select(device.c.name, device.c.site).where(device.c.name.in_(some)))
        found |= {row.name: row.site for row in rows}
    return found


def _rows(db: Connection, names: Sequence[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for some in chunks(names):
        rows = db.execute(select(flood).where(flood.c.device.in_(some)))
        found |= {row.device: row for row in rows}
    return found
