"""Model and release screens: imports, lineage, metrics, gates, signatures, service."""

from collections.abc import Callable
from pathlib import Path

import msgspec
from flask import redirect, request, url_for
from werkzeug.wrappers import Response

from shoal.controller.data import datasets
from shoal.controller.mlflow import imports as mlflow
from shoal.controller.monitoring import performance
from shoal.controller.operations import operations
from shoal.controller.releases import models, releases, retirement
from shoal.controller.rollouts import listing, release_revocation, undeployments
from shoal.controller.training import imports
from shoal.controller.web.screen import (
    actor,
    asked,
    blueprint,
    context,
    mlflow_server,
    read_facts,
    show,
)
from shoal.errors import AbsentError, InputError
from shoal.manifest import TENSORS
from shoal.tasks import KINDS

#: Clock hours of a release's metrics in service, the one that runs included.
IN_SERVICE_HOURS, HOUR_S = 24, 3_600.0
#: Datasets to choose from, the newest ones.
MOST_DATASETS = 200


@blueprint.get("/models")
def model_list() -> str:
    """A page of models, by name."""
    everything, given = request.args.get("all") == "true", asked("q", sort="name")
    found, page = models.page(context(), retired=everything, **given)
    return show("models.html", models=found, everything=everything, page=page, given=given)


@blueprint.get("/import")
def model_import() -> str:
    """The form for an import."""
    ctx = context()
    return show(
        "import.html",
        datasets=[one.ref for one in datasets.page(ctx, limit=MOST_DATASETS)[0]],
        model=request.args.get("model", ""),
        tasks=[word for word in KINDS if word != TENSORS],
    )


@blueprint.post("/import")
def model_import_start() -> Response:
    """Start the import that the form describes."""
    who = actor("operator")
    request.max_content_length = imports.UPLOAD_LIMIT
    form, files = request.form, {}
    for field, file in request.files.items(multi=True):
        if file.filename:  # a browser sends an empty file where none was chosen
            file.stream.flush()
            # several data files are chosen at once, and have their own names
            name = f"{imports.DATA}{file.filename}" if field == "data" else field
            files[name] = imports.ImportFile(Path(file.stream.name), file.filename)
    version = form.get("mlflow", "").strip()
    if ("onnx" in files) == bool(version):
        raise InputError(
            "one thing can be imported", "choose an ONNX file, or name a version in MLflow"
        )
    wanted = imports.ImportRequest(
        task=form.get("task", ""),
        dataset=form.get("dataset", ""),
        labels=imports.parse_labels(form.get("labels", "")),
        pipeline="",
        files=files,
        kinds=form.get("kinds", ""),
        settings=form.get("settings", ""),
    )
    name = form.get("model", "").strip()
    if version:
        started = mlflow.start(
            context(), mlflow_server(), read_facts(), actor=who.name, model=name,
            reference=version, request=wanted,
        )  # fmt: skip
    else:
        started = imports.start(context(), read_facts(), actor=who.name, model=name, request=wanted)
    return redirect(url_for("web.operation", id=started.id), 303)


@blueprint.get("/models/<name>")
def model(name: str) -> str:
    """One model, and a page of its releases, newest first."""
    ctx, given = context(), asked("state", "q", sort="-created")
    found, page = releases.page(ctx, model=name, **given)
    return show(
        "model.html",
        model=models.get_model(ctx, name),
        releases=found,
        page=page,
        given=given,
        undeployments=undeployments.page(ctx, model=name, limit=5)[0],
    )


@blueprint.get("/releases/<ref>")
def release(ref: str) -> str:
    """One version of a model."""
    ctx = context()
    found = releases.get_release(ctx, ref)
    since = (ctx.clock() // HOUR_S - (IN_SERVICE_HOURS - 1)) * HOUR_S
    newest, of_all = listing.page(ctx, release=ref, limit=3)
    return show(
        "release.html",
        release=found,
        attested=releases.manifest_of(ctx, found.ref)[0].provenance is not msgspec.UNSET,
        parent=_find(releases.get_release, found.parent),
        dataset=_find(datasets.get_dataset, found.dataset),
        operation=_find(operations.get_operation, found.operation),
        service=performance.performance(
            ctx, model=found.model, release=ref, since=since, until=ctx.clock()
        ),
        rollouts=newest,
        rolled_out=of_all.total,
        since=since,
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


@blueprint.get("/releases/<ref>/revoke")
def release_revoke_confirm(ref: str) -> str:
    """Confirmation dialog for revoking a release."""
    return show("revoke_confirm.html", release=releases.get_release(context(), ref))


@blueprint.post("/releases/<ref>/revoke")
def release_revoke(ref: str) -> Response:
    """Revoke a release for good."""
    reason = request.form.get("reason", "").strip()
    release_revocation.revoke(context(), actor=actor("admin").name, ref=ref, reason=reason)
    return redirect(url_for("web.release", ref=ref), 303)


@blueprint.post("/releases/<ref>/<action>")
def release_act(ref: str, action: str) -> Response:
    """Retire a release, or take it back."""
    _act(action, retirement.retire_release, retirement.unretire_release, ref=ref)
    return redirect(url_for("web.release", ref=ref), 303)


@blueprint.post("/models/<name>/<action>")
def model_act(name: str, action: str) -> Response:
    """Retire a model, or take it back."""
    _act(action, retirement.retire_model, retirement.unretire_model, name=name)
    return redirect(url_for("web.model", name=name), 303)


def _act(
    action: str, retire: Callable[..., None], take_back: Callable[..., None], **subject: str
) -> None:
    """Retire the subject, or take it back."""
    who, ctx = actor("operator"), context()
    if action == "retire":
        reason = request.form.get("reason", "").strip()
        retire(ctx, actor=who.name, reason=reason, **subject)
    elif action == "unretire":
        take_back(ctx, actor=who.name, **subject)
    else:
        raise AbsentError("action", action)


@blueprint.get("/releases/<ref>/retire")
def release_retire(ref: str) -> str:
    """Confirmation dialog for retiring a release."""
    found = releases.get_release(context(), ref)
    back, act = (
        url_for("web.release", ref=ref),
        url_for("web.release_act", ref=ref, action="retire"),
    )
    return show("retire_confirm.html", what=found.ref, back=back, act=act, whole=False)


@blueprint.get("/models/<name>/retire")
def model_retire(name: str) -> str:
    """Confirmation dialog for retiring a model."""
    models.get_model(context(), name)
    back, act = (
        url_for("web.model", name=name),
        url_for("web.model_act", name=name, action="retire"),
    )
    return show("retire_confirm.html", what=name, back=back, act=act, whole=True)
