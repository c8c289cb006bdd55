"""Routes for runs: trainings and imports with what went in and what came out."""

from typing import Annotated

import msgspec

from shoal.controller.api.routing import Call, Limit, Listing, RequestModel, listed, route
from shoal.controller.operations.operations import STATES
from shoal.controller.runs import listing, recording
from shoal.controller.runs.records import KINDS, Comparison, Run

TAG = "runs"


class RunQuery(RequestModel, frozen=True, kw_only=True):
    """Filters and order of runs; empty ones match all.

    dataset  "name" or "name@version"
    q        as MLflow writes it: metrics.accuracy > 0.9 and params.hidden = '64,32' and tags.a = b
    sort     "" for the newest first; a name as in q, such as metrics.accuracy: runs that have it;
             "best", of one model: the metric that its newest run is judged by
    order    asc or desc; "" for the better values first
    """

    model: str = ""
    state: Annotated[str, msgspec.Meta(pattern=f"^(|{'|'.join(STATES)})$")] = ""
    kind: Annotated[str, msgspec.Meta(pattern=f"^(|{'|'.join(KINDS)})$")] = ""
    dataset: str = ""
    q: str = ""
    sort: str = ""
    order: Annotated[str, msgspec.Meta(pattern="^(|asc|desc)$")] = ""
    cursor: str = ""
    limit: Limit = 50


class ComparisonQuery(RequestModel, frozen=True, kw_only=True):
    """runs: ids, or releases that they made, separated by commas."""

    runs: str


class Annotation(RequestModel, frozen=True, kw_only=True):
    """tags: values by name, null removes one; note: null keeps it."""

    tags: dict[str, str | None] = msgspec.field(default_factory=dict)
    note: str | None = None


@route("GET", "/api/v1/runs", role="viewer", tag=TAG)
def list_runs(call: Call, query: RunQuery) -> Listing[Run]:
    """Runs by filter and order."""
    found, page = listing.page(call.ctx, **msgspec.structs.asdict(query))
    return Listing(found, page)


@route("GET", "/api/v1/runs/compare", role="viewer", tag=TAG)
def compare_runs(call: Call, query: ComparisonQuery) -> Comparison:
    """Runs side by side: parameters, metrics and versions, and which of them differ."""
    return listing.compare_runs(call.ctx, listed(query.runs))


@route("GET", "/api/v1/runs/<id>", role="viewer", tag=TAG)
def get_run(call: Call, id: str) -> Run:  # noqa: A002 - the API's word
    """One run, by its id or the release that it made, with environment, curves and artifacts."""
    return listing.get_run(call.ctx, id)


@route("POST", "/api/v1/runs/<id>/annotate", role="operator", tag=TAG)
def annotate_run(call: Call, id: str, body: Annotation) -> Run:  # noqa: A002
    """Set tags and the note of a run."""
    return recording.annotate(call.ctx, actor=call.by, ident=id, tags=body.tags, note=body.note)
