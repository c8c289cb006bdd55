"""Schedule the next round of each task: budget check, client selection, first journal line."""

import math
import secrets
from collections.abc import Iterator
from typing import Any

import msgspec
from sqlalchemy import Connection, Row, func, select

from shoal.controller.alerts import alerts
from shoal.controller.alerts.records import Draft
from shoal.controller.federated.planning import plans
from shoal.controller.federated.planning.client_selection import (
    Candidate,
    Demands,
    hints,
    select_clients,
    tally,
)
from shoal.controller.federated.privacy import accountant
from shoal.controller.federated.privacy.accountant import Spent
from shoal.controller.federated.records import Task, TaskPlan
from shoal.controller.federated.rounds import machine, rows
from shoal.controller.federated.rounds.machine import Mark, Pace
from shoal.controller.host.context import Context
from shoal.controller.store import changes
from shoal.controller.store.tables import device, federated_round, federated_task, participation
from shoal.errors import ConflictError, SettingError, ShoalError
from shoal.federated.plan import Learning, Plan
from shoal.federated.spending import Budget

#: Delay before the next attempt when too few devices are eligible.
RESCHEDULE_S = 5.0
#: Delay after a failed round: doubled each time, up to the longest.
FIRST_RETRY_S, LONGEST_RETRY_S = 2.0, 60.0
#: Newest rounds searched for the last training round.
_LOOK_BACK = 50
#: Reason of devices that are left out after they failed a round.
FAILED_BEFORE = "failed-before"
_TO_BLAME = "to_blame"
_EXCLUDED_S = 86_400.0
_TOOK_PART = (Mark.UPDATED, Mark.REVEALED, Mark.MEASURED)


def start_due(ctx: Context) -> list[str]:
    """Plan a round for every running task that is due; ids of these rounds."""
    started = []
    running = select(federated_round.c.task).where(federated_round.c.ended_at == 0)
    waiting = select(federated_task.c.name).where(
        federated_task.c.state == rows.RUNNING,
        federated_task.c.next_at <= ctx.clock(),
        federated_task.c.name.not_in(running),
    )
    with ctx.store.read() as db:
        names = list(db.scalars(waiting.order_by(federated_task.c.name)))
    for name in names:
        with ctx.store.write() as db:
            started += _start(db, ctx, rows.task_row(db, name))
    return started


def _start(db: Connection, ctx: Context, row: Row[Any]) -> list[str]:
    """The round's id; empty when the task is done, stops or waits, with the reason in its row."""
    task = rows.task_of(row)
    if task.rounds >= task.asked:
        rows.set_task(db, ctx, task.name, state=rows.READY, reason="")
        return []
    try:
        return [_plan_round(db, ctx, task, row)]
    except SettingError as error:
        stop(db, ctx, task.name, task.model, str(error))
    except ConflictError as error:
        _wait(db, ctx, task, str(error))
    return []


def _plan_round(db: Connection, ctx: Context, task: Task, row: Row[Any]) -> str:
    """ConflictError for too few eligible devices, SettingError when the plan forbids a round."""
    attempt, before = secrets.token_bytes(16), _last(db, task.name)
    carried = carried_over(db, task.name)
    excluded = _excluded(db, task.name, ctx.clock())
    unavailable = {*carried, *excluded}
    free = (one for one in _candidates(db, task, before) if one.device not in unavailable)
    found = select_clients(free, _demands(task), _pace(task), attempt)
    try:
        record = machine.new_round(
            task.name, _number(before), attempt, _pace(task), found.invited,
            secure=task.plan.secure is not None, carried=carried,
            late=plans.strategy_for(task.plan).late(),
        )  # fmt: skip
    except ConflictError as error:
        raise _too_few(error, found.left_out | excluded) from error
    plan = plans.plan_of(
        task.plan, number=record.number, attempt=attempt, invited=len(record.marks),
        now_s=ctx.clock(), clip=_clip(db, task),
    )  # fmt: skip
    check_budget(task, plan, row.spent)
    return _insert(db, ctx, task, record, plan, _attempt(before, row.next_at))


def task_key(task: str) -> str:
    """Key of the alert of a federated task."""
    return f"task/{task}"


def stop(db: Connection, ctx: Context, task: str, model: str, reason: str) -> None:
    """Stop a task's rounds and raise an alert: they do not go on by themselves."""
    rows.set_task(db, ctx, task, state=rows.STOPPED, reason=reason)
    alerts.raise_alert(db, ctx, stopped_draft(task, model, reason))


