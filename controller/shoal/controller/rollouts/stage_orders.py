"""Orders of a running stage: prepared from a consistent view, without the write lock, then stored
for the devices that have not changed meanwhile."""

from functools import cache
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import Connection, Row, select

from shoal.controller.host.context import Context
from shoal.controller.rollouts import assignments, device_rows, device_states, overrides
from shoal.controller.rollouts.assignments import Prepared, Signed
from shoal.controller.rollouts.machine import StageState, State
from shoal.controller.rollouts.records import RolloutPlan, Stage
from shoal.controller.rollouts.stage_members import StageMembers
from shoal.controller.store.rollout_tables import rollout
from shoal.errors import BundleError
from shoal.manifest import SCHEMA
from shoal.profile import load_profiles

#: Devices ordered in one transaction, which holds the write lock.
BATCH = 200


class StageOrders(NamedTuple):
    """What a stage orders next.

    changes    of the rows of rollout_device, by device
    prepared   assignments of those that are ordered the release
    """

    changes: dict[str, device_rows.Change]
    prepared: list[Prepared]


NONE = StageOrders({}, [])


def prepare(db: Connection, ctx: Context, whole: Row[Any]) -> StageOrders:
    """Orders for the next devices of the running stage; empty when there is none.

    whole   row of the rollout
    """
    ident = whole.id
    stage = running_stage(whole)
    if whole.state != State.RUNNING or stage is None:
        return NONE
    plan = msgspec.convert(whole.plan, RolloutPlan)
    members = StageMembers(db, ident, stage.name, stage.started_at)
    return next_orders(db, ctx, whole, plan, members)


def next_orders(
    db: Connection, ctx: Context, whole: Row[Any], plan: RolloutPlan, members: StageMembers
) -> StageOrders:
    """Orders for the next of these devices, as many as may update at once."""
    capacity = _capacity(plan, members)
    rings = assignments.rings(assignments.role_of(db, plan.release))
    due = members.due(rings, plan.max_attempts, capacity) if capacity else []
    if not due:
        return NONE
    release = assignments.signed_release(db, plan.release)
    why_skipped = _why_skipped(release)
    decided = overrides.overrides_of(db, [row.device for row in due])
    changes, orders = {}, []
    for row in due:
        why = overrides.why_left_out(decided.get(row.device, ()), whole.model)
        why = why or why_skipped(row.enrolled, row.profile, _reads(row.schemas, release))
        if why:
            values = {"state": device_states.SKIPPED, "cause": why[0], "detail": why[1]}
        else:
            values = _ordered(row, plan, whole.model, ctx.clock())
            order = assignments.order_of(
                release, rollout=whole.id, attempt=values["attempt"],
                deadline_at=ctx.clock() + plan.deadline_s,
            )  # fmt: skip
            orders.append(assignments.Change(row.device, whole.model, order))
        changes[row.device] = device_rows.Change(row, values)
    return StageOrders(changes, assignments.prepare(db, ctx, orders))


def store(db: Connection, ctx: Context, ident: str, orders: StageOrders) -> None:
    """Store the orders of the devices that have not changed; nothing if the rollout does not run
    any more."""
    if db.scalar(select(rollout.c.state).where(rollout.c.id == ident)) != State.RUNNING:
        return
    store_orders(db, ctx, orders)


def store_orders(db: Connection, ctx: Context, orders: StageOrders) -> None:
    """Store the orders of the devices that have not changed."""
    rows = [change.row for change in orders.changes.values()]
    same = {row.device for row in device_rows.unchanged(db, rows)}
    ordered = {one.device for one in orders.prepared}
    stored = assignments.store(db, [one for one in orders.prepared if one.device in same])
    device_rows.change(
        db,
        ctx,
        [
            change
            for name, change in orders.changes.items()
            if name in stored or (name in same and name not in ordered)
        ],
    )


def running_stage(whole: Row[Any]) -> Stage | None:
    """The stage that a rollout is at, if it has begun. whole: row of the rollout."""
    stages = msgspec.convert(whole.stages, list[Stage])
    at = next((stage for stage in stages if stage.state != StageState.SUCCESSFUL), None)
    return at if at is not None and at.state in (StageState.RUNNING, StageState.ANALYSING) else None


def _capacity(plan: RolloutPlan, members: StageMembers) -> int:
    """How many devices may be ordered now; a working device that is offline takes no place."""
    if not plan.max_concurrent:
        return BATCH
    return max(0, min(BATCH, plan.max_concurrent - members.working()))


def _ordered(row: Row[Any], plan: RolloutPlan, model: str, now: float) -> dict[str, Any]:
    """Values of a device's row once it is ordered the release."""
    before = (row.releases or {}).get(model, "")
    had_it = {"had_it": True} if not row.attempt and before == plan.release else {}
    return {
        "state": device_states.ASSIGNED,
        "attempt": row.attempt + 1,
        "cause": "",
        "detail": "",
        "previous": row.previous or (before if before != plan.release else ""),
        "ordered_at": now,
        "facts": row.facts | had_it,
    }


def _reads(schemas: Any, release: Signed) -> bool:
    """Whether an agent reads the release's manifest; every agent reads SCHEMA."""
    schema = release.manifest.schema
    return schema == SCHEMA or (isinstance(schemas, list) and schema in schemas)


def _why_skipped(release: Signed) -> Any:
    """Function of (device's state, profile, whether its agent reads the manifest): (cause, detail)
    why it is skipped; None if it can run the release."""

    @cache
    def why(enrolled: str, profile: str, reads: bool) -> tuple[str, str] | None:
        if enrolled != "enrolled":
            return "decommissioned", "it was decommissioned"
        known = load_profiles().get(profile)
        if known is not None and known.unsupported:
            return device_states.UNSUPPORTED, f"{profile}: {known.unsupported}"
        try:
            release.manifest.files_for(profile)
        except BundleError as error:
            return device_states.UNSUPPORTED, error.message
        if not reads:
            what = f"its agent reads no manifest of schema {release.manifest.schema}"
            return device_states.OUTDATED, f"{what}: update the agent"
        return None

    return why
