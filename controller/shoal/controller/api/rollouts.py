"""Routes for rollouts."""

from typing import Annotated

import msgspec

from shoal.controller.api.routing import Call, Limit, Listing, RequestModel, all_of, route
from shoal.controller.rollouts import listing, replay, rollouts, undeployments
from shoal.controller.rollouts.behaviour_records import BehaviourGate, Evidence
from shoal.controller.rollouts.receipts import Counterfactual, ReceiptExport
from shoal.controller.rollouts.records import (
    Rollout,
    RolloutDevice,
    RolloutPlan,
    Selector,
    Undeployment,
    UndeploymentDevice,
)

TAG = "rollouts"


class RolloutQuery(RequestModel, frozen=True, kw_only=True):
    """Filters of rollouts; empty ones match all.

    state   such as RUNNING or PAUSED, or "unfinished" for all that have not ended
    q       part of the id, the release, the reason or who started it
    sort    created, finished, release or state; "-" before it: falling
    """

    state: str = ""
    model: str = ""
    release: str = ""
    q: str = ""
    sort: str = "-created"
    cursor: str = ""
    limit: Limit = 50


class RolloutDeviceQuery(RequestModel, frozen=True, kw_only=True):
    """Filters: devices in one state, or with one cause of failure.

    q      part of the device's name, its site or the detail
    sort   device; failed for those first that failed; updated; "-" before it: falling
    """

    state: str = ""
    cause: str = ""
    q: str = ""
    sort: str = "device"
    cursor: str = ""
    limit: Limit = 100


class EvidenceQuery(RequestModel, frozen=True, kw_only=True):
    """Filter: looks at one stage."""

    stage: str = ""
    cursor: str = ""
    limit: Limit = 100


class Replay(RequestModel, frozen=True, kw_only=True):
    """Behaviour gates to compute a rollout's looks again with."""

    gates: Annotated[list[BehaviourGate], msgspec.Meta(min_length=1, max_length=3)]


class Abort(RequestModel, frozen=True, kw_only=True):
    """rollback: every device back to its previous release, or to none where it had none."""

    rollback: bool = False


class Undeploy(RequestModel, frozen=True, kw_only=True):
    """Which devices remove the model: named ones, selected ones, or all that have it."""

    devices: Annotated[list[str], msgspec.Meta(max_length=1_000)] = msgspec.field(
        default_factory=list
    )
    select: Selector = Selector()
    all: bool = False


class UndeploymentQuery(RequestModel, frozen=True, kw_only=True):
    """Undeployments of one model, "" for all, and in one state, "" for any."""

    model: str = ""
    state: str = ""
    cursor: str = ""
    limit: Limit = 50


class UndeploymentDeviceQuery(RequestModel, frozen=True, kw_only=True):
    """Filter: devices in one state."""

    state: str = ""
    cursor: str = ""
    limit: Limit = 100


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """Failed devices by cause: their number, and the detail of one of them."""

    cause: str
    count: int
    detail: str


@route("GET", "/api/v1/rollouts", role="viewer", tag=TAG)
def list_rollouts(call: Call, query: RolloutQuery) -> Listing[Rollout]:
    """Rollouts, newest first."""
    return Listing(*listing.page(call.ctx, **msgspec.structs.asdict(query)))


@route("POST", "/api/v1/rollouts", role="operator", tag=TAG, status=201, repeatable=True,
       location="/api/v1/rollouts/{id}")  # fmt: skip
def start_rollout(call: Call, body: RolloutPlan) -> Rollout:
    """Start a rollout with a plan of stages."""
    return rollouts.start(call.ctx, actor=call.by, plan=body)


@route("GET", "/api/v1/rollouts/<id>", role="viewer", tag=TAG)
def get_rollout(call: Call, id: str) -> Rollout:  # noqa: A002 - the API's word
    """One rollout with its stages."""
    return rollouts.get_rollout(call.ctx, id)


@route("GET", "/api/v1/rollouts/<id>/devices", role="viewer", tag=TAG)
def list_rollout_devices(
    call: Call,
    id: str,  # noqa: A002
    query: RolloutDeviceQuery,
) -> Listing[RolloutDevice]:
    """Devices of a rollout with their state."""
    return Listing(*rollouts.rollout_devices(call.ctx, id, **msgspec.structs.asdict(query)))


