"""Front page: what needs a person, the worst first, each with its button."""

from typing import Any

from flask import redirect, request, url_for
from werkzeug.wrappers import Response

from shoal.controller.monitoring import performance
from shoal.controller.needs import needs
from shoal.controller.web.screen import blueprint, context, show


@blueprint.get("/")
def need_list() -> str | Response:
    """A page of what needs a person; an old address of the fleet with filters leads there."""
    if set(request.args) - {"kind", "cursor"}:
        filters: dict[str, Any] = request.args.to_dict()
        return redirect(url_for("web.fleet", **filters))
    ctx, kind = context(), request.args.get("kind", "")
    found, page = needs.list_needs(ctx, kind=kind, cursor=request.args.get("cursor", ""))
    return show(
        "needs.html", needs=found, page=page, kind=kind, health=performance.fleet_health(ctx)
    )