def stopped_draft(task: str, model: str, reason: str) -> Draft:
    """Alert of a task whose rounds do not go on by themselves."""
    return Draft(
        key=task_key(task),
        kind="task",
        severity="warning",
        title=f"The rounds of {task} have stopped",
        detail=reason,
        next_step=(
            f"See why: shoal round show {task}. Mend the cause, then go on: shoal round start "
            f"{task}"
        ),
        model=model,
    )


def check_budget(task: Task, plan: Plan, spent: list[dict[str, Any]]) -> None:
    """SettingError when another round would exceed the task's privacy budget."""
    assert task.prepared is not None
    noise = plans.noise_of(plan, task.prepared.size)
    if noise is None or task.plan.budget is None:
        return
    budget = Budget(epsilon=task.plan.budget.epsilon, delta=task.plan.budget.delta)
    try:
        accountant.check_budget(spent_of(spent), Spent(noise=noise), budget)
    except ConflictError as error:
        raise SettingError(f"budget-spent: {error.message}", error.hint) from error


def spent_of(kept: list[dict[str, Any]]) -> list[Spent]:
    """Decode the `spent` column of a task."""
    return msgspec.convert(kept, list[Spent])


def after_spending(task: TaskPlan, kept: list[dict[str, Any]], noise: float) -> dict[str, Any]:
    """Columns of the task after another round of this noise.

    Devices are drawn without replacement and answer when they can: neither is the independent
    sampling that privacy amplification needs, so the rate is taken as 1.
    """
    kinds = {(one.noise, one.rate): one.rounds for one in spent_of(kept)}
    kinds[noise, 1.0] = kinds.get((noise, 1.0), 0) + 1
    spent = [Spent(noise=n, rate=rate, rounds=count) for (n, rate), count in kinds.items()]
    assert task.privacy is not None
    delta = task.budget.delta if task.budget else task.privacy.delta
    return {
        "spent": msgspec.to_builtins(spent),
        "epsilon": accountant.epsilon(spent, delta),
    }


def _insert(
    db: Connection, ctx: Context, task: Task, record: machine.RoundRecord, plan: Plan, attempt: int
) -> str:
    ident = rows.round_id(task.name, record.number)
    db.execute(
        federated_round.insert().values(
            id=ident, task=task.name, number=record.number, attempt=attempt,
            state=record.state.value, journal=msgspec.to_builtins(record),
            plan=msgspec.to_builtins(plan), parent=task.parent, theta=task.checkpoint,
            old_memory=task.memory, result={}, started_at=ctx.clock(),
        )
    )  # fmt: skip
    changes.note(db, ctx, "round", ident)
    if task.reason:
        rows.set_task(db, ctx, task.name, reason="")
    return ident


def _wait(db: Connection, ctx: Context, task: Task, reason: str) -> None:
    later = ctx.clock() + RESCHEDULE_S
    if reason == task.reason:  # unchanged: not announced as a change
        query = federated_task.update().where(federated_task.c.name == task.name)
        db.execute(query.values(next_at=later))
    else:
        rows.set_task(db, ctx, task.name, reason=reason, next_at=later)


def start_evaluation(db: Connection, ctx: Context, task: Task, number: int, theta: str) -> str:
    """Plan a round in which all eligible devices measure `theta` of round `number`; its id.

    ConflictError when no device is eligible.
    """
    before, attempt = _last(db, task.name), secrets.token_bytes(16)
    unlimited = Pace(goal=1, least=1, over=1e9, evaluate_s=task.plan.pace.evaluate_s)
    found = select_clients(_candidates(db, task, before), _demands(task), unlimited, attempt)
    pace = msgspec.structs.replace(unlimited, over=1.0)
    try:
        record = machine.new_evaluation(task.name, _number(before), attempt, pace, found.invited)
    except ConflictError as error:
        raise _too_few(error, found.left_out) from error
    plan = Plan(
        task=task.name, round=record.number, attempt=attempt, strategy=task.plan.strategy, least=1,
        deadline_s=ctx.clock() + pace.evaluate_s, learning=Learning(lr=task.plan.learning.lr),
    )  # fmt: skip
    measured = msgspec.structs.replace(task, parent=number, checkpoint=theta)
    return _insert(db, ctx, measured, record, plan, 1)


def carried_over(db: Connection, task: str) -> dict[str, machine.Origin]:
    """Devices that still train for an earlier round of the task, unless that is poisoned."""
    query = select(federated_round).where(federated_round.c.task == task)
    tries = db.execute(query.order_by(federated_round.c.number.desc()).limit(_LOOK_BACK)).all()
    trained = (row for row in tries if rows.record_of(row).purpose == "train")
    before = next(trained, None)
    found = machine.carry_over(rows.record_of(before), tries[0].number + 1) if before else {}
    poisoned = {row.number for row in tries if row.poisoned}
    return {name: one for name, one in found.items() if one.number not in poisoned}


