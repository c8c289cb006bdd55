"""Trailing stages: devices that missed a rollout, joined later or were replaced get its release.

The same orders, checks and limits as in its own stages. What fails here pauses this stage of this
release; the verdict of the rollout, which has ended, stays. One device that fails stops no other:
the stage is judged once NEED devices have finished.
"""

import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import Connection, Row, delete, func, select, update

from shoal.controller.access import audit
from shoal.controller.alerts import alerts
from shoal.controller.alerts.records import Draft
from shoal.controller.fleet import changed_devices
from shoal.controller.host.context import Context
from shoal.controller.releases import retirement
from shoal.controller.rollouts import (
    device_rows,
    device_states,
    gate,
    group_releases,
    listing,
    stage_orders,
    unreached,
)
from shoal.controller.rollouts.desired_state import TRAILING
from shoal.controller.rollouts.records import RolloutPlan, StagePlan, Trailing
from shoal.controller.rollouts.stage_members import StageMembers
from shoal.controller.store import changes
from shoal.controller.store.group_tables import trailing_stage
from shoal.controller.store.rollout_tables import rollout, rollout_device
from shoal.errors import ConflictError, ShoalError

_log = logging.getLogger(__name__)
RUNNING, PAUSED = "RUNNING", "PAUSED"
#: Finished devices before the stage is judged.
NEED = 3
#: Batches of orders in one call; devices of one look.
BATCHES, LOOKED = 10, 500
#: Seconds between looks for deadlines while a device is updating.
LOOK_S = 60.0
#: Never: until an event sets it.
NEVER = 1e15


def paused_key(ident: str) -> str:
    """Key of the alert of a trailing stage that is paused."""
    return f"trailing/{ident}"


def begin(db: Connection, ident: str, now: float) -> None:
    """Have the trailing stage of a rollout looked at; made if there is none."""
    mine = trailing_stage.c.rollout == ident
    if not db.execute(update(trailing_stage).where(mine).values(due_at=0.0)).rowcount:
        values = {"rollout": ident, "state": RUNNING, "since": now}
        db.execute(trailing_stage.insert().values(**values))


def step_all(ctx: Context) -> float:
    """Advance the trailing stages that are due; Unix time when time alone makes the next one due.

    Reads one index when there is none.
    """
    runs = trailing_stage.c.state == RUNNING
    due = runs & (trailing_stage.c.due_at <= ctx.clock())
    with ctx.store.read() as db:
        first = db.scalar(select(func.min(trailing_stage.c.due_at)).where(runs))
        idents = list(db.scalars(select(trailing_stage.c.rollout).where(due)))
    for ident in idents:
        try:
            _run(ctx, ident)
        except ShoalError:
            _log.exception("trailing stage of %s cannot advance", ident)
            with ctx.store.write() as db:
                _plan_next(db, ident, ctx.clock() + LOOK_S)
    return NEVER if first is None else float(first)


def pause(ctx: Context, *, actor: str, ident: str) -> None:
    """Order no further device of the trailing stage. ConflictError unless it runs."""
    with ctx.store.write() as db:
        row = _row(db, ident)
        if row is None or row.state == PAUSED:
            raise ConflictError(f"the trailing stage of {ident} does not run")
        _pause(db, ctx, ident, f"paused by {actor}")
        audit.record(db, ctx, actor, "rollout.pause", ident, stage=TRAILING)


def resume(ctx: Context, *, actor: str, ident: str) -> None:
    """Go on with the trailing stage: devices that failed are tried again."""
    mine = rollout_device.c
    lost = sorted(device_states.FAILURES | {device_states.SKIPPED})
    again = select(mine.device).where(mine.rollout == ident, mine.state.in_(lost))
    with ctx.store.write() as db:
        changed_devices.add(db, db.scalars(again).all(), changed_devices.DECIDED)
        whole = update(trailing_stage).where(trailing_stage.c.rollout == ident)
        db.execute(whole.values(state=RUNNING, reason="", due_at=0.0))
        alerts.close(db, ctx, paused_key(ident), f"resumed by {actor}")
        audit.record(db, ctx, actor, "rollout.resume", ident, stage=TRAILING)
        changes.note(db, ctx, "rollout", ident)


def record(db: Connection, ident: str) -> Trailing | None:
    """The trailing stage of a rollout; None if it has none."""
    row = _row(db, ident)
    if row is None:
        return None
    return listing.trailing_record(row, device_rows.counts(db, ident))


def reasons(db: Connection) -> dict[str, str]:
    """Rollout -> why its trailing stage is paused."""
    query = select(trailing_stage.c.rollout, trailing_stage.c.reason)
    return dict(db.execute(query.where(trailing_stage.c.state == PAUSED)).all())


# --- one step -----------------------------------------------------------------------------------


class _Found(NamedTuple):
    """Without the write lock. desired: whether a group still runs it; late: rows of devices past
    their deadline or decommissioned."""

    whole: Row[Any]
    plan: RolloutPlan
    desired: bool
    orders: stage_orders.StageOrders
    late: Sequence[Row[Any]]


def _run(ctx: Context, ident: str) -> None:
    for _ in range(BATCHES):
        with ctx.store.read() as db:
            found = _find(db, ctx, ident)
        with ctx.store.write() as db:
            if not _store(db, ctx, ident, found):
                return


