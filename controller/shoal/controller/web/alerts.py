"""Alerts screen: open alerts first, each with its next step."""

from flask import redirect, request, url_for
from werkzeug.wrappers import Response

from shoal.controller.alerts import actions, alerts
from shoal.controller.alerts.records import Alert
from shoal.controller.rollouts import rollouts
from shoal.controller.web.screen import actor, blueprint, context, show

STATES = ("open", "acknowledged", "closed")
SEVERITIES = ("critical", "warning", "info")


@blueprint.get("/alerts")
def alert_list() -> str:
    """All alerts, or those in one state."""
    state = request.args.get("state", "")
    found = alerts.list_alerts(context(), state=state)
    found = sorted(found, key=_urgency)
    newest = {r.release: r.id for r in reversed(rollouts.list_rollouts(context()))}
    return show("alerts.html", alerts=found, state=state, rollouts=newest)


def _urgency(alert: Alert) -> tuple[int, int, float]:
    severity = SEVERITIES.index(alert.severity) if alert.severity in SEVERITIES else 1
    state = STATES.index(alert.state) if alert.state in STATES else 0
    return state, severity if state == 0 else 0, -alert.updated_at


@blueprint.post("/alerts/<int(max=9223372036854775807):id>/acknowledge")
def alert_acknowledge(id: int) -> Response:  # noqa: A002 - the API's word
    """Acknowledge an alert."""
    actions.acknowledge(context(), actor=actor("operator").name, id=id)
    return redirect(url_for("web.alert_list", state=request.form.get("state") or None), 303)
