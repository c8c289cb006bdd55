"""The lineage screen: what a thing was made from, and what came of it."""

from flask import request

from shoal.controller.lineage import lineage
from shoal.controller.web.screen import blueprint, context, show


@blueprint.get("/lineage")
def lineage_page() -> str:
    """The lineage of the thing in the query, or only the form that asks for one."""
    thing = request.args.get("thing", "").strip()
    found = lineage.lineage_of(context(), thing) if thing else None
    return show("lineage.html", found=found, thing=thing)
