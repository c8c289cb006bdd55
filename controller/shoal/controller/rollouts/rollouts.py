"""Rollouts: start, list, pause, resume, approve and abort; the stepper advances them."""

import math
from collections import Counter
from collections.abc import Mapping, Set
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import Connection, Row, case, func, select

from shoal.controller.access import audit
from shoal.controller.alerts import alerts
from shoal.controller.host.context import Context
from shoal.controller.releases import quarantine, retirement
from shoal.controller.rollouts import (
    assignments,
    behaviour_looks,
    cohort,
    device_rows,
    device_states,
    listing,
    stepper,
    trailing,
    undeployments,
)
from shoal.controller.rollouts.behaviour import check_gates
from shoal.controller.rollouts.behaviour_records import Evidence
from shoal.controller.rollouts.desired_state import TRAILING
from shoal.controller.rollouts.machine import ENDED, Event, StageEvent, StageState, State
from shoal.controller.rollouts.machine import stage_step as stage_step_of
from shoal.controller.rollouts.machine import step as step_of
from shoal.controller.rollouts.records import Rollout, RolloutDevice, RolloutPlan, Stage
from shoal.controller.store import cursors
from shoal.controller.store.paging import Orders, has_text, page_of
from shoal.controller.store.records import Page
from shoal.controller.store.rollout_tables import rollout, rollout_device
from shoal.controller.store.tables import device
from shoal.errors import AbsentError, ConflictError, DeniedError, InputError

ON_FAILURE = ("pause", "stop", "rollback")
#: Devices added to a rollout in one transaction.
ADDED = 1_000
#: Seconds in which all of them are added; a rollout that is still not complete then is ended.
CREATED_S = 60.0
_FAILED = case((rollout_device.c.state.in_(sorted(device_states.FAILURES)), 0), else_=1).label(
    "kept"
)
_DEVICE_ORDERS: Orders = {
    "device": (rollout_device.c.device,),
    "failed": (_FAILED, rollout_device.c.device),
    "updated": (rollout_device.c.updated_at, rollout_device.c.device),
}
#: Steps that a person's action takes at once, with one batch of orders; the engine goes on.
AT_ONCE = 3


class AffectedDevices(NamedTuple):
    """Counts of a rollout's devices, by what an action means for them.

    waiting    not assigned yet
    updating   assigned, and can still be canceled
    swapping   activating or observing: too late to cancel, not too late to roll back
    serving    run the release
    failed     failed, rejected or timed out
    out        canceled or skipped
    states     state -> devices
    """

    waiting: int
    updating: int
    swapping: int
    serving: int
    failed: int
    out: int
    states: dict[str, int]

    @property
    def all(self) -> int:
        return sum(self.states.values())

    def count(self, action: str, rollback: bool = False) -> int:
        """How many devices "approve", "pause", "resume" or "abort" affects."""
        if action in ("approve", "pause"):
            return self.waiting
        if action == "resume":
            return self.waiting + self.failed
        kept = 0 if rollback else self.swapping + self.serving
        return self.waiting + self.updating + self.swapping + self.serving - kept


def start(ctx: Context, *, actor: str, plan: RolloutPlan) -> Rollout:
    """Freeze the plan's cohorts and begin its first stage.

    A paused rollout of the same model is aborted. InputError for an invalid plan or one that fits
    no device; ConflictError while another rollout of the model runs or if the release is not
    signed or is retired; AbsentError if there is no such release.
    """
    check_plan(plan)
    ident = f"r-{ctx.random.getrandbits(32):08x}"
    with ctx.store.read() as db:
        model = assignments.signed_release(db, plan.release).manifest.model
        retirement.check_release(db, plan.release)
        stages = cohort.freeze(ident, plan.stages, _candidates(db))
    if not stages:
        raise InputError("no device fits any stage", "see: shoal device list")
    with ctx.store.write() as db:
        assignments.role_of(db, plan.release)  # may have changed since it was read
        retirement.check_release(db, plan.release)
        superseded = _supersede_paused(db, ctx, actor, model, ident)
        undeployments.supersede(db, ctx, model, ident)
        db.execute(
            rollout.insert().values(
                id=ident, release=plan.release, model=model, plan=msgspec.to_builtins(plan),
                state=State.CREATING.value, stages=_stages(plan, stages), created_at=ctx.clock(),
                created_by=actor, due_at=ctx.clock() + CREATED_S,
            )
        )  # fmt: skip
    _add_devices(ctx, ident, stages)
    with ctx.store.write() as db:
        why = _needs_approval(ctx, actor, plan)
        stepper.move(db, ctx, ident, Event.SUBMITTED if why else Event.FROZEN, why)
        audit.record(
            db, ctx, actor, "rollout.start", ident, release=plan.release, devices=len(stages)
        )
    for one in (*superseded, ident):
        stepper.run(ctx, one, AT_ONCE)
    return get_rollout(ctx, ident)


