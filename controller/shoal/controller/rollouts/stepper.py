"""Advances rollouts: orders the running stage, evaluates its gate, starts the next or pauses.

By event: whatever changes a rollout sets its `due_at` to 0, in the same transaction. What no event
tells (deadlines, who is reachable, who enrolled) is looked at every few seconds. A step reads the
counts of a stage, and of its devices only those that are due.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import Connection, Row, select, update

from shoal.controller.alerts import alerts
from shoal.controller.alerts.records import Draft
from shoal.controller.conditions.clocks import DeviceClock, is_wrong
from shoal.controller.fleet.clock_skew import describe_clock
from shoal.controller.host.context import Context
from shoal.controller.rollouts import (
    assignments,
    behaviour_looks,
    cohort,
    device_rows,
    device_states,
    gate,
    group_releases,
    revert,
    stage_orders,
)
from shoal.controller.rollouts.gate import Count, Outcome
from shoal.controller.rollouts.machine import (
    ACTIVE,
    ENDED,
    Event,
    StageEvent,
    StageState,
    State,
    stage_step,
    step,
)
from shoal.controller.rollouts.records import RolloutPlan, Stage, StagePlan
from shoal.controller.rollouts.stage_members import StageMembers
from shoal.controller.store import changes
from shoal.controller.store.rollout_tables import rollout, rollout_device
from shoal.controller.store.tables import device
from shoal.errors import ShoalError
from shoal.trust import CANDIDATE

_log = logging.getLogger(__name__)
#: Batches of orders of one rollout in one call: then it is another rollout's turn.
BATCHES = 10
#: Seconds between looks for what no event tells.
LOOK_S = 5.0
#: Devices of one look: the rest is found at the next, at once.
LOOKED = 500
#: Seconds without a report after which a canceled device counts as unreachable.
PATIENCE_S = 60.0
#: A clock that is further ahead may see expired metadata: its shortest is renewed at half a day.
CLOCK_AHEAD_S = 43_200.0
_VERDICTS = {
    Outcome.WAIT: StageEvent.UNDECIDED,
    Outcome.PASSED: StageEvent.PASSED,
    Outcome.FAILED: StageEvent.REFUSED,
    Outcome.INCONCLUSIVE: StageEvent.SILENT,
}
#: Counts of the gate that a stage shows.
_COUNTS = ("devices", "succeeded", "failed", "skipped", "disagree", "compared")
_ON_FAILURE = {"pause": Event.HELD, "stop": Event.ABORTED, "rollback": Event.REVERTED}


def rollout_key(rollout: str) -> str:
    """Key of the alert of a rollout."""
    return f"rollout/{rollout}"


def stalled_draft(ident: str, release: str, reason: str, *, failed: bool) -> Draft:
    """Alert of a rollout that waits for a person."""
    step = (
        f"Fix the cause and resume ({ident} tries the failed devices again), or go back: "
        f"shoal rollout abort {ident} --rollback"
        if failed
        else f"Decide: shoal rollout resume {ident}, or shoal rollout abort {ident}"
    )
    return Draft(
        key=rollout_key(ident),
        kind="rollout",
        severity="critical" if failed else "warning",
        title=f"Rollout of {release} has stopped",
        detail=reason,
        next_step=step,
        model=release.partition("@")[0],
        release=release,
    )


def step_all(ctx: Context) -> float:
    """Advance every active rollout that is due; one that raises an error does not stop the others.

    Unix time when time alone makes one due. Reads one index when there is none.
    """
    states, now = [state.value for state in {State.CREATING, *ACTIVE}], ctx.clock()
    active = select(rollout.c.id, rollout.c.due_at).where(rollout.c.state.in_(states))
    with ctx.store.read() as db:
        due_at = {row.id: float(row.due_at) for row in db.execute(active)}
    for ident in [ident for ident, at in due_at.items() if at <= now]:
        try:
            run(ctx, ident)
        except ShoalError:
            _log.exception("rollout %s cannot advance", ident)
            with ctx.store.write() as db:
                later = update(rollout).where(rollout.c.id == ident)
                db.execute(later.values(due_at=ctx.clock() + LOOK_S))
    return min(due_at.values(), default=math.inf)


def run(ctx: Context, ident: str, batches: int = BATCHES) -> None:
    """Advance one rollout as far as it goes now: a transaction for each batch of devices."""
    for _ in range(batches):
        with ctx.store.read() as db:
            found = _find(db, ctx, ident)
        with ctx.store.write() as db:
            if found.orders.changes:
                stage_orders.store(db, ctx, ident, found.orders)
            if found.withdrawals:
                revert.store(db, ctx, ident, found.withdrawals)
            if found.behaviour is not None:
                behaviour_looks.store(db, found.behaviour)
            moved = RolloutStepper(db, ctx, ident).advance(found)
        if not moved:
            return


class Found(NamedTuple):
    """What a step has found without the write lock.

    looked    whether it looked for what no event tells: late, unseen, joining
    late      rows of devices past their deadline or decommissioned
    unseen    unfinished devices that have not reported since the stage began
    joining   device -> stage, of devices that enrolled meanwhile
    behaviour  a look at what the devices of the stage do, if one was due
    """

    orders: stage_orders.StageOrders
    withdrawals: revert.Withdrawals | None
    looked: bool = False
    late: Sequence[Row[Any]] = ()
    unseen: int = 0
    joining: Mapping[str, str] = {}
    behaviour: behaviour_looks.Look | None = None

    @property
    def more(self) -> bool:
        """Whether there may be more of the same."""
        return bool(self.orders.changes or self.withdrawals or self.late or self.joining)


def _find(db: Connection, ctx: Context, ident: str) -> Found:
    whole = db.execute(select(rollout).where(rollout.c.id == ident)).one()
    found = Found(stage_orders.prepare(db, ctx, whole), revert.prepare(db, ctx, whole))
    stage = stage_orders.running_stage(whole)
    if whole.state != State.RUNNING or stage is None or ctx.clock() < whole.look_at:
        return found
    plan = msgspec.convert(whole.plan, RolloutPlan)
    members = StageMembers(db, ident, stage.name, stage.started_at)
    return found._replace(
        looked=True,
        late=members.late(ctx.clock() - plan.deadline_s, LOOKED),
        unseen=members.unseen()[0],
        joining=_late_joiners(db, whole, plan),
        behaviour=behaviour_looks.find(db, ctx, whole, plan, stage) if plan.gates else None,
    )


def _late_joiners(db: Connection, whole: Row[Any], plan: RolloutPlan) -> dict[str, str]:
    """Devices that enrolled since the start and fit the last stage."""
    mine = select(rollout_device.c.device).where(rollout_device.c.rollout == whole.id)
    fresh = select(device).where(
        device.c.enrolled_at > whole.created_at,
        device.c.state == "enrolled",
        device.c.name.not_in(mine),
    )
    joining = {
        row.name: stage
        for row in db.execute(fresh)
        if (stage := cohort.late(plan.stages, cohort.candidate(row)))
    }
    return dict(list(joining.items())[:LOOKED])


def move(db: Connection, ctx: Context, ident: str, event: Event, reason: str = "") -> State:
    """Apply `event` to a rollout: new state and reason; the new state.

    Orders follow in steps of their own: a rollout that ends withdraws them batch by batch.
    ConflictError if the rollout's state has no such transition.
    """
    row = db.execute(select(rollout).where(rollout.c.id == ident)).one()
    state = step(State(row.state), event)
    ended = {"finished_at": ctx.clock()} if state in ENDED else {}
    values = {"state": state.value, "reason": reason, "due_at": 0.0, **ended}
    db.execute(update(rollout).where(rollout.c.id == ident).values(**values))
    changes.note(db, ctx, "rollout", ident)
    if state in (State.ROLLING_BACK, State.ROLLED_BACK):
        group_releases.give_up(db, ctx, ident)
    if state in ENDED:  # devices that missed it, and those that it leaves to their groups
        plan = msgspec.convert(row.plan, RolloutPlan)
        group_releases.sweep(db, [stage.select for stage in plan.stages])
    return state


def retry_failed(ctx: Context, ident: str, stage: str) -> None:
    """Set the failed devices of a stage back to waiting, some in each transaction."""
    lost = rollout_device.c.state.in_(sorted(device_states.FAILURES))
    mine = (rollout_device.c.rollout == ident) & (rollout_device.c.stage == stage) & lost
    fresh = {"state": device_states.WAITING, "cause": "", "detail": ""}
    while True:
        with ctx.store.write() as db:
            rows = db.execute(select(rollout_device).where(mine).limit(LOOKED)).all()
            device_rows.change(db, ctx, [device_rows.Change(row, fresh) for row in rows])
        if len(rows) < LOOKED:
            return


def save_stages(db: Connection, ident: str, stages: Sequence[Stage]) -> None:
    """Save the stages of a rollout."""
    db.execute(
        update(rollout).where(rollout.c.id == ident).values(stages=msgspec.to_builtins(stages))
    )


class RolloutStepper:
    """Advances one rollout in one write transaction."""

    def __init__(self, db: Connection, ctx: Context, ident: str) -> None:
        self.db, self.ctx, self.ident = db, ctx, ident
        self.now = ctx.clock()
        self.row = db.execute(select(rollout).where(rollout.c.id == ident)).one()
        self.plan = msgspec.convert(self.row.plan, RolloutPlan)
        self.stages = msgspec.convert(self.row.stages, list[Stage])
        self.state = State(self.row.state)

    def advance(self, found: Found) -> bool:
        """Start it if due, take in what was found, judge its stages, settle it if it is ending.

        Whether anything changed, so that another step may find more.
        """
        before = list(self.stages)
        began = self.state
        if self.state is State.CREATING:
            self._move(
                Event.ABORTED, "it was interrupted while its devices were added: start again"
            )
        if self.state in (State.READY, State.SCHEDULED):
            self._move(Event.DUE)
        if self.state is State.RUNNING:
            self._take_in(found)
            while self._run_stage(found):
                pass
        if self.state in revert.ENDING and self.row.cursor == revert.DONE:
            self._settle()
        back = self.state in (State.ROLLING_BACK, State.ROLLED_BACK)
        if not back and (self.state is not began or self.stages != before):
            group_releases.take_over(self.db, self.ctx, self.row, self.plan, self.stages)
        if self.stages != before:
            save_stages(self.db, self.ident, self.stages)
            changes.note(self.db, self.ctx, "rollout", self.ident)
        moved = found.more or self.state is not began
        moved |= [s.state for s in self.stages] != [s.state for s in before]
        self._plan_next(found, moved)
        return moved and self.state in ACTIVE

    def _plan_next(self, found: Found, moved: bool) -> None:
        """Set when it is looked at next: at once while there may be more to do."""
        look_at = self.row.look_at
        if found.looked:
            look_at = 0.0 if found.late or found.joining else self.now + LOOK_S
        due_at = 0.0 if moved else self.now + LOOK_S
        if not moved and self.state is State.RUNNING:
            due_at = look_at
        mine = update(rollout).where(rollout.c.id == self.ident)
        self.db.execute(mine.values(look_at=look_at, due_at=due_at))

    def _take_in(self, found: Found) -> None:
        """Time out devices past their deadline, cancel decommissioned ones, add new ones."""
        taken = []
        for row in device_rows.unchanged(self.db, found.late):
            values = {"state": device_states.CANCELED, "cause": "decommissioned", "detail": ""}
            if row.enrolled == "enrolled":
                values = _timed_out(row, self.plan.deadline_s)
            taken.append(device_rows.Change(row, values))
        device_rows.change(self.db, self.ctx, taken)
        known = device_rows.names_in(self.db, self.ident, list(found.joining))
        joining = {name: at for name, at in found.joining.items() if name not in known}
        device_rows.add(self.db, self.ctx, self.ident, joining)

    # --- one stage ----------------------------------------------------------------------------

    def _run_stage(self, found: Found) -> bool:
        """Run the first stage that is not successful; True if it is now."""
        at = next((i for i, s in enumerate(self.stages) if s.state != StageState.SUCCESSFUL), None)
        if at is None:
            self._move(Event.EXHAUSTED)
            return False
        if self.stages[at].state == StageState.SCHEDULED:
            self._move_stage(at, StageEvent.BEGAN, started_at=self.now)
        return self._judge(at, self.plan.stages[at], found)

    def _judge(self, at: int, plan: StagePlan, found: Found) -> bool:
        stage = self.stages[at]
        members = StageMembers(self.db, self.ident, stage.name, stage.started_at)
        states = device_rows.counts(self.db, self.ident).get(stage.name, {})
        self._save_counts(at, gate.tally(states), found)
        held = self._held(members)
        judged = gate.tally(_without(states, device_states.WAITING, held))
        again = members.retried(self.plan.max_attempts)
        verdict = gate.judge(
            judged._replace(failed=judged.failed - again, retrying=again),
            members,
            threshold_pct=plan.threshold_pct,
            min_executed=plan.min_executed,
            expired=self.now > stage.started_at + self.plan.deadline_s,
            proven=any(earlier.succeeded for earlier in self.stages[:at]),
            max_disagree_pct=max(plan.max_disagree_pct, stage.accepted_pct),
        )
        if held and verdict.outcome is not Outcome.FAILED:
            if not judged.devices or verdict.outcome is not Outcome.WAIT:
                self._hold(self._unsigned(stage, held))
            return False
        if self.plan.gates and judged.taking:
            verdict = self._compare(at, verdict)
        return self._decide(at, verdict, members)

    def _compare(self, at: int, verdict: gate.Verdict) -> gate.Verdict:
        """The verdict with what the stage's behaviour gates have found: they stop it at any time,
        and once its devices have finished it waits for them."""
        seen = behaviour_looks.newest(self.db, self.ident, self.stages[at])
        if seen is not None and seen.outcome == Outcome.FAILED:
            return gate.Verdict(Outcome.FAILED, seen.why)
        if verdict.outcome is not Outcome.PASSED:
            return verdict
        if not self.stages[at].analysing_at:
            self._move_stage(at, StageEvent.REPORTED, analysing_at=self.now)
        if seen is None:
            return gate.Verdict(Outcome.WAIT, "")
        proven = any(earlier.succeeded for earlier in self.stages[:at])
        if proven and not behaviour_looks.has_control(seen):
            why = f"{verdict.why}; no device is left on another release to compare with"
            return gate.Verdict(Outcome.PASSED, why)
        if seen.outcome == Outcome.PASSED:
            return gate.Verdict(Outcome.PASSED, f"{verdict.why}; {seen.why}")
        return gate.Verdict(Outcome(seen.outcome), seen.why)

    def _held(self, members: StageMembers) -> int:
        """Waiting devices that do not accept the release's signature."""
        role = assignments.role_of(self.db, self.plan.release)
        return members.waiting_outside(assignments.rings(role)) if role == CANDIDATE else 0

    def _decide(self, at: int, verdict: gate.Verdict, members: StageMembers) -> bool:
        if verdict.outcome is Outcome.WAIT:
            return False
        unseen, _ = members.unseen()
        self._move_stage(at, StageEvent.REPORTED, unseen=unseen)
        self._move_stage(at, _VERDICTS[verdict.outcome], verdict=verdict.why, finished_at=self.now)
        if verdict.outcome is Outcome.PASSED:
            return True
        reason = f"stage {self.stages[at].name}: {verdict.why}"
        if verdict.outcome is Outcome.FAILED:
            self._fail(reason)
        else:
            self._move_stage(at, StageEvent.HELD)
            self._hold(reason)
        return False

    def _unsigned(self, stage: Stage, number: int) -> str:
        ref = self.plan.release
        return (
            f"stage {stage.name}: {ref} is a candidate and {number} devices are not canaries; "
            f"it needs a release signature: shoal release publish {ref}"
        )

    # --- transitions ---------------------------------------------------------------------

    def _hold(self, reason: str) -> None:
        self._move(Event.HELD, reason)
        self._alert(reason, failed=False)

    def _fail(self, reason: str) -> None:
        self._move(_ON_FAILURE[self.plan.on_failure], reason)
        self._alert(reason, failed=True)

    def _alert(self, reason: str, *, failed: bool) -> None:
        draft = stalled_draft(self.ident, self.plan.release, reason, failed=failed)
        alerts.raise_alert(self.db, self.ctx, draft)

    def _settle(self) -> None:
        """End once every device has finished or cannot be reached."""
        mine = rollout_device.c
        left = (
            select(rollout_device, device.c.online)
            .join(device, device.c.name == mine.device)
            .where(mine.rollout == self.ident, mine.state.not_in(sorted(device_states.ENDED)))
        )
        reachable = device.c.online & (mine.updated_at >= self.now - PATIENCE_S)
        if self.state is State.STOPPING:
            lost = self.db.execute(left.where(~reachable).limit(LOOKED)).all()
            values = {
                "state": device_states.CANCELED, "cause": "aborted",
                "detail": "cancel sent, not confirmed",
            }  # fmt: skip
            device_rows.change(self.db, self.ctx, [device_rows.Change(row, values) for row in lost])
            if len(lost) == LOOKED:
                return
        patience = max(PATIENCE_S, self.plan.deadline_s)
        waited_for = device.c.online & (mine.updated_at >= self.now - patience)
        if self.db.execute(left.where(waited_for).limit(1)).first() is None:
            self._move(Event.SETTLED, self.row.reason)

    def _move(self, event: Event, reason: str = "") -> None:
        self.state = move(self.db, self.ctx, self.ident, event, reason)

    def _move_stage(self, at: int, event: StageEvent, **values: Any) -> None:
        stage = self.stages[at]
        after = stage_step(StageState(stage.state), event)
        self.stages[at] = msgspec.structs.replace(stage, state=after.value, **values)

    def _save_counts(self, at: int, count: gate.Tally, found: Found) -> None:
        counts = {name: getattr(count, name) for name in _COUNTS}
        if found.looked:
            counts["unseen"] = found.unseen
        self.stages[at] = msgspec.structs.replace(self.stages[at], **counts)


def _without(states: Mapping[str, Count], state: str, devices: int) -> dict[str, Count]:
    """Counts without so many devices of one state."""
    less = states.get(state, Count()).plus(Count(1), -devices)
    return {**states, state: less}


def _timed_out(row: Row[Any], deadline_s: float) -> dict[str, Any]:
    """Values of a device past its deadline; one that could not start for its clock is skipped."""
    detail = f"still {row.state} after {deadline_s:g} s"
    clock = DeviceClock(row.device, row.clock_skew_s, row.clock_error_s)
    waits = row.state in (device_states.ASSIGNED, "QUEUED")
    if waits and row.clock_skew_s > 0 and is_wrong(clock, CLOCK_AHEAD_S):
        offset = describe_clock(row.clock_skew_s, row.clock_error_s)
        return {
            "state": device_states.SKIPPED, "cause": device_states.CLOCK,
            "detail": f"{detail}; its clock is {offset}, and by it signatures have expired",
        }  # fmt: skip
    return {"state": device_states.TIMED_OUT, "cause": "deadline", "detail": detail}