def excluded_by(error: ShoalError) -> dict[str, str]:
    """Fields of a failed round's result that name the device which caused it, if one did."""
    device = error.facts.get(_TO_BLAME, "")
    return {_TO_BLAME: str(device)} if device else {}


def _excluded(db: Connection, task: str, now_s: float) -> dict[str, str]:
    """Devices excluded from a task for a day because a round failed on them -> the reason."""
    recent = federated_round.c.ended_at > now_s - _EXCLUDED_S
    failed = federated_round.c.state == machine.State.FAILED.value
    query = select(federated_round.c.result).where(federated_round.c.task == task, failed, recent)
    found = {(result or {}).get(_TO_BLAME, "") for result in db.scalars(query)}
    return dict.fromkeys(sorted(found - {""}), FAILED_BEFORE)


def _last(db: Connection, task: str) -> Row[Any] | None:
    """The newest round of a task."""
    query = select(federated_round).where(federated_round.c.task == task)
    return db.execute(query.order_by(federated_round.c.number.desc()).limit(1)).first()


def _clip(db: Connection, task: Task) -> float:
    """Adaptive clip after the round of the task's newest checkpoint; 0 for none."""
    parent = rows.round_id(task.name, task.parent)
    found = db.scalar(select(federated_round.c.result).where(federated_round.c.id == parent))
    return float((found or {}).get("next_clip", 0.0))


def _number(before: Row[Any] | None) -> int:
    """Each attempt has its own number: a device answers a number once."""
    return before.number + 1 if before else 1


def _attempt(before: Row[Any] | None, next_at: float) -> int:
    """Number of attempts in a row; from 1 again when a person asked for more rounds."""
    failed = before is not None and before.state == machine.State.FAILED and next_at > 0
    return before.attempt + 1 if failed and before is not None else 1


def _demands(task: Task) -> Demands:
    return msgspec.structs.replace(task.plan.demands, model=task.model)


def _pace(task: Task) -> Pace:
    """Plain Pace of a task, as the journal decodes it."""
    return msgspec.convert(msgspec.to_builtins(task.plan.pace), Pace)


def _candidates(db: Connection, task: Task, before: Row[Any] | None) -> Iterator[Candidate]:
    """Every enrolled device. Unknown row counts are taken as enough: the device decides itself."""
    parts = (
        select(participation.c.device, func.max(participation.c.number).label("number"))
        .where(
            participation.c.task == task.name,
            participation.c.mark.in_(_TOOK_PART),
            participation.c.bytes > 0,  # not those that only measured
        )
        .group_by(participation.c.device)
    )
    took_part = {row.device: row.number for row in db.execute(parts)}
    for row in db.execute(select(device).where(device.c.state == "enrolled")):
        last = took_part.get(row.name)
        yield Candidate(
            device=row.name,
            online=row.online,
            ring=row.ring,
            site=row.site,
            release=row.releases.get(task.model, ""),
            ram_mb=_number_in(row.facts, "ram_mb", default=task.plan.demands.ram_mb),
            rows=int(labelled_rows(row.facts, task.model, default=task.plan.demands.rows)),
            cohort=int(_number_in(_learning(row.facts), "cohort", default=0)),
            resting=None if last is None else _number(before) - last - 1,
        )


def labelled_rows(facts: dict[str, Any], model: str, *, default: float) -> float:
    """Labelled rows in an inventory: {"learning": {"rows": {model: count}}}."""
    counts = _learning(facts).get("rows")
    return _number_in(counts if isinstance(counts, dict) else {}, model, default=default)


def _learning(facts: dict[str, Any]) -> dict[str, Any]:
    found = facts.get("learning")
    return found if isinstance(found, dict) else {}


def _number_in(facts: dict[str, Any], name: str, *, default: float) -> float:
    """A number of a device's inventory, which may contain anything."""
    value = facts.get(name)
    if isinstance(value, int | float) and math.isfinite(value):
        return float(value)
    return default


def _too_few(error: ConflictError, left_out: dict[str, str]) -> ConflictError:
    """Add counted reasons of left-out devices, and hints for them."""
    reasons = tally(left_out.values())
    message = f"{error.message} ({reasons})" if reasons else error.message
    return ConflictError(message, hints(left_out.values()) or error.hint)
