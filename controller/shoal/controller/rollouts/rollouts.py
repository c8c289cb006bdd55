"""Rollouts as people see and steer them; shoal.controller.rollouts.stepper moves them on."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import msgspec
from sqlalchemy import Connection, Row, func, select, update

from shoal.controller.access import audit
from shoal.controller.alerts import alerts
from shoal.controller.host.context import Context
from shoal.controller.releases import quarantine
from shoal.controller.rollouts import assignments, cohort, device_states, revert, stepper
from shoal.controller.rollouts.machine import ENDED, Effect, Event, StageEvent, StageState, State
from shoal.controller.rollouts.machine import stage_step as stage_step_of
from shoal.controller.rollouts.machine import step as step_of
from shoal.controller.rollouts.records import Rollout, RolloutDevice, RolloutPlan, Stage
from shoal.controller.store import changes, cursors
from shoal.controller.store.records import Page
from shoal.controller.store.tables import device, rollout, rollout_device
from shoal.errors import AbsentError, ConflictError, DeniedError, InputError

ON_FAILURE = ("pause", "stop", "rollback")
#: Begins the reason of a rollout that a quarantine has paused.
QUARANTINE = "quarantine: "


def start(ctx: Context, *, actor: str, plan: RolloutPlan) -> Rollout:
    """Freeze the plan's cohorts and begin its first stage.

    A rollout of the same model that stands still is aborted by this one. Raises InputError for a
    plan that makes no sense or fits no device, ConflictError while another one of the model runs
    or when the release is not signed, AbsentError when there is no such release.
    """
    _check(plan)
    ident = f"r-{ctx.random.getrandbits(32):08x}"
    with ctx.store.write() as db:
        model = assignments.signed_release(db, plan.release).manifest.model
        _make_room(db, ctx, actor, model, ident)
        taken = cohort.freeze(ident, plan.stages, _candidates(db))
        if not taken:
            raise InputError("no device fits any stage", "see: shoal device list")
        why = _needs_approval(ctx, actor, plan)
        state, _ = step_of(State.CREATING, Event.SUBMITTED if why else Event.FROZEN)
        db.execute(
            rollout.insert().values(
                id=ident, release=plan.release, model=model, plan=msgspec.to_builtins(plan),
                state=state.value, reason=why, stages=_stages(plan, taken),
                created_at=ctx.clock(), created_by=actor,
            )
        )  # fmt: skip
        stepper.enlist(db, ctx, ident, taken)
        audit.record(
            db, ctx, actor, "rollout.start", ident, release=plan.release, devices=len(taken)
        )
        changes.note(db, ctx, "rollout", ident)
        stepper.advance(db, ctx, ident)
    return get_rollout(ctx, ident)


def list_rollouts(ctx: Context) -> list[Rollout]:
    """Rollouts, newest first."""
    query = select(rollout).order_by(rollout.c.created_at.desc(), rollout.c.id).limit(100)
    with ctx.store.read() as db:
        return [_record(db, row) for row in db.execute(query).all()]


def get_rollout(ctx: Context, id: str) -> Rollout:  # noqa: A002 - the API's word
    """One rollout; AbsentError if there is none such."""
    with ctx.store.read() as db:
        return _record(db, _row(db, id))


def rollout_devices(
    ctx: Context,
    id: str,  # noqa: A002
    state: str = "",
    cause: str = "",
    cursor: str = "",
    limit: int = 100,
) -> tuple[list[RolloutDevice], Page]:
    """Devices of a rollout by name, those of one state or cause only; AbsentError, InputError."""
    limit = cursors.bounded(limit)
    given = {"state": state, "cause": cause}
    wanted = [rollout_device.c.rollout == id]
    wanted += [rollout_device.c[name] == value for name, value in given.items() if value]
    query = (
        select(rollout_device, device.c.site, device.c.profile)
        .join(device, device.c.name == rollout_device.c.device)
        .where(*wanted)
        .order_by(rollout_device.c.device)
        .limit(limit + 1)
    )
    if cursor:
        query = query.where(rollout_device.c.device > cursors.decode(cursor, str)[0])
    with ctx.store.read() as db:
        _row(db, id)
        rows = db.execute(query).all()
        total = db.scalar(select(func.count()).select_from(rollout_device).where(*wanted)) or 0
    more = cursors.encode(rows[limit - 1].device) if len(rows) > limit else ""
    return [_member(row) for row in rows[:limit]], Page(next=more, total=total)


def failures(ctx: Context, id: str) -> list[tuple[str, int, str]]:  # noqa: A002
    """(cause, devices, an example's detail) of those that failed or were skipped, most first."""
    query = select(rollout_device).where(
        rollout_device.c.rollout == id,
        rollout_device.c.state.in_(sorted(device_states.LOST | {device_states.SKIPPED})),
    )
    groups: dict[str, list[Row[Any]]] = defaultdict(list)
    with ctx.store.read() as db:
        _row(db, id)
        for row in db.execute(query.order_by(rollout_device.c.device)):
            groups[row.cause or row.state.lower()].append(row)
    found = [
        (cause, len(rows), f"{rows[0].device}: {rows[0].detail}") for cause, rows in groups.items()
    ]
    return sorted(found, key=lambda one: (-one[1], one[0]))


def pause(ctx: Context, *, actor: str, id: str) -> Rollout:  # noqa: A002
    """Assign nobody any more; who is updating goes on. ConflictError unless it runs."""
    with ctx.store.write() as db:
        _move(db, ctx, _row(db, id), Event.HELD, f"paused by {actor}")
        audit.record(db, ctx, actor, "rollout.pause", id)
    return get_rollout(ctx, id)


def resume(ctx: Context, *, actor: str, id: str) -> Rollout:  # noqa: A002
    """Go on. A failed stage tries its failed devices again, an inconclusive one is accepted."""
    with ctx.store.write() as db:
        row = _row(db, id)
        quarantine.check_release(db, row.release)
        _move(db, ctx, row, Event.RESUMED, "")
        _reopen(db, ctx, row)
        alerts.close(db, ctx, stepper.rollout_key(id), f"resumed by {actor}")
        audit.record(db, ctx, actor, "rollout.resume", id)
        stepper.advance(db, ctx, id)
    return get_rollout(ctx, id)


def approve(ctx: Context, *, actor: str, id: str) -> Rollout:  # noqa: A002
    """Say yes to what somebody else has started. ConflictError unless it waits for that,
    DeniedError for who started it."""
    with ctx.store.write() as db:
        row = _row(db, id)
        if row.created_by == actor and row.state == State.WAITING_FOR_APPROVAL:
            raise DeniedError(f"{actor} started {id}", "somebody else has to approve it")
        quarantine.check_release(db, row.release)
        _move(db, ctx, row, Event.APPROVED, "")
        audit.record(db, ctx, actor, "rollout.approve", id, release=row.release)
        stepper.advance(db, ctx, id)
    return get_rollout(ctx, id)


def hold(db: Connection, ctx: Context, *, release: str, reason: str) -> list[str]:
    """Pause every rollout of a release that runs, for its quarantine; which they were."""
    running = select(rollout).where(
        rollout.c.release == release, rollout.c.state == State.RUNNING.value
    )
    held = db.execute(running).all()
    for row in held:
        _move(db, ctx, row, Event.HELD, f"{QUARANTINE}{reason}")
    return [row.id for row in held]


def let_go(
    db: Connection, ctx: Context, *, releases: Collection[str], reason: str
) -> dict[str, str]:
    """Say another reason of rollouts of these releases that a quarantine has paused: they stay so.
    Rollout -> state.
    """
    waiting = select(rollout).where(
        rollout.c.release.in_(releases),
        rollout.c.state == State.PAUSED.value,
        rollout.c.reason.startswith(QUARANTINE),
    )
    held = db.execute(waiting.order_by(rollout.c.created_at)).all()
    for row in held:
        db.execute(update(rollout).where(rollout.c.id == row.id).values(reason=reason))
        changes.note(db, ctx, "rollout", row.id)
    return {row.id: row.state for row in held}


def abort(ctx: Context, *, actor: str, id: str, rollback: bool = False) -> Rollout:  # noqa: A002
    """End it. Who is updating is told to stop, before the swap; with `rollback` every device that
    has the release, or is on its way, is given back what it had, unless that is in quarantine.
    ConflictError when it has ended.
    """
    with ctx.store.write() as db:
        row = _row(db, id)
        _check_goes_on(db, row, rollback)
        _abort(db, ctx, row, rollback, f"aborted by {actor}")
        audit.record(db, ctx, actor, "rollout.abort", id, rollback=rollback)
    return get_rollout(ctx, id)


# --- inside a transaction -----------------------------------------------------------------------


def _abort(db: Connection, ctx: Context, row: Row[Any], rollback: bool, reason: str) -> None:
    effect = _move(db, ctx, row, Event.REVERTED if rollback else Event.ABORTED, reason)
    if effect is not None:
        revert.carry_out(db, ctx, row, revert=effect is Effect.REVERT)
        stepper.advance(db, ctx, row.id)
    alerts.close(db, ctx, stepper.rollout_key(row.id), reason)


def _check_goes_on(db: Connection, row: Row[Any], rollback: bool) -> None:
    """ConflictError for one that has ended: devices go back by another rollout."""
    if State(row.state) not in ENDED:
        return
    back = quarantine.way_back(db, row.release)
    raise ConflictError(
        f"rollout is {row.state}: it cannot be {'reverted' if rollback else 'aborted'}",
        f"it has ended; devices go back by a rollout of their own: shoal rollout start {back}"
        if back
        else f"it has ended, and no other release of {row.model} is signed for the whole fleet: "
        f"publish one, then: shoal rollout start {row.model}@N",
        state=row.state,
    )


def _move(db: Connection, ctx: Context, row: Row[Any], event: Event, reason: str) -> Effect | None:
    after, effect = step_of(State(row.state), event)
    ended = {"finished_at": ctx.clock()} if after in ENDED else {}
    db.execute(
        update(rollout)
        .where(rollout.c.id == row.id)
        .values(state=after.value, reason=reason, **ended)
    )
    changes.note(db, ctx, "rollout", row.id)
    return effect


def _reopen(db: Connection, ctx: Context, row: Row[Any]) -> None:
    """Take the stage that held it up again."""
    told = msgspec.convert(row.stages, list[Stage])
    for i, stage in enumerate(told):
        if stage.state == StageState.FAILED:
            again = stage_step_of(StageState.FAILED, StageEvent.RETRIED)
            stepper.try_again(db, ctx, row.id, stage.name)
        elif stage.state == StageState.PAUSED:
            again = stage_step_of(StageState.PAUSED, StageEvent.ACCEPTED)
        else:
            continue
        begun = {"started_at": ctx.clock()} if again is StageState.RUNNING else {}
        told[i] = msgspec.structs.replace(
            stage, state=again.value, verdict="", accepted_pct=100 * stage.disagree, **begun
        )
    stepper.write(db, row.id, told)


def _make_room(db: Connection, ctx: Context, actor: str, model: str, ident: str) -> None:
    """One rollout of a model at a time: a standing one gives way, a moving one does not."""
    ended = [state.value for state in ENDED]
    others = select(rollout).where(rollout.c.model == model, rollout.c.state.not_in(ended))
    for row in db.execute(others).all():
        if row.state != State.PAUSED:
            raise ConflictError(
                f"rollout {row.id} of {row.release} is {row.state}",
                f"wait for it, or: shoal rollout abort {row.id}",
            )
        _abort(db, ctx, row, False, f"superseded by {ident}")
        audit.record(db, ctx, actor, "rollout.abort", row.id, superseded_by=ident)


def _check(plan: RolloutPlan) -> None:
    names = [stage.name for stage in plan.stages]
    if not names or len(set(names)) < len(names) or not all(names):
        raise InputError("a rollout needs stages, each with a name of its own")
    if plan.on_failure not in ON_FAILURE:
        raise InputError(f"on_failure {plan.on_failure!r:.40}", f"use {', '.join(ON_FAILURE)}")
    if plan.max_concurrent < 0:
        raise InputError("max_concurrent is 0 for all devices at once, or how many")
    if not plan.deadline_s > 0 or not 1 <= plan.max_attempts <= 10:
        raise InputError("deadline_s must be above 0 and max_attempts 1 to 10")
    for stage in plan.stages:
        shares = (stage.threshold_pct, stage.max_disagree_pct)
        if not 0 < stage.select.percent <= 100 or not all(0 <= share <= 100 for share in shares):
            raise InputError(
                f"stage {stage.name}: percent, threshold_pct and max_disagree_pct are 0 to 100"
            )


def _needs_approval(ctx: Context, actor: str, plan: RolloutPlan) -> str:
    """Why somebody else has to say yes first; "" when nobody has to.

    By what its stages select, not by who is there now: a device may join it late.
    """
    if ctx.settings.rollouts.approval == "none":
        return ""
    reaching = [stage.name for stage in plan.stages if stage.select.ring != "canary"]
    if not reaching:
        return ""
    return (
        f"stage {reaching[0]} reaches devices that are not canaries: an approver other than "
        f"{actor} has to say yes"
    )


def _candidates(db: Connection) -> list[cohort.Candidate]:
    rows = db.execute(select(device).where(device.c.state == "enrolled"))
    return [stepper.candidate(row) for row in rows]


def _stages(plan: RolloutPlan, taken: Mapping[str, str]) -> list[dict[str, Any]]:
    counts = _count(taken.values())
    return [
        msgspec.to_builtins(
            Stage(
                name=one.name, state=StageState.SCHEDULED.value, devices=counts.get(one.name, 0),
                succeeded=0, failed=0, skipped=0, unseen=0, started_at=0.0, finished_at=0.0,
            )
        )
        for one in plan.stages
    ]  # fmt: skip


def _count(names: Iterable[str]) -> dict[str, int]:
    counts: dict[str, int] = defaultdict(int)
    for name in names:
        counts[name] += 1
    return counts


# --- records ------------------------------------------------------------------------------------


def _record(db: Connection, row: Row[Any]) -> Rollout:
    """Counts are as of now: devices still report after a rollout has paused or ended."""
    query = (
        select(rollout_device.c.stage, rollout_device.c.state, func.count())
        .where(rollout_device.c.rollout == row.id)
        .group_by(rollout_device.c.stage, rollout_device.c.state)
    )
    states: dict[str, dict[str, int]] = defaultdict(dict)
    for stage, state, number in db.execute(query):
        states[stage][state] = number
    told = [_with(stage, states[stage.name]) for stage in msgspec.convert(row.stages, list[Stage])]
    plain = {k: v for k, v in row._mapping.items() if k not in ("plan", "stages")}
    return Rollout(**plain, plan=msgspec.convert(row.plan, RolloutPlan), stages=told)


def _with(stage: Stage, states: Mapping[str, int]) -> Stage:
    def total(group: frozenset[str]) -> int:
        return sum(number for state, number in states.items() if state in group)

    devices, ended = (
        sum(states.values()),
        [device_states.WON, device_states.LOST, device_states.OUT],
    )
    succeeded, failed, skipped = map(total, ended)
    return msgspec.structs.replace(
        stage,
        devices=devices,
        succeeded=succeeded,
        failed=failed,
        skipped=skipped,
        unseen=min(stage.unseen, devices - succeeded - failed - skipped),
    )


def _member(row: Row[Any]) -> RolloutDevice:
    return RolloutDevice(**{name: getattr(row, name) for name in RolloutDevice.__struct_fields__})


def _row(db: Connection, ident: str) -> Row[Any]:
    row = db.execute(select(rollout).where(rollout.c.id == ident)).first()
    if row is None:
        raise AbsentError("rollout", ident, "list them: shoal rollout list")
    return row