def _add_devices(ctx: Context, ident: str, stages: Mapping[str, str]) -> None:
    """Add the devices of a rollout that is being created, some in each transaction."""
    names = list(stages)
    for first in range(0, len(names), ADDED):
        some = {name: stages[name] for name in names[first : first + ADDED]}
        with ctx.store.write() as db:
            device_rows.add(db, ctx, ident, some)


def list_rollouts(ctx: Context) -> list[Rollout]:
    """The newest rollouts, one page of listing.page."""
    return listing.page(ctx, limit=cursors.MAX_LIMIT)[0]


def get_rollout(ctx: Context, id: str) -> Rollout:  # noqa: A002 - the API's name
    """One rollout; AbsentError if there is none such."""
    with ctx.store.read() as db:
        return listing.records(db, [_row(db, id)])[0]


def evidence(
    ctx: Context,
    id: str,  # noqa: A002
    stage: str = "",
    cursor: str = "",
    limit: int = 100,
) -> tuple[list[Evidence], Page]:
    """What the looks of a rollout's behaviour gates found, newest first; AbsentError."""
    limit = cursors.bounded(limit)
    before = cursors.decode(cursor, float)[0] if cursor else math.inf
    with ctx.store.read() as db:
        _row(db, id)
        found = behaviour_looks.evidence(db, id, stage, before, limit + 1)
    more = cursors.encode(found[limit - 1].at) if len(found) > limit else ""
    return found[:limit], Page(next=more)


def rollout_devices(
    ctx: Context,
    id: str,  # noqa: A002
    state: str = "",
    cause: str = "",
    q: str = "",
    sort: str = "device",
    cursor: str = "",
    limit: int = 100,
) -> tuple[list[RolloutDevice], Page]:
    """Devices of a rollout by name, those of one state or cause only; AbsentError, InputError.

    q      part of the device's name, its site or the detail
    sort   "device"; "failed" for those first that failed; "updated"
    """
    given = {"state": state, "cause": cause}
    wanted = [rollout_device.c.rollout == id]
    wanted += [rollout_device.c[name] == value for name, value in given.items() if value]
    wanted += has_text(q, rollout_device.c.device, device.c.site, rollout_device.c.detail)
    joined = device.c.name == rollout_device.c.device
    query = select(rollout_device, device.c.site, device.c.profile, _FAILED).join(device, joined)
    with ctx.store.read() as db:
        _row(db, id)
        rows, page = page_of(
            db, query.where(*wanted), _DEVICE_ORDERS, sort=sort, cursor=cursor, limit=limit
        )
    return [RolloutDevice.of_row(row) for row in rows], page


def failures(ctx: Context, id: str) -> list[tuple[str, int, str]]:  # noqa: A002
    """(cause, devices, an example's detail) of those that failed or were skipped, most first."""
    mine = rollout_device.c
    lost = mine.state.in_(sorted(device_states.FAILURES | {device_states.SKIPPED}))
    wanted = (mine.rollout == id) & lost
    query = select(mine.cause, mine.state, func.count(), func.min(mine.device)).where(wanted)
    groups: dict[str, tuple[int, str]] = {}
    with ctx.store.read() as db:
        _row(db, id)
        for cause, state, devices, first in db.execute(query.group_by(mine.cause, mine.state)):
            cause = cause or state.lower()
            before, example = groups.get(cause, (0, first))
            groups[cause] = (before + devices, min(example, first))
        examples = {name for _, name in groups.values()}
        details = dict(
            db.execute(
                select(mine.device, mine.detail).where(wanted, mine.device.in_(examples))
            ).all()
        )
    found = [
        (cause, devices, f"{name}: {details[name]}") for cause, (devices, name) in groups.items()
    ]
    return sorted(found, key=lambda one: (-one[1], one[0]))


def affected_devices(ctx: Context, ident: str) -> AffectedDevices:
    """Count the devices of a rollout; all zero when it has none."""
    with ctx.store.read() as db:
        states = Counter[str]()
        for counts in _states(db, ident).values():
            states.update(counts)

    def total(group: Set[str]) -> int:
        return sum(devices for name, devices in states.items() if name in group)

    return AffectedDevices(
        waiting=total({device_states.WAITING}),
        updating=total(device_states.CANCELABLE),
        swapping=total(device_states.SWAPPING),
        serving=total(device_states.SUCCESSES),
        failed=total(device_states.FAILURES),
        out=total(device_states.EXCLUDED),
        states=states,
    )


