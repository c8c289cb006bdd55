"""Advances rollouts: assigns the running stage, evaluates its gate, starts the next or pauses."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import Connection, Row, select, update

from shoal.controller.alerts import alerts
from shoal.controller.alerts.records import Draft
from shoal.controller.host.context import Context
from shoal.controller.rollouts import assignments, cohort, device_states, gate, revert
from shoal.controller.rollouts.assignments import Signed
from shoal.controller.rollouts.gate import Outcome
from shoal.controller.rollouts.machine import (
    ACTIVE,
    ENDED,
    Effect,
    Event,
    StageEvent,
    StageState,
    State,
    stage_step,
    step,
)
from shoal.controller.rollouts.records import RolloutPlan, Stage, StagePlan
from shoal.controller.store import changes
from shoal.controller.store.tables import device, rollout, rollout_device
from shoal.errors import BundleError, ShoalError
from shoal.manifest import SCHEMA
from shoal.profile import load_profiles
from shoal.trust import RINGS

_log = logging.getLogger(__name__)
#: Devices assigned in one transaction, which holds the write lock.
BATCH = 200
#: Seconds without a report after which a canceled device counts as unreachable.
PATIENCE_S = 60.0
_VERDICTS = {
    Outcome.WAIT: StageEvent.UNDECIDED,
    Outcome.PASSED: StageEvent.PASSED,
    Outcome.FAILED: StageEvent.REFUSED,
    Outcome.INCONCLUSIVE: StageEvent.SILENT,
}
#: Counts of the gate that a stage shows.
_COUNTS = ("devices", "succeeded", "failed", "skipped", "unseen", "disagree", "compared")
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


def step_all(ctx: Context) -> None:
    """Advance every active rollout; one that raises an error does not stop the others."""
    states = [state.value for state in ACTIVE]
    with ctx.store.read() as db:
        idents = list(db.scalars(select(rollout.c.id).where(rollout.c.state.in_(states))))
    for ident in idents:
        try:
            with ctx.store.write() as db:
                advance(db, ctx, ident)
        except ShoalError:
            _log.exception("rollout %s cannot advance", ident)


def advance(db: Connection, ctx: Context, ident: str) -> None:
    """Advance one rollout as far as it goes, inside a transaction."""
    RolloutStepper(db, ctx, ident).advance()


def move(db: Connection, ctx: Context, ident: str, event: Event, reason: str = "") -> State:
    """Apply `event` to a rollout: new state, reason, and its effect on orders; the new state.

    ConflictError if the rollout's state has no such transition.
    """
    row = db.execute(select(rollout).where(rollout.c.id == ident)).one()
    state, effect = step(State(row.state), event)
    ended = {"finished_at": ctx.clock()} if state in ENDED else {}
    changed = update(rollout).where(rollout.c.id == ident)
    db.execute(changed.values(state=state.value, reason=reason, **ended))
    changes.note(db, ctx, "rollout", ident)
    if effect in (Effect.CANCEL, Effect.REVERT):
        revert.withdraw_orders(db, ctx, row, revert=effect is Effect.REVERT)
    return state


def add_devices(db: Connection, ctx: Context, ident: str, stages: Mapping[str, str]) -> None:
    """Add devices to a rollout. stages: device -> stage."""
    rows = [
        {
            "rollout": ident, "device": name, "stage": stage, "state": device_states.WAITING,
            "attempt": 0, "updated_at": ctx.clock(), "facts": {},
        }
        for name, stage in stages.items()
    ]  # fmt: skip
    if rows:
        db.execute(rollout_device.insert(), rows)


def retry_failed(db: Connection, ctx: Context, ident: str, stage: str) -> None:
    """Set the failed devices of a stage back to waiting for another attempt."""
    lost = rollout_device.c.state.in_(sorted(device_states.FAILURES))
    mine = (rollout_device.c.rollout == ident) & (rollout_device.c.stage == stage) & lost
    fresh = {"state": device_states.WAITING, "cause": "", "detail": "", "updated_at": ctx.clock()}
    db.execute(update(rollout_device).where(mine).values(**fresh))


def save_stages(db: Connection, ident: str, stages: Sequence[Stage]) -> None:
    """Save the stages of a rollout."""
    db.execute(
        update(rollout).where(rollout.c.id == ident).values(stages=msgspec.to_builtins(stages))
    )


def candidate(row: Row[Any]) -> cohort.Candidate:
    """A row of the device table as a candidate."""
    return cohort.Candidate(row.name, row.site, row.profile, row.ring, row.labels)


class MemberRow(NamedTuple):
    """A rollout_device row joined with its device. seen: it reported since the stage began."""

    row: Row[Any]
    seen: bool

    @property
    def member(self) -> gate.Member:
        row = self.row
        disagree, compared = row.facts.get("disagree", 0.0), row.facts.get("compared", 0)
        return gate.Member(
            row.device, row.state, row.cause, row.detail, self.seen, row.online, disagree, compared
        )


class RolloutStepper:
    """Advances one rollout in one transaction."""

    def __init__(self, db: Connection, ctx: Context, ident: str) -> None:
        self.db, self.ctx, self.ident = db, ctx, ident
        self.now = ctx.clock()
        self.row = db.execute(select(rollout).where(rollout.c.id == ident)).one()
        self.plan = msgspec.convert(self.row.plan, RolloutPlan)
        self.stages = msgspec.convert(self.row.stages, list[Stage])
        self.state = State(self.row.state)

    def advance(self) -> None:
        """Start it if due, run its stages, settle it if it is ending."""
        before = list(self.stages)
        if self.state in (State.READY, State.SCHEDULED):
            self._move(Event.DUE)
        if self.state is State.RUNNING:
            self._add_late_joiners()
            while self._run_stage():
                pass
        if self.state in (State.STOPPING, State.ROLLING_BACK):
            self._settle()
        if self.stages != before:
            save_stages(self.db, self.ident, self.stages)
            changes.note(self.db, self.ctx, "rollout", self.ident)

    # --- one stage ----------------------------------------------------------------------------

    def _run_stage(self) -> bool:
        """Run the first stage that is not successful; True if it is now."""
        at = next((i for i, s in enumerate(self.stages) if s.state != StageState.SUCCESSFUL), None)
        if at is None:
            self._move(Event.EXHAUSTED)
            return False
        if self.stages[at].state == StageState.SCHEDULED:
            self._move_stage(at, StageEvent.BEGAN, started_at=self.now)
        stage, plan = self.stages[at], self.plan.stages[at]
        release = assignments.signed_release(self.db, self.plan.release)
        self._assign(stage, release)
        self._expire(stage)
        return self._judge(at, plan, release)

    def _assign(self, stage: Stage, release: Signed) -> None:
        members = self._members(stage)
        waiting = [member.row for member in members if self._is_due(member.row)]
        due = [row for row in waiting if row.ring in _rings(release)][: self._capacity(members)]
        outdated = self._outdated(due, release)
        for row in due:
            why = _why_skipped(row, release, row.device in outdated)
            if why:
                self._update(row, state=device_states.SKIPPED, cause=why[0], detail=why[1])
                continue
            number = row.attempt + 1
            assignments.assign(
                self.db, self.ctx, device=row.device, release=release, rollout=self.ident,
                attempt=number, deadline_at=self.now + self.plan.deadline_s,
            )  # fmt: skip
            before = row.releases.get(self.row.model, "")
            had_it = {"had_it": True} if not row.attempt and before == self.plan.release else {}
            self._update(
                row, state=device_states.ASSIGNED, attempt=number, cause="", detail="",
                previous=row.previous or (before if before != self.plan.release else ""),
                facts=row.facts | had_it | {"assigned_at": self.now},
            )  # fmt: skip

    def _outdated(self, due: Sequence[Row[Any]], release: Signed) -> set[str]:
        """Devices whose agents do not read the release's manifest; every agent reads SCHEMA."""
        schema = release.manifest.schema
        if schema == SCHEMA:
            return set()
        names = [row.device for row in due]
        query = select(device.c.name, device.c.facts["schemas"]).where(device.c.name.in_(names))
        facts: list[Any] = list(self.db.execute(query))
        return {name for name, reads in facts if not (isinstance(reads, list) and schema in reads)}

    def _capacity(self, members: Sequence[MemberRow]) -> int:
        """How many devices may be assigned now; a working device that is offline takes no place."""
        if not self.plan.max_concurrent:
            return BATCH
        idle = {device_states.WAITING, *device_states.ENDED}
        working = sum(one.row.state not in idle and one.row.online for one in members)
        return max(0, min(BATCH, self.plan.max_concurrent - working))

    def _is_due(self, row: Row[Any]) -> bool:
        again = row.state in device_states.RETRIED and row.attempt < self.plan.max_attempts
        return row.state == device_states.WAITING or again

    def _expire(self, stage: Stage) -> None:
        """Time out devices past their deadline; cancel decommissioned ones."""
        for row, seen in self._members(stage):
            if row.state in device_states.ENDED or row.state == device_states.WAITING:
                continue
            late = self.now > row.facts.get("assigned_at", 0) + self.plan.deadline_s
            if row.enrolled != "enrolled":
                self._update(row, state=device_states.CANCELED, cause="decommissioned", detail="")
            elif late and seen:
                detail = f"still {row.state} after {self.plan.deadline_s:g} s"
                self._update(row, state=device_states.TIMED_OUT, cause="deadline", detail=detail)

    def _judge(self, at: int, plan: StagePlan, release: Signed) -> bool:
        stage = self.stages[at]
        members = self._members(stage)
        held = [
            one
            for one in members
            if one.row.state == device_states.WAITING and one.row.ring not in _rings(release)
        ]
        judged = [one.member for one in members if one not in held]
        expired = self.now > stage.started_at + self.plan.deadline_s
        verdict = gate.judge(
            judged,
            threshold_pct=plan.threshold_pct,
            min_executed=plan.min_executed,
            expired=expired,
            proven=any(earlier.succeeded for earlier in self.stages[:at]),
            max_disagree_pct=max(plan.max_disagree_pct, stage.accepted_pct),
        )
        self._save_counts(at, [one.member for one in members])
        if held and verdict.outcome is not Outcome.FAILED:
            if not judged or verdict.outcome is not Outcome.WAIT:
                self._hold(self._unsigned(stage, len(held)))
            return False
        return self._decide(at, verdict)

    def _decide(self, at: int, verdict: gate.Verdict) -> bool:
        if verdict.outcome is Outcome.WAIT:
            return False
        self._move_stage(at, StageEvent.REPORTED)
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
        for row, _ in self._members(None):
            unreachable = not row.online or self.now - row.updated_at > PATIENCE_S
            if (
                row.state not in device_states.ENDED
                and self.state is State.STOPPING
                and unreachable
            ):
                detail = "cancel sent, not confirmed"
                self._update(row, state=device_states.CANCELED, cause="aborted", detail=detail)
        left = [row for row, _ in self._members(None) if row.state not in device_states.ENDED]
        if not any(row.online and self.now - row.updated_at <= self._patience() for row in left):
            self._move(Event.SETTLED, self.row.reason)

    def _patience(self) -> float:
        return max(PATIENCE_S, self.plan.deadline_s)

    def _add_late_joiners(self) -> None:
        """Add devices that enrolled since the start and fit the last stage."""
        mine = select(rollout_device.c.device).where(rollout_device.c.rollout == self.ident)
        fresh = select(device).where(
            device.c.enrolled_at > self.row.created_at,
            device.c.state == "enrolled",
            device.c.name.not_in(mine),
        )
        fitting = {
            row.name: stage
            for row in self.db.execute(fresh)
            if (stage := cohort.late(self.plan.stages, candidate(row)))
        }
        add_devices(self.db, self.ctx, self.ident, fitting)

    def _move(self, event: Event, reason: str = "") -> None:
        self.state = move(self.db, self.ctx, self.ident, event, reason)

    def _move_stage(self, at: int, event: StageEvent, **values: Any) -> None:
        stage = self.stages[at]
        after = stage_step(StageState(stage.state), event)
        self.stages[at] = msgspec.structs.replace(stage, state=after.value, **values)

    def _save_counts(self, at: int, members: Sequence[gate.Member]) -> None:
        count = gate.tally(members)
        counts = {name: getattr(count, name) for name in _COUNTS}
        self.stages[at] = msgspec.structs.replace(self.stages[at], **counts)

    def _members(self, stage: Stage | None) -> list[MemberRow]:
        wanted = [rollout_device.c.rollout == self.ident]
        if stage is not None:
            wanted.append(rollout_device.c.stage == stage.name)
        query = (
            select(
                rollout_device,
                device.c.ring,
                device.c.profile,
                device.c.releases,
                device.c.seen_at,
                device.c.online,
                device.c.state.label("enrolled"),
            )
            .join(device, device.c.name == rollout_device.c.device)
            .where(*wanted)
            .order_by(rollout_device.c.device)
        )
        since = stage.started_at if stage is not None else 0.0
        return [MemberRow(row, row.seen_at >= since) for row in self.db.execute(query)]

    def _update(self, row: Row[Any], **values: Any) -> None:
        mine = (rollout_device.c.rollout == self.ident) & (rollout_device.c.device == row.device)
        self.db.execute(update(rollout_device).where(mine).values(**values, updated_at=self.now))


def _rings(release: Signed) -> list[str]:
    """Rings whose devices accept a release signed by its role."""
    return [ring for ring, roles in RINGS.items() if release.role in roles]


def _why_skipped(row: Row[Any], release: Signed, outdated: bool) -> tuple[str, str] | None:
    """(cause, detail) why a device is skipped; None if it can run the release."""
    if row.enrolled != "enrolled":
        return "decommissioned", "it was decommissioned"
    profile = load_profiles().get(row.profile)
    if profile is not None and profile.unsupported:
        return device_states.UNSUPPORTED, f"{row.profile}: {profile.unsupported}"
    try:
        release.manifest.files_for(row.profile)
    except BundleError as error:
        return device_states.UNSUPPORTED, error.message
    if outdated:
        what = f"its agent reads no manifest of schema {release.manifest.schema}"
        return device_states.OUTDATED, f"{what}: update the agent"
    return None
