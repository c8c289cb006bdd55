"""Deletion screens: what depends on a release, model or dataset, and the question."""

from flask import redirect, request, url_for
from werkzeug.wrappers import Response

from shoal.controller.data import datasets
from shoal.controller.deletion import deletion, forgetting
from shoal.controller.deletion.dependents import DATASET, MODEL, RELEASE, Item
from shoal.controller.web.screen import actor, blueprint, context, masking_keys, show
from shoal.errors import AbsentError

_KINDS = {"releases": RELEASE, "models": MODEL, "datasets": DATASET}


@blueprint.get("/delete/<kind>/<name>")
def delete_confirm(kind: str, name: str) -> str:
    """Confirmation dialog, or what has to be done first."""
    item = _item(kind, name)
    found = deletion.list_dependents(context(), item)
    hard = [one for one in found if not one.safe]
    return show(
        "delete_confirm.html",
        item=item,
        hard=hard,
        safe=[one for one in found if one.safe],
        back=_back(kind, name),
        act=url_for("web.delete_act", kind=kind, name=name),
    )


@blueprint.post("/delete/<kind>/<name>")
def delete_act(kind: str, name: str) -> Response:
    """Delete it."""
    who, item = actor("approver").name, _item(kind, name)
    also = request.form.get("with_dependents") == "1"
    if item.kind == RELEASE:
        deletion.delete_release(context(), actor=who, ref=name, with_dependents=also)
        return redirect(url_for("web.model", name=name.partition("@")[0]), 303)
    if item.kind == DATASET:
        deletion.delete_dataset(context(), actor=who, ref=name, with_dependents=also)
        return redirect(url_for("web.dataset_list"), 303)
    deletion.delete_model(context(), actor=who, name=name)
    return redirect(url_for("web.model_list"), 303)


@blueprint.get("/datasets/<name>/forget")
def forget_form(name: str) -> str:
    """The form for a subject whose rows are to be erased."""
    newest = datasets.versions_of(context(), name)[0]
    return show("forget.html", name=name, columns=[c.name for c in newest.columns], found=None)


@blueprint.post("/datasets/<name>/forget")
def forget_act(name: str) -> str:
    """Erase a subject's rows; the page names what was trained on them."""
    who, form = actor("approver").name, request.form
    found = forgetting.forget(
        context(), masking_keys(), actor=who, name=name, column=form.get("column", ""),
        value=form.get("value", ""),
    )  # fmt: skip
    return show("forget.html", name=name, columns=[], found=found)


def _item(kind: str, name: str) -> Item:
    if kind not in _KINDS:
        raise AbsentError("kind", kind)
    return Item(_KINDS[kind], name)


def _back(kind: str, name: str) -> str:
    if kind == "releases":
        return url_for("web.release", ref=name)
    return url_for("web.model", name=name) if kind == "models" else url_for("web.dataset_list")
