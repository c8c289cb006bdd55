"""Undeployment screens: a question that shows whom it affects, and progress by device."""

from flask import redirect, request, url_for
from werkzeug.wrappers import Response

from shoal.controller.fleet import devices
from shoal.controller.releases import models
from shoal.controller.rollouts import undeployments
from shoal.controller.rollouts.records import Selector
from shoal.controller.web.screen import actor, blueprint, context, show
from shoal.errors import AbsentError

ROWS = 120


@blueprint.get("/models/<name>/undeploy")
def undeploy_confirm(name: str) -> str:
    """Confirmation dialog for removing a model from devices."""
    ctx = context()
    return show(
        "undeploy_confirm.html", model=models.get_model(ctx, name), facets=devices.facets(ctx)
    )


@blueprint.post("/models/<name>/undeploy")
def undeploy_start(name: str) -> Response:
    """Order the devices of a site, a named one, or all to remove the model."""
    who, form = actor("operator"), request.form
    device, site = form.get("device", "").strip(), form.get("site", "")
    started = undeployments.start(
        context(),
        actor=who.name,
        model=name,
        devices=[device] if device else [],
        select=Selector(site="" if device else site),
        all=not device and not site,
    )
    return redirect(url_for("web.undeployment", id=started.id), 303)


@blueprint.get("/undeployments/<id>")
def undeployment(id: str) -> str:  # noqa: A002 - the API's word
    """One undeployment and its devices."""
    ctx, state = context(), request.args.get("state", "")
    found, page = undeployments.undeployment_devices(
        ctx, id, state=state, cursor=request.args.get("cursor", ""), limit=ROWS
    )
    return show(
        "undeployment.html",
        undeployment=undeployments.get_undeployment(ctx, id),
        devices=found,
        page=page,
        state_=state,
        active=undeployments.ACTIVE,
    )


@blueprint.post("/undeployments/<id>/<action>")
def undeployment_act(id: str, action: str) -> Response:  # noqa: A002
    """Cancel it."""
    who = actor("operator")
    if action != "cancel":
        raise AbsentError("action", action)
    undeployments.cancel(context(), actor=who.name, id=id)
    return redirect(url_for("web.undeployment", id=id), 303)
