"""Fleet screen: health of the fleet, and its devices with filters from the URL."""

from typing import Any

from flask import request

from shoal.controller.fleet import devices
from shoal.controller.fleet.certificates import EXPIRING_S
from shoal.controller.monitoring import performance
from shoal.controller.needs.needs import LONG_OFFLINE_S
from shoal.controller.web.screen import blueprint, context, show

#: Filters of the device table, as URL arguments.
FILTERS = ("q", "site", "profile", "ring", "state", "release")


@blueprint.get("/fleet")
def fleet() -> str:
    """Health summary and the table of devices."""
    ctx = context()
    chosen: dict[str, Any] = {name: request.args.get(name, "").strip() for name in FILTERS}
    problem = request.args.get("problem") == "1"
    expiring = request.args.get("expiring") == "1"
    silent = request.args.get("silent") == "1"
    found, page = devices.list_devices(
        ctx,
        **chosen,
        problem=problem,
        expiring_s=EXPIRING_S if expiring else 0,
        silent_s=LONG_OFFLINE_S if silent else 0,
        cursor=request.args.get("cursor", ""),
    )
    return show(
        "fleet.html",
        health=performance.fleet_health(ctx),
        devices=found,
        page=page,
        chosen=chosen,
        problem=problem,
        expiring=expiring,
        silent=silent,
        filtered=problem or expiring or silent or any(chosen.values()),
        facets=devices.facets(ctx),
    )
