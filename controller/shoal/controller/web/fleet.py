"""The fleet: how it is as a whole, and every device in it, found by filters in the address."""

from flask import request

from shoal.controller.fleet import devices
from shoal.controller.monitoring import performance
from shoal.controller.web.screen import blueprint, context, show

#: Filters of the fleet's table, as the address holds them.
FILTERS = ("q", "site", "profile", "ring", "state", "release")


@blueprint.get("/")
def fleet() -> str:
    """Health strip and the table of devices."""
    ctx = context()
    chosen = {name: request.args.get(name, "").strip() for name in FILTERS}
    problem = request.args.get("problem") == "1"
    found, page = devices.list_devices(
        ctx,
        q=chosen["q"],
        site=chosen["site"],
        profile=chosen["profile"],
        ring=chosen["ring"],
        state=chosen["state"],
        release=chosen["release"],
        problem=problem,
        cursor=request.args.get("cursor", ""),
    )
    return show(
        "fleet.html",
        health=performance.fleet_health(ctx),
        devices=found,
        page=page,
        chosen=chosen,
        problem=problem,
        filtered=problem or any(chosen.values()),
        facets=devices.facets(ctx),
    )
