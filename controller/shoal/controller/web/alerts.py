"""Alerts screen: a page of alerts by filter, each with its next step and what one can do."""

from flask import redirect, request, url_for
from werkzeug.wrappers import Response

from shoal.controller.alerts import actions, listing
from shoal.controller.rollouts import listing as rollout_listing
from shoal.controller.web.screen import actor, asked, blueprint, context, show
from shoal.errors import InputError

PAGE = 50
SNOOZES_S = {"1 hour": 3_600, "8 hours": 28_800, "1 day": 86_400, "1 week": 604_800}
_FILTERS = ("state", "severity", "kind", "site", "model", "assigned", "q")


@blueprint.get("/alerts")
def alert_list() -> str:
    """A page of alerts, the urgent ones first."""
    ctx = context()
    given = asked(*_FILTERS, sort="urgency")
    found, page = listing.page(ctx, **given, limit=PAGE)
    rolled_out = {one.release for one in found if one.kind == "rollout" and one.release}
    newest = rollout_listing.newest_of(ctx, rolled_out)
    return show(
        "alerts.html", alerts=found, filters=given, state=given["state"],
        page=page, counts=listing.counts(ctx), rollouts=newest, snoozes=SNOOZES_S,
    )  # fmt: skip


@blueprint.get("/alerts/<int(max=9223372036854775807):id>")
def alert_page(id: int) -> str:  # noqa: A002 - the API's word
    """One alert: its devices and its history."""
    ctx = context()
    devices, page = listing.members(ctx, id, request.args.get("cursor", ""), PAGE)
    return show(
        "alert.html", alert=listing.get_alert(ctx, id), devices=devices, page=page,
        history=listing.history(ctx, id),
    )  # fmt: skip


@blueprint.post("/alerts/<int(max=9223372036854775807):id>/<verb>")
def alert_act(id: int, verb: str) -> Response:  # noqa: A002 - the API's word
    """Acknowledge, snooze, wake or resolve an alert, or take it: assign it to oneself."""
    who, ctx = actor("operator").name, context()
    if verb == "acknowledge":
        actions.acknowledge(ctx, actor=who, id=id)
    elif verb == "take":
        actions.assign(ctx, actor=who, id=id, to=who)
    elif verb == "snooze":
        actions.snooze(ctx, actor=who, id=id, for_s=_seconds())
    elif verb == "wake":
        actions.wake(ctx, actor=who, id=id)
    elif verb == "resolve":
        actions.resolve(ctx, actor=who, id=id)
    else:
        raise InputError(f"{verb!r:.40} of an alert", "go back and use a button")
    return redirect(url_for("web.alert_list", state=request.form.get("state") or None), 303)


def _seconds() -> float:
    try:
        return float(request.form.get("for_s", ""))
    except ValueError as error:
        raise InputError("the length of a snooze", "choose one of the list") from error
