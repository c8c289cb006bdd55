"""Rollout screens: list, progress, and actions that show the affected devices first."""

from flask import redirect, request, url_for
from werkzeug.wrappers import Response

from shoal.controller.fleet import devices
from shoal.controller.releases import releases
from shoal.controller.rollouts import device_states, listing, rollouts
from shoal.controller.rollouts.behaviour_records import METRICS, BehaviourGate, Evidence
from shoal.controller.rollouts.records import Rollout, RolloutPlan, Selector, StagePlan
from shoal.controller.web import wording
from shoal.controller.web.screen import actor, asked, blueprint, context, show
from shoal.errors import AbsentError

TILES = 120
#: Releases to choose from; older ones have a button on their own page.
MOST_RELEASES = 200
_ACTIONS = {"approve": rollouts.approve, "pause": rollouts.pause, "resume": rollouts.resume}
#: Causes for which a device is skipped, not failed.
SKIPS = frozenset(
    {
        device_states.UNSUPPORTED, device_states.OUTDATED, device_states.CLOCK, "decommissioned",
        "skipped",
    }
)  # fmt: skip


@blueprint.get("/rollouts")
def rollout_list() -> str:
    """A page of rollouts, newest first."""
    ctx, given = context(), asked("state", "model", "release", "q", sort="-created")
    found, page = listing.page(ctx, **given)
    return show("rollouts.html", rollouts=found, page=page, given=given, states=listing.states(ctx))


@blueprint.get("/rollouts/new")
def rollout_new() -> str:
    """The form for a rollout in two stages."""
    ctx = context()
    return show(
        "rollout_new.html",
        facets=devices.facets(ctx),
        releases=releases.signed_refs(ctx, MOST_RELEASES),
        chosen=request.args.get("release", ""),
    )


@blueprint.post("/rollouts/new")
def rollout_start() -> Response:
    """Start the rollout that the form describes: canaries first, then a share of the rest."""
    who = actor("operator")
    form = request.form
    where = Selector(site=form.get("site", ""), percent=form.get("percent", 100.0, type=float))
    plan = RolloutPlan(
        release=form.get("release", ""),
        stages=[
            StagePlan(name="canary", select=Selector(ring="canary", site=where.site)),
            StagePlan(name="rest", select=where),
        ],
        on_failure=form.get("on_failure", "pause"),
        gates=[BehaviourGate(metric=name) for name in METRICS if form.get(f"gate_{name}")],
    )
    started = rollouts.start(context(), actor=who.name, plan=plan)
    return redirect(url_for("web.rollout", id=started.id), 303)


@blueprint.get("/rollouts/<id>")
def rollout(id: str) -> str:  # noqa: A002 - the API's word
    """One rollout: stages, failures and devices."""
    ctx = context()
    given = asked("state", "cause", "q", sort="failed")
    state, cause = given["state"], given["cause"]
    found, page = rollouts.rollout_devices(ctx, id, limit=TILES, **given)
    one = rollouts.get_rollout(ctx, id)
    causes = rollouts.failures(ctx, id)
    return show(
        "rollout.html",
        rollout=one,
        devices=found,
        page=page,
        affected=rollouts.affected_devices(ctx, id),
        failed=[group for group in causes if group[0] not in SKIPS],
        skipped=[group for group in causes if group[0] in SKIPS],
        looks=_looks(one),
        actions=wording.actions(one.state, one.trailing.state if one.trailing else ""),
        state=state,
        cause=cause,
        q=given["q"],
    )


def _looks(one: Rollout) -> list[Evidence]:
    """The newest look of the behaviour gates at each stage that has begun."""
    if not one.plan.gates:
        return []
    begun = [stage.name for stage in one.stages if stage.started_at]
    found = [rollouts.evidence(context(), one.id, stage=name, limit=1)[0] for name in begun]
    return [look for looks in found for look in looks]


@blueprint.get("/rollouts/<id>/<action>")
def rollout_confirm(id: str, action: str) -> str:  # noqa: A002
    """Confirmation dialog with the number of affected devices."""
    ctx = context()
    if action not in wording.ACTIONS:
        raise AbsentError("action", action)
    return show(
        "rollout_confirm.html",
        rollout=rollouts.get_rollout(ctx, id),
        action=action,
        affected=rollouts.affected_devices(ctx, id),
    )


@blueprint.post("/rollouts/<id>/<action>")
def rollout_act(id: str, action: str) -> Response:  # noqa: A002
    """Approve, pause, resume or abort."""
    who = actor("approver" if action == "approve" else "operator")
    ctx = context()
    if action == "abort":
        rollouts.abort(ctx, actor=who.name, id=id, rollback=request.form.get("rollback") == "1")
    elif action in _ACTIONS:
        _ACTIONS[action](ctx, actor=who.name, id=id)
    else:
        raise AbsentError("action", action)
    return redirect(url_for("web.rollout", id=id), 303)
