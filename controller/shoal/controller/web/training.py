"""The screen on which a training is started."""

import tempfile
from pathlib import Path

from flask import redirect, request, url_for
from werkzeug.datastructures import FileStorage
from werkzeug.wrappers import Response

from shoal import estimators
from shoal.controller.access.roles import Actor
from shoal.controller.data import datasets
from shoal.controller.training import scripts, training
from shoal.controller.web.screen import actor, blueprint, context, may, show
from shoal.errors import InputError


@blueprint.get("/train")
def model_train() -> str:
    """The form for a training, with every estimator and parameter."""
    allowed = context().settings.operations.scripts
    return show(
        "train.html",
        scripts=allowed != training.NOBODY and may(allowed),
        datasets=[one.ref for one in datasets.list_labelled_tables(context())],
        estimators=estimators.list_estimators(),
        model=request.args.get("model", ""),
    )


@blueprint.post("/train")
def model_train_start() -> Response:
    """Start the training that the form describes."""
    who, form = actor("operator"), request.form
    if (file := request.files.get("script")) is not None and file.filename:
        return _start_script(who, file)
    started = training.start_training(
        context(),
        actor=who.name,
        model=form.get("model", "").strip(),
        dataset=form.get("dataset", ""),
        estimator=form.get("estimator", ""),
        task=form.get("task", ""),
        params=estimators.typed(_lines(form.get("params", ""))),
        revision=form.get("revision", "").strip()[:200],
    )
    return redirect(url_for("web.operation", id=started.id), 303)


def _start_script(who: Actor, file: FileStorage) -> Response:
    """Start a training by the script that was chosen."""
    form = request.form
    if form.get("estimator"):
        raise InputError("a script is trained instead of an estimator", "choose one of the two")
    with tempfile.NamedTemporaryFile(suffix=".py") as kept:
        file.save(kept)
        kept.flush()
        wanted = scripts.ScriptRequest(
            path=Path(kept.name),
            filename=file.filename or "",
            dataset=form.get("dataset", ""),
            entry=form.get("entry", "").strip(),
            task=form.get("task", ""),
            params=estimators.typed(_lines(form.get("params", ""))),
            revision=form.get("revision", "").strip()[:200],
        )
        name = form.get("model", "").strip()
        started = scripts.start(context(), who, model=name, request=wanted)
    return redirect(url_for("web.operation", id=started.id), 303)


def _lines(text: str) -> dict[str, str]:
    """Parameters, NAME=VALUE a line; InputError for a line that is none."""
    found = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        name, sign, value = (part.strip() for part in line.partition("="))
        if not sign or not name:
            raise InputError(f"parameter {line[:80]!r} has no value", "write one NAME=VALUE a line")
        found[name] = value
    return found
