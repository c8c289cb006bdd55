"""Notifications screen: channels with a test button, and what was delivered."""

from flask import redirect, url_for
from werkzeug.wrappers import Response

from shoal.controller.notifications import channels
from shoal.controller.web.screen import actor, blueprint, context, show


@blueprint.get("/notifications")
def notification_list() -> str:
    """Channels, and their newest messages."""
    actor("operator")
    ctx = context()
    found = channels.deliveries(ctx, limit=50)
    return show("notifications.html", channels=channels.list_channels(ctx), deliveries=found)


@blueprint.post("/notifications/<name>/test")
def notification_test(name: str) -> Response:
    """Queue a test message."""
    channels.send_test(context(), actor=actor("operator").name, name=name)
    return redirect(url_for("web.notification_list"), 303)


@blueprint.post("/notifications/deliveries/<id>/retry")
def notification_retry(id: str) -> Response:  # noqa: A002 - the API's word
    """Try a failed message again."""
    channels.retry(context(), actor=actor("operator").name, id=id)
    return redirect(url_for("web.notification_list"), 303)
