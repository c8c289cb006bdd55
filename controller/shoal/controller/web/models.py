"""Model and release screens: lineage, metrics, gates, signatures, service."""

from flask import redirect, request, url_for
from werkzeug.wrappers import Response

from shoal.controller.data import datasets
from shoal.controller.monitoring import performance
from shoal.controller.operations import operations
from shoal.controller.releases import models, releases
from shoal.controller.rollouts import rollouts
from shoal.controller.web.screen import actor, blueprint, context, show
from shoal.errors import AbsentError

#: Period of a release's in-service metrics.
IN_SERVICE_S = 86_400.0


@blueprint.get("/models")
def model_list() -> str:
    """All models."""
    return show("models.html", models=models.list_models(context()))


@blueprint.get("/models/<name>")
def model(name: str) -> str:
    """One model's releases, newest first."""
    ctx = context()
    return show(
        "model.html",
        model=models.get_model(ctx, name),
        releases=releases.list_releases(ctx, model=name),
    )


@blueprint.get("/releases/<ref>")
def release(ref: str) -> str:
    """One version of a model."""
    ctx = context()
    found = releases.get_release(ctx, ref)
    return show(
        "release.html",
        release=found,
        why_refused=releases.why_refused(ctx, ref),
        dataset=_find(datasets.get_dataset, found.dataset),
        operation=_find(operations.get_operation, found.operation),
        service=performance.performance(
            ctx, model=found.model, release=ref, since=ctx.clock() - IN_SERVICE_S
        ),
        rollouts=[r for r in rollouts.list_rollouts(ctx) if r.release == ref],
    )


@blueprint.get("/releases/<ref>/publish")
def release_confirm(ref: str) -> str:
    """Confirmation dialog for publishing."""
    return show("release_confirm.html", release=releases.get_release(context(), ref))


@blueprint.post("/releases/<ref>/publish")
def release_publish(ref: str) -> Response:
    """Sign a release for the stable ring."""
    override = request.form.get("override", "").strip()
    releases.publish(context(), actor=actor("approver").name, ref=ref, override=override)
    return redirect(url_for("web.release", ref=ref), 303)


def _find(get, name: str):  # type: ignore[no-untyped-def]
    """A record named by the lineage; None when it does not exist."""
    if not name:
        return None
    try:
        return get(context(), name)
    except AbsentError:
        return None
