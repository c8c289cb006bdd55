"""Groups screens: what each group runs and since when, and which devices deviate and why."""

import msgspec
from flask import redirect, request, url_for
from werkzeug.wrappers import Response

from shoal.controller.fleet import devices
from shoal.controller.rollouts import groups, overrides
from shoal.controller.rollouts.records import Selector
from shoal.controller.web.screen import actor, blueprint, context, show
from shoal.errors import AbsentError

ROWS = 120


@blueprint.get("/groups")
def group_list() -> str:
    """All groups."""
    ctx = context()
    return show("groups.html", groups=groups.list_groups(ctx), facets=devices.facets(ctx))


@blueprint.post("/groups")
def group_create() -> Response:
    """Name the devices of a selection."""
    who, form = actor("operator"), request.form
    fields = ("site", "line", "profile", "ring", "label")
    given = {name: form.get(name, "").strip() for name in fields}
    select = msgspec.convert(given, Selector)
    made = groups.create(
        context(), actor=who.name, name=form.get("name", "").strip(), select=select
    )
    return redirect(url_for("web.group", name=made.name), 303)


@blueprint.get("/groups/<name>")
def group(name: str) -> str:
    """One group and its deviating devices."""
    ctx, state = context(), request.args.get("state", "")
    found, page = groups.deviations(
        ctx, group=name, state=state, cursor=request.args.get("cursor", ""), limit=ROWS
    )
    whole = groups.get_group(ctx, name)
    return show("group.html", group=whole, deviations=found, page=page, state_=state)


@blueprint.post("/groups/<name>/delete")
def group_delete(name: str) -> Response:
    """Delete a group."""
    groups.remove(context(), actor=actor("operator").name, name=name)
    return redirect(url_for("web.group_list"), 303)


@blueprint.post("/devices/<name>/decide/<action>")
def device_decide(name: str, action: str) -> Response:
    """Pin, hold or exclude a device, or end it."""
    who, form = actor("operator").name, request.form
    ctx, reason = context(), form.get("reason", "").strip()
    model = form.get("model", "")
    if action == "pin":
        release = form.get("release", "").strip()
        overrides.pin(ctx, actor=who, device=name, release=release, reason=reason)
    elif action == "unpin":
        overrides.unpin(ctx, actor=who, device=name, model=model)
    elif action == "hold":
        overrides.hold(ctx, actor=who, device=name, reason=reason)
    elif action == "release":
        overrides.release_hold(ctx, actor=who, device=name)
    elif action == "exclude":
        overrides.exclude(ctx, actor=who, device=name, model=model, reason=reason)
    elif action == "include":
        overrides.include(ctx, actor=who, device=name, model=model)
    else:
        raise AbsentError("action", action)
    return redirect(url_for("web.device", name=name), 303)
