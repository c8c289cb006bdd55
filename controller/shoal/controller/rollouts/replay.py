"""Past rollouts again: receipts to take away, and what other behaviour gates would have done."""

from shoal.controller.host.context import Context
from shoal.controller.rollouts import behaviour_looks, rollouts
from shoal.controller.rollouts.behaviour import check_gates
from shoal.controller.rollouts.behaviour_records import BehaviourGate
from shoal.controller.rollouts.receipts import Counterfactual, ReceiptExport, under_gates
from shoal.errors import ConflictError


def receipts(ctx: Context, id: str) -> ReceiptExport:  # noqa: A002
    """Receipts of a rollout's behaviour gates with all their inputs; AbsentError."""
    found = rollouts.get_rollout(ctx, id)
    with ctx.store.read() as db:
        return behaviour_looks.export(db, id, found.release)


def replay(
    ctx: Context,
    id: str,  # noqa: A002
    gates: list[BehaviourGate],
) -> Counterfactual:
    """What a rollout would have done under other gates; AbsentError, InputError.

    ConflictError for one without receipts.
    """
    check_gates(gates)
    kept, found = receipts(ctx, id), rollouts.get_rollout(ctx, id)
    if not kept.looks:
        raise ConflictError(
            f"{id} has no receipts: its stages were not compared",
            f"start rollouts with gates: shoal rollout start {found.release} --gate errors",
        )
    stages = {one.name: one.devices for one in found.stages}
    reached = sum(one.devices for one in found.stages if one.started_at)
    return under_gates(kept, gates, stages, reached)
