"""Route for lineage: from data to devices and back."""

from shoal.controller.api.routing import Call, RequestModel, route
from shoal.controller.lineage import lineage
from shoal.controller.lineage.records import Lineage

TAG = "lineage"


class LineageQuery(RequestModel, frozen=True, kw_only=True):
    """Of which thing.

    thing  "dataset:NAME@N", "mlflow:NAME/N", "run:ID", "release:NAME@N", "rollout:ID",
           "device:NAME" or "alert:ID"; the kind may be left out where only one thing has the name
    """

    thing: str


@route("GET", "/api/v1/lineage", role="viewer", tag=TAG)
def get_lineage(call: Call, query: LineageQuery) -> Lineage:
    """What a thing was made from, and what came of it."""
    return lineage.lineage_of(call.ctx, query.thing)
