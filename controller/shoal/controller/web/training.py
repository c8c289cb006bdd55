"""The screen on which a training is started."""

from flask import redirect, request, url_for
from werkzeug.wrappers import Response

from shoal import estimators
from shoal.controller.data import datasets
from shoal.controller.training import training
from shoal.controller.web.screen import actor, blueprint, context, show
from shoal.errors import InputError


@blueprint.get("/train")
def model_train() -> str:
    """The form for a training, with every estimator and parameter."""
    return show(
        "train.html",
        datasets=[one.ref for one in datasets.list_labelled_tables(context())],
        estimators=estimators.list_estimators(),
        model=request.args.get("model", ""),
    )


@blueprint.post("/train")
def model_train_start() -> Response:
    """Start the training that the form describes."""
    who, form = actor("operator"), request.form
    started = training.start_training(
        context(),
        actor=who.name,
        model=form.get("model", "").strip(),
        dataset=form.get("dataset", ""),
        estimator=form.get("estimator", ""),
        task=form.get("task", ""),
        params=estimators.typed(_lines(form.get("params", ""))),
    )
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