@route("GET", "/api/v1/rollouts/<id>/failures", role="viewer", tag=TAG)
def list_failures(call: Call, id: str) -> Listing[Failure]:  # noqa: A002
    """Failures grouped by cause."""
    found = rollouts.failures(call.ctx, id)
    return all_of([Failure(cause=cause, count=n, detail=detail) for cause, n, detail in found])


@route("GET", "/api/v1/rollouts/<id>/evidence", role="viewer", tag=TAG)
def list_evidence(
    call: Call,
    id: str,  # noqa: A002
    query: EvidenceQuery,
) -> Listing[Evidence]:
    """What each look of the behaviour gates found, newest first."""
    return Listing(*rollouts.evidence(call.ctx, id, **msgspec.structs.asdict(query)))


@route("GET", "/api/v1/rollouts/<id>/receipts", role="viewer", tag=TAG)
def get_receipts(call: Call, id: str) -> ReceiptExport:  # noqa: A002
    """Receipts of the behaviour gates with all inputs, to compute every verdict again."""
    return replay.receipts(call.ctx, id)


@route("POST", "/api/v1/rollouts/<id>/replay", role="viewer", tag=TAG)
def replay_rollout(call: Call, id: str, body: Replay) -> Counterfactual:  # noqa: A002
    """What a rollout would have done under other behaviour gates; changes nothing."""
    return replay.replay(call.ctx, id, body.gates)


@route("POST", "/api/v1/rollouts/<id>/approve", role="approver", tag=TAG)
def approve_rollout(call: Call, id: str) -> Rollout:  # noqa: A002
    """Approve a rollout that another user started and that waits for approval."""
    return rollouts.approve(call.ctx, actor=call.by, id=id)


@route("POST", "/api/v1/rollouts/<id>/pause", role="operator", tag=TAG)
def pause_rollout(call: Call, id: str) -> Rollout:  # noqa: A002
    """Pause a rollout: assign no further device until resumed."""
    return rollouts.pause(call.ctx, actor=call.by, id=id)


@route("POST", "/api/v1/rollouts/<id>/resume", role="operator", tag=TAG)
def resume_rollout(call: Call, id: str) -> Rollout:  # noqa: A002
    """Resume a paused rollout."""
    return rollouts.resume(call.ctx, actor=call.by, id=id)


@route("POST", "/api/v1/rollouts/<id>/abort", role="operator", tag=TAG)
def abort_rollout(call: Call, id: str, body: Abort) -> Rollout:  # noqa: A002
    """Abort a rollout permanently, and cancel devices that have not yet activated."""
    return rollouts.abort(call.ctx, actor=call.by, id=id, rollback=body.rollback)


@route("POST", "/api/v1/models/<model>/undeploy", role="operator", tag=TAG, status=201,
       repeatable=True, location="/api/v1/undeployments/{id}")  # fmt: skip
def undeploy(call: Call, model: str, body: Undeploy) -> Undeployment:
    """Order devices to remove a model, so that they serve no release of it."""
    return undeployments.start(
        call.ctx, actor=call.by, model=model, devices=body.devices, select=body.select,
        all=body.all,
    )  # fmt: skip


@route("GET", "/api/v1/undeployments", role="viewer", tag=TAG)
def list_undeployments(call: Call, query: UndeploymentQuery) -> Listing[Undeployment]:
    """Undeployments, newest first."""
    return Listing(*undeployments.page(call.ctx, **msgspec.structs.asdict(query)))


@route("GET", "/api/v1/undeployments/<id>", role="viewer", tag=TAG)
def get_undeployment(call: Call, id: str) -> Undeployment:  # noqa: A002
    """One undeployment, and how many devices have removed the model."""
    return undeployments.get_undeployment(call.ctx, id)


@route("GET", "/api/v1/undeployments/<id>/devices", role="viewer", tag=TAG)
def list_undeployment_devices(
    call: Call,
    id: str,  # noqa: A002
    query: UndeploymentDeviceQuery,
) -> Listing[UndeploymentDevice]:
    """Devices of an undeployment with their state."""
    found = undeployments.undeployment_devices(call.ctx, id, **msgspec.structs.asdict(query))
    return Listing(*found)


@route("POST", "/api/v1/undeployments/<id>/cancel", role="operator", tag=TAG)
def cancel_undeployment(call: Call, id: str) -> Undeployment:  # noqa: A002
    """Order no further device of an undeployment; those that were ordered remove the model."""
    return undeployments.cancel(call.ctx, actor=call.by, id=id)