def _find(db: Connection, ctx: Context, ident: str) -> _Found:
    whole = db.execute(select(rollout).where(rollout.c.id == ident)).one()
    plan = msgspec.convert(whole.plan, RolloutPlan)
    found = _Found(whole, plan, group_releases.is_desired(db, ident), stage_orders.NONE, ())
    if not found.desired:
        return found
    members = StageMembers(db, ident, TRAILING, 0.0)
    late = members.late(ctx.clock() - plan.deadline_s, LOOKED)
    if _is_retired(db, plan.release):
        return found._replace(late=late)
    once = msgspec.structs.replace(plan, max_attempts=1)  # desired_state decides about another
    return found._replace(late=late, orders=stage_orders.next_orders(db, ctx, whole, once, members))


def _is_retired(db: Connection, release: str) -> bool:
    try:
        retirement.check_release(db, release)
    except ConflictError:
        return True
    return False


def _store(db: Connection, ctx: Context, ident: str, found: _Found) -> bool:
    """Whether there may be more to do at once."""
    row = _row(db, ident)
    if row is None or row.state != RUNNING:
        return False
    if not found.desired:
        return _end(db, ctx, ident)
    if found.orders.changes:
        stage_orders.store_orders(db, ctx, found.orders)
        changed_devices.add(db, found.orders.changes, changed_devices.SWEPT)
    _time_out(db, ctx, found)
    states = device_rows.counts(db, ident).get(TRAILING, {})
    more = bool(found.orders.changes) or len(found.late) == LOOKED
    working = sum(
        count.devices for state, count in states.items() if state not in device_states.ENDED
    )
    _plan_next(db, ident, 0.0 if more else ctx.clock() + LOOK_S if working else NEVER)
    count = gate.tally(states)
    members = StageMembers(db, ident, TRAILING, 0.0)
    if why := _why_pause(count, found.plan.stages[-1], members):
        _pause(db, ctx, ident, why)
        alerts.raise_alert(db, ctx, alert_draft(ident, found.plan.release, why))
        more = False
    unreached.update_alerts(db, ctx, ident, found.plan.release)
    if more or found.late:
        changes.note(db, ctx, "rollout", ident)
    return more


def _end(db: Connection, ctx: Context, ident: str) -> bool:
    """End the stage of a release that no group runs any more; whether devices are left."""
    mine = rollout_device.c
    left = select(rollout_device).where(
        mine.rollout == ident,
        mine.stage == TRAILING,
        mine.state.not_in(sorted(device_states.ENDED)),
    )
    rows = db.execute(left.limit(LOOKED)).all()
    values = {
        "state": device_states.CANCELED, "cause": "superseded",
        "detail": "its group runs another release now",
    }  # fmt: skip
    device_rows.change(db, ctx, [device_rows.Change(row, values) for row in rows])
    if len(rows) == LOOKED:
        return True
    db.execute(delete(trailing_stage).where(trailing_stage.c.rollout == ident))
    alerts.close(db, ctx, paused_key(ident), "its group runs another release now")
    unreached.close_alerts(db, ctx, ident)
    changes.note(db, ctx, "rollout", ident)
    return False


def _time_out(db: Connection, ctx: Context, found: _Found) -> None:
    """A device that went away is ordered again once it reports, and counts for nothing."""
    taken = []
    for row in device_rows.unchanged(db, found.late):
        values = {"state": device_states.CANCELED, "cause": "away", "detail": "it went away"}
        if row.enrolled != "enrolled":
            values |= {"cause": "decommissioned", "detail": ""}
        elif row.online:
            detail = f"still {row.state} after {found.plan.deadline_s:g} s"
            values = {"state": device_states.TIMED_OUT, "cause": "deadline", "detail": detail}
        taken.append(device_rows.Change(row, values))
    device_rows.change(db, ctx, taken)
    changed_devices.add(db, [one.row.device for one in taken], changed_devices.SWEPT)


def _why_pause(count: gate.Tally, plan: StagePlan, members: gate.Members) -> str:
    """Why the stage pauses, by the gate of the rollout's last stage; "" if it does not."""
    need = max(NEED, plan.min_executed)
    if count.executed < need:
        return ""
    # Only a stage that has failed is of interest: what is left is never waited for here.
    verdict = gate.judge(
        count._replace(devices=count.executed + count.skipped),
        members,
        threshold_pct=plan.threshold_pct,
        min_executed=need,
        expired=True,
        max_disagree_pct=plan.max_disagree_pct,
    )
    return verdict.why if verdict.outcome is gate.Outcome.FAILED else ""


def _pause(db: Connection, ctx: Context, ident: str, why: str) -> None:
    whole = update(trailing_stage).where(trailing_stage.c.rollout == ident)
    db.execute(whole.values(state=PAUSED, reason=why))
    changes.note(db, ctx, "rollout", ident)


def alert_draft(ident: str, release: str, why: str) -> Draft:
    """Alert of a trailing stage that paused itself."""
    return Draft(
        key=paused_key(ident),
        kind="rollout",
        severity="critical",
        title=f"{release} has stopped reaching devices that missed its rollout",
        detail=f"The rollout itself has ended and stays as it is. {why}",
        next_step=f"Fix the cause, then: shoal rollout resume {ident}",
        model=release.partition("@")[0],
        release=release,
    )


def _plan_next(db: Connection, ident: str, due_at: float) -> None:
    whole = update(trailing_stage).where(trailing_stage.c.rollout == ident)
    db.execute(whole.values(due_at=due_at))


def _row(db: Connection, ident: str) -> Row[Any] | None:
    return db.execute(select(trailing_stage).where(trailing_stage.c.rollout == ident)).first()
