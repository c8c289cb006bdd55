"""Routes for checkpoints: release, evaluation, and quarantine of a poisoned round."""

from typing import Annotated

import msgspec

from shoal.controller.api.routing import Call, RequestModel, route
from shoal.controller.federated.checkpoints import promotion, round_quarantine
from shoal.controller.federated.records import Lifted, Quarantined, Round
from shoal.controller.federated.rounds import rounds
from shoal.controller.operations.operations import Operation

TAG = "rounds"
Number = Annotated[int, msgspec.Meta(ge=1, le=10**9)]


class ReleaseOf(RequestModel, frozen=True, kw_only=True):
    """The checkpoint to release.

    round      number of its round; null for the newest clean one
    dataset    "name@version" with the rows for its gates; "" for that of the task's first release
    candidate  sign it for the canary ring when no gate refuses it
    """

    round: Number | None = None
    dataset: str = ""
    candidate: bool = False


class Evaluation(RequestModel, frozen=True, kw_only=True):
    """The checkpoint to evaluate.

    round   number of its round; null for the newest; 0 for the model that the task started with
    """

    round: Annotated[int, msgspec.Meta(ge=0, le=10**9)] | None = None


class Quarantine(RequestModel, frozen=True, kw_only=True):
    """The poisoned round, or the one to lift, and the reason, which is stored."""

    round: Number
    why: Annotated[str, msgspec.Meta(min_length=1, max_length=500)]


@route("POST", "/api/v1/tasks/<task>/release", role="operator", tag=TAG, status=202,
       repeatable=True, location="/api/v1/operations/{id}")  # fmt: skip
def release_checkpoint(call: Call, task: str, body: ReleaseOf) -> Operation:
    """Build a release of a checkpoint: variants, golden vectors, gates."""
    return promotion.release(
        call.ctx, actor=call.by, task=task, number=body.round, dataset=body.dataset,
        trigger=promotion.REQUESTED_CANDIDATE if body.candidate else "manual",
    )  # fmt: skip


@route("POST", "/api/v1/tasks/<task>/evaluate", role="operator", tag=TAG, status=201,
       repeatable=True, location="/api/v1/rounds/{id}")  # fmt: skip
def evaluate_checkpoint(call: Call, task: str, body: Evaluation) -> Round:
    """Evaluate a checkpoint on the rows of every eligible device; nothing is trained."""
    return rounds.evaluate(call.ctx, actor=call.by, task=task, number=body.round)


@route("POST", "/api/v1/tasks/<task>/quarantine", role="operator", tag=TAG)
def quarantine_round(call: Call, task: str, body: Quarantine) -> Quarantined:
    """Quarantine a poisoned round and everything derived from it; the task continues without."""
    return round_quarantine.quarantine_round(
        call.ctx, actor=call.by, task=task, number=body.round, why=body.why
    )


@route("POST", "/api/v1/tasks/<task>/quarantine/lift", role="admin", tag=TAG)
def lift_quarantine(call: Call, task: str, body: Quarantine) -> Lifted:
    """Lift a quarantine that was a mistake; nothing is rolled out automatically."""
    return round_quarantine.lift(
        call.ctx, actor=call.by, task=task, number=body.round, why=body.why
    )