def pause(ctx: Context, *, actor: str, id: str) -> Rollout:  # noqa: A002
    """Assign no further device; updates in progress go on. ConflictError unless it runs.

    Of one that has ended: its trailing stage.
    """
    if _is_trailing(ctx, id):
        trailing.pause(ctx, actor=actor, ident=id)
        return get_rollout(ctx, id)
    with ctx.store.write() as db:
        stepper.move(db, ctx, id, Event.HELD, f"paused by {actor}")
        audit.record(db, ctx, actor, "rollout.pause", id)
    return get_rollout(ctx, id)


def resume(ctx: Context, *, actor: str, id: str) -> Rollout:  # noqa: A002
    """Resume. A failed stage retries its failed devices, an inconclusive one is accepted.

    Of one that has ended: its trailing stage, whose failed devices are tried again.
    """
    if _is_trailing(ctx, id):
        trailing.resume(ctx, actor=actor, ident=id)
        return get_rollout(ctx, id)
    with ctx.store.read() as db:
        row = _row(db, id)
        quarantine.check_release(db, row.release)
        step_of(State(row.state), Event.RESUMED)
    for stage in msgspec.convert(row.stages, list[Stage]):
        if stage.state == StageState.FAILED:
            stepper.retry_failed(ctx, id, stage.name)
    with ctx.store.write() as db:
        row = _row(db, id)
        quarantine.check_release(db, row.release)
        stepper.move(db, ctx, id, Event.RESUMED)
        _reopen(db, ctx, row)
        alerts.close(db, ctx, stepper.rollout_key(id), f"resumed by {actor}")
        audit.record(db, ctx, actor, "rollout.resume", id)
    stepper.run(ctx, id, AT_ONCE)
    return get_rollout(ctx, id)


def approve(ctx: Context, *, actor: str, id: str) -> Rollout:  # noqa: A002
    """Approve a rollout that another user started. ConflictError unless it waits for approval,
    DeniedError for the user that started it."""
    with ctx.store.write() as db:
        row = _row(db, id)
        if row.created_by == actor and row.state == State.WAITING_FOR_APPROVAL:
            raise DeniedError(f"{actor} started {id}", "another user has to approve it")
        quarantine.check_release(db, row.release)
        stepper.move(db, ctx, id, Event.APPROVED)
        audit.record(db, ctx, actor, "rollout.approve", id, release=row.release)
    stepper.run(ctx, id, AT_ONCE)
    return get_rollout(ctx, id)


def abort(ctx: Context, *, actor: str, id: str, rollback: bool = False) -> Rollout:  # noqa: A002
    """End a rollout: cancel updates that are before the swap. With `rollback` every device that has
    the release or swaps to it is ordered its previous one, unless that is in quarantine.

    ConflictError if it has ended.
    """
    with ctx.store.write() as db:
        row = _row(db, id)
        _check_active(db, row, rollback)
        _abort(db, ctx, row, rollback, f"aborted by {actor}")
        audit.record(db, ctx, actor, "rollout.abort", id, rollback=rollback)
    stepper.run(ctx, id, AT_ONCE)
    return get_rollout(ctx, id)


def _is_trailing(ctx: Context, ident: str) -> bool:
    """Whether a rollout has ended and has a trailing stage. AbsentError."""
    with ctx.store.read() as db:
        ended = State(_row(db, ident).state) in ENDED
        return ended and trailing.record(db, ident) is not None


# --- inside a transaction -----------------------------------------------------------------------


def _abort(db: Connection, ctx: Context, row: Row[Any], rollback: bool, reason: str) -> None:
    event = Event.REVERTED if rollback else Event.ABORTED
    stepper.move(db, ctx, row.id, event, reason)
    alerts.close(db, ctx, stepper.rollout_key(row.id), reason)


def _check_active(db: Connection, row: Row[Any], rollback: bool) -> None:
    """ConflictError for a rollout that has ended: devices go back by another one."""
    if State(row.state) not in ENDED:
        return
    back = quarantine.way_back(db, row.release)
    raise ConflictError(
        f"rollout is {row.state}: it cannot be {'reverted' if rollback else 'aborted'}",
        f"it has ended; put devices back by another rollout: shoal rollout start {back}"
        if back
        else f"it has ended, and no other release of {row.model} is signed for the whole fleet: "
        f"publish one, then: shoal rollout start {row.model}@N",
        state=row.state,
    )


