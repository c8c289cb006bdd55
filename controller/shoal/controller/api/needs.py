"""Route for what needs a person."""

from typing import Annotated

import msgspec

from shoal.controller.api.routing import Call, Limit, Listing, RequestModel, route
from shoal.controller.needs import needs
from shoal.controller.needs.records import Need

TAG = "monitoring"


class NeedQuery(RequestModel, frozen=True, kw_only=True):
    """kind: only these, such as rollout_paused or devices_failing; "" for all."""

    kind: Annotated[str, msgspec.Meta(pattern=f"^(|{'|'.join(needs.KINDS)})$")] = ""
    cursor: str = ""
    limit: Limit = 50


@route("GET", "/api/v1/needs", role="viewer", tag=TAG)
def list_needs(call: Call, query: NeedQuery) -> Listing[Need]:
    """What needs a person, the worst first: decisions that wait, and failures folded by cause."""
    return Listing(*needs.list_needs(call.ctx, **msgspec.structs.asdict(query)))
