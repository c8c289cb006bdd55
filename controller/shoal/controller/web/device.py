"""Device screen: releases served, windows, timeline and outbox ledger."""

from itertools import groupby

from shoal.controller.fleet import devices, ledger
from shoal.controller.rollouts import groups
from shoal.controller.rollouts.update_events import error_of
from shoal.controller.web import baselines, charts
from shoal.controller.web.screen import blueprint, context, day, show

WINDOWS, EVENTS = 240, 120


@blueprint.get("/devices/<name>")
def device(name: str) -> str:
    """The device's page."""
    ctx = context()
    found = devices.get_device(ctx, name)
    windows = devices.windows(ctx, name, limit=WINDOWS)
    events = devices.timeline(ctx, name, limit=EVENTS)
    models = sorted({w.model for w in windows})
    return show(
        "device.html",
        device=found,
        desired=groups.desired_state(ctx, name),
        series={m: charts.points([w for w in windows if w.model == m]) for m in models},
        baselines={m: baselines.of_subject(m, "device", name) for m in models},
        windows=windows[:20],
        days=[(d, list(es)) for d, es in groupby(events, key=lambda e: day(e.at))],
        last_fault=next((e for e in events if e.cause and found.error.endswith(error_of(e))), None),
        ledger=ledger.ledgers(ctx, name),
    )