def _reopen(db: Connection, ctx: Context, row: Row[Any]) -> None:
    """Run the failed stage again, or accept the inconclusive one."""
    stages = msgspec.convert(row.stages, list[Stage])
    for i, stage in enumerate(stages):
        if stage.state == StageState.FAILED:
            again = stage_step_of(StageState.FAILED, StageEvent.RETRIED)
        elif stage.state == StageState.PAUSED:
            again = stage_step_of(StageState.PAUSED, StageEvent.ACCEPTED)
        else:
            continue
        begun = (
            {"started_at": ctx.clock(), "analysing_at": 0.0} if again is StageState.RUNNING else {}
        )
        stages[i] = msgspec.structs.replace(
            stage, state=again.value, verdict="", accepted_pct=100 * stage.disagree, **begun
        )
    stepper.save_stages(db, row.id, stages)


def _supersede_paused(
    db: Connection, ctx: Context, actor: str, model: str, ident: str
) -> list[str]:
    """Abort paused rollouts of the model, and return them; ConflictError if one is active."""
    superseded = []
    ended = [state.value for state in ENDED]
    unfinished = select(rollout).where(rollout.c.model == model, rollout.c.state.not_in(ended))
    for row in db.execute(unfinished).all():
        if row.state != State.PAUSED:
            raise ConflictError(
                f"rollout {row.id} of {row.release} is {row.state}",
                f"wait for it, or: shoal rollout abort {row.id}",
            )
        _abort(db, ctx, row, False, f"superseded by {ident}")
        audit.record(db, ctx, actor, "rollout.abort", row.id, superseded_by=ident)
        superseded.append(row.id)
    return superseded


def check_plan(plan: RolloutPlan) -> None:
    """InputError for a plan that no release could be rolled out by."""
    names = [stage.name for stage in plan.stages]
    if not names or len(set(names)) < len(names) or not all(names):
        raise InputError("a rollout needs stages, each with its own name")
    if TRAILING in names:
        raise InputError(f"stage {TRAILING}: devices that come later are in it", "rename it")
    if plan.on_failure not in ON_FAILURE:
        raise InputError(f"on_failure {plan.on_failure!r:.40}", f"use {', '.join(ON_FAILURE)}")
    if plan.max_concurrent < 0:
        raise InputError("max_concurrent is a number of devices, or 0 for no limit")
    if not plan.deadline_s > 0 or not 1 <= plan.max_attempts <= 10:
        raise InputError("deadline_s must be above 0 and max_attempts 1 to 10")
    _check_gates(plan)
    for stage in plan.stages:
        shares = (stage.threshold_pct, stage.max_disagree_pct)
        if not 0 < stage.select.percent <= 100 or not all(0 <= share <= 100 for share in shares):
            raise InputError(
                f"stage {stage.name}: percent, threshold_pct and max_disagree_pct are 0 to 100"
            )


def _check_gates(plan: RolloutPlan) -> None:
    """InputError for behaviour gates that cannot be judged."""
    check_gates(plan.gates)
    if plan.gates and len(plan.stages) < 2 and plan.stages[0].select.percent == 100:
        raise InputError(
            "gates compare the devices of a stage with devices that have another release",
            "begin with a stage of some devices: --stage first:percent=10 --stage rest",
        )
    if not 600 <= plan.analyse_s <= 30 * 86_400:
        raise InputError("analyse_s is 600 s to 30 days")


def _needs_approval(ctx: Context, actor: str, plan: RolloutPlan) -> str:
    """Why the rollout needs another user's approval; "" if it does not.

    Depends on what its stages select, not on the devices of today: a device may join late.
    """
    if ctx.settings.rollouts.approval == "none":
        return ""
    reaching = [stage.name for stage in plan.stages if stage.select.ring != "canary"]
    if not reaching:
        return ""
    return (
        f"stage {reaching[0]} reaches devices that are not canaries: an approver other than "
        f"{actor} has to approve"
    )


def _candidates(db: Connection) -> list[cohort.Candidate]:
    rows = db.execute(select(device).where(device.c.state == "enrolled"))
    return [cohort.candidate(row) for row in rows]


def _stages(plan: RolloutPlan, stages: Mapping[str, str]) -> list[dict[str, Any]]:
    counts = Counter(stages.values())
    return [
        msgspec.to_builtins(
            Stage(
                name=one.name, state=StageState.SCHEDULED.value, devices=counts[one.name],
                succeeded=0, failed=0, skipped=0, unseen=0, started_at=0.0, finished_at=0.0,
            )
        )
        for one in plan.stages
    ]  # fmt: skip


# --- records ------------------------------------------------------------------------------------


def _states(db: Connection, ident: str) -> dict[str, dict[str, int]]:
    """Stage -> state -> number of its devices in this state."""
    return {
        stage: {state: count.devices for state, count in states.items()}
        for stage, states in device_rows.counts(db, ident).items()
    }


def _row(db: Connection, ident: str) -> Row[Any]:
    row = db.execute(select(rollout).where(rollout.c.id == ident)).first()
    if row is None:
        raise AbsentError("rollout", ident, "list them: shoal rollout list")
    return row
