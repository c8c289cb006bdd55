"""Run screens: all runs by filter and order, one run, and chosen runs side by side."""

from flask import redirect, request, url_for
from werkzeug.wrappers import Response

from shoal.controller.operations.operations import STATES
from shoal.controller.releases import models
from shoal.controller.runs import listing, recording
from shoal.controller.runs.records import KINDS
from shoal.controller.web import run_plots
from shoal.controller.web.screen import actor, blueprint, context, show
from shoal.errors import InputError

PAGE = 50
_FILTERS = ("model", "state", "kind", "dataset", "q", "sort", "order")


@blueprint.get("/runs")
def run_list() -> str:
    """A page of runs, and their parameters against their results."""
    ctx = context()
    given = {name: request.args.get(name, "").strip() for name in _FILTERS}
    found, page = listing.page(ctx, **given, cursor=request.args.get("cursor", ""), limit=PAGE)
    sorted_by = given["sort"].removeprefix("metrics.").strip("`")
    return show(
        "runs.html",
        runs=found,
        page=page,
        chosen=given,
        models=[one.name for one in models.list_models(ctx)],
        states=STATES,
        kinds=KINDS,
        metrics=sorted({name for run in found for name in run.metrics}),
        sorted_by="" if sorted_by == listing.BEST else sorted_by,
        plot=run_plots.parallel(found) if given["model"] else None,
    )


@blueprint.get("/runs/compare")
def run_compare() -> str:
    """Chosen runs side by side."""
    found = listing.compare_runs(context(), request.args.getlist("run"))
    return show(
        "run_compare.html",
        found=found,
        everything=request.args.get("all") == "true",
        plot=run_plots.parallel(found.runs),
        curves=run_plots.curves(found.runs),
    )


@blueprint.get("/runs/<id>")
def run(id: str) -> str:  # noqa: A002 - the API's word
    """One run."""
    found = listing.get_run(context(), id)
    return show("run.html", run=found, curves=run_plots.curves([found]))


@blueprint.post("/runs/<id>/annotate")
def run_annotate(id: str) -> Response:  # noqa: A002
    """Set the tags and the note that the form holds, a tag a line; a tag left out is removed."""
    who, form = actor("operator"), request.form
    before = listing.get_run(context(), id)
    tags: dict[str, str | None] = dict.fromkeys(before.tags)
    for line in filter(None, map(str.strip, form.get("tags", "").splitlines())):
        name, sign, value = (part.strip() for part in line.partition("="))
        if not sign or not name:
            raise InputError(f"tag {line[:80]!r} has no value", "write one NAME=VALUE a line")
        tags[name] = value
    note = form.get("note", "").strip()
    recording.annotate(context(), actor=who.name, ident=id, tags=tags, note=note)
    return redirect(url_for("web.run", id=before.id), 303)
