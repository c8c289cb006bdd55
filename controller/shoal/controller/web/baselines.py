"""Baselines: what is learnt of a model's inputs, and what a person makes of it."""

from flask import redirect, request, url_for
from werkzeug.wrappers import Response

from shoal.controller.monitoring import baseline_changes, baselines, drift_history
from shoal.controller.monitoring.baseline_changes import ACTIONS
from shoal.controller.monitoring.records import Baseline
from shoal.controller.releases import models
from shoal.controller.web.screen import actor, blueprint, context, show
from shoal.errors import AbsentError, InputError

PAGE, CHANGES = 50, 5
_FILTERS = ("site", "scope", "state", "release")


@blueprint.get("/drift/baselines")
def baseline_list() -> str:
    """A page of a model's baselines, and the newest changes of them."""
    ctx = context()
    names = [m.name for m in models.list_models(ctx)]
    model = request.args.get("model") or (names[0] if names else "")
    if not model:
        raise AbsentError("model", model, "add one: the Models page says how")
    given = {name: request.args.get(name, "") for name in _FILTERS}
    cursor = request.args.get("cursor", "")
    found, page = baselines.page(ctx, model=model, **given, cursor=cursor, limit=PAGE)
    subjects = drift_history.drift_subjects(ctx, model)
    return show(
        "baselines.html", models=names, model=model, filters=given, baselines=found, page=page,
        states=baselines.STATES, sites=[name for scope, name in subjects if scope == "site"],
        changes=baseline_changes.page(ctx, model=model, limit=CHANGES)[0],
    )  # fmt: skip


@blueprint.get("/drift/baselines/<action>")
def baseline_confirm(action: str) -> str:
    """Confirmation dialog: which baselines it is for."""
    actor("operator")
    if action not in ACTIONS:
        raise AbsentError("action", action[:40], f"there are: {', '.join(ACTIONS)}")
    model, device, site = (request.args.get(n, "") for n in ("model", "device", "site"))
    found, page = baselines.page(context(), model=model, device=device, site=site, limit=1)
    return show(
        "baseline_confirm.html", action=action, model=model, device=device, site=site,
        number=page.total, one=found[0] if found else None,
    )  # fmt: skip


@blueprint.post("/drift/baselines/<action>")
def baseline_act(action: str) -> Response:
    """Accept, reset, freeze or unfreeze; the engine applies it within seconds."""
    who = actor("operator").name
    if action not in ACTIONS:
        raise InputError(f"{action!r:.40} of a baseline", "go back and use a button")
    model, device, site = (request.form.get(n, "") for n in ("model", "device", "site"))
    baseline_changes.ask(
        context(), actor=who, action=action, model=model, device=device, site=site,
        whole_model=not device and not site,
    )  # fmt: skip
    return redirect(url_for("web.baseline_list", model=model, site=site or None), 303)


def of_subject(model: str, scope: str, subject: str) -> Baseline | None:
    """The baseline of a subject's newest release; None before its first window is looked at."""
    try:
        return baselines.show(context(), model, scope, subject).baseline
    except AbsentError:
        return None
