"""The next round of a task: whether there may be one, who is invited, and its first line in the
journal. Nothing is said to anybody here."""

import math
import secrets
from collections.abc import Iterator
from typing import Any

import msgspec
from sqlalchemy import Connection, Row, func, select

from shoal.controller.alerts import alerts
from shoal.controller.alerts.records import Draft
from shoal.controller.federated.planning import excluded_devices, plans
from shoal.controller.federated.planning.client_selection import (
    Candidate,
    Demands,
    hints,
    recruit,
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
from shoal.errors import ConflictError, SettingError
from shoal.federated.plan import Learning, Plan
from shoal.federated.spending import Budget

#: Until devices are looked for again, where there were too few.
LOOK_AGAIN_S = 5.0
#: After a round that failed: doubled each time, up to the longest.
FIRST_RETRY_S, LONGEST_RETRY_S = 2.0, 60.0
#: Rounds among which the last one that was for learning is looked for.
_LOOK_BACK = 50
_TOOK_PART = (Mark.UPDATED, Mark.REVEALED, Mark.MEASURED)


def begin_due(ctx: Context) -> list[str]:
    """Write down a round for every task that is to have one; their ids."""
    begun = []
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
            begun += _begin(db, ctx, rows.task_row(db, name))
    return begun


def _begin(db: Connection, ctx: Context, row: Row[Any]) -> list[str]:
    """The round's id; none when the task is done, stops, or waits, and the task says why."""
    task = rows.task_of(row)
    if task.rounds >= task.asked:
        rows.set_task(db, ctx, task.name, state=rows.READY, reason="")
        return []
    try:
        return [_planned(db, ctx, task, row)]
    except SettingError as error:
        stop(db, ctx, task.name, task.model, str(error))
    except ConflictError as error:
        _wait(db, ctx, task, str(error))
    return []


def _planned(db: Connection, ctx: Context, task: Task, row: Row[Any]) -> str:
    """ConflictError when there are too few devices, SettingError when there must be no round."""
    attempt, before = secrets.token_bytes(16), _last(db, task.name)
    waiting = carried(db, task.name)
    out = excluded_devices.devices(db, task.name, ctx.clock())
    free = (one for one in _candidates(db, task, before) if one.device not in {*waiting, *out})
    found = recruit(free, _demands(task), _pace(task), attempt)
    try:
        planned = machine.planned(
            task.name, _number(before), attempt, _pace(task), found.invited,
            secure=task.plan.secure is not None, carried=waiting,
            late=plans.strategy_for(task.plan).late(),
        )  # fmt: skip
    except ConflictError as error:
        raise _too_few(error, found.left_out | out) from error
    plan = plans.plan_of(
        task.plan, number=planned.number, attempt=attempt, invited=len(planned.marks),
        now_s=ctx.clock(), clip=_clip(db, task),
    )  # fmt: skip
    check_budget(task, plan, row.spent)
    return _write(db, ctx, task, planned, plan, _try(before, row.next_at))


def task_key(task: str) -> str:
    """Key of the alert of a federated task."""
    return f"task/{task}"


def _task_draft(name: str, model: str, reason: str) -> Draft:
    """Alert of a federated task whose rounds do not go on by themselves."""
    return Draft(
        key=task_key(name),
        kind="task",
        severity="warning",
        title=f"The rounds of {name} have stopped",
        detail=reason,
        next_step=(
            f"See why: shoal round show {name}. Go on with: shoal round start {name}, or plan a "
            "task anew: shoal round plan"
        ),
        model=model,
    )


def stop(db: Connection, ctx: Context, task: str, model: str, reason: str) -> None:
    """No further round by itself, and somebody should know."""
    rows.set_task(db, ctx, task, state=rows.STOPPED, reason=reason)
    alerts.raise_alert(db, ctx, _task_draft(task, model, reason))


def check_budget(task: Task, plan: Plan, spent: list[dict[str, Any]]) -> None:
    """SettingError when one round more would be over the task's budget of privacy."""
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
    """As the task's row has it."""
    return msgspec.convert(kept, list[Spent])


def after_spending(task: TaskPlan, kept: list[dict[str, Any]], noise: float) -> dict[str, Any]:
    """Columns of the task after one round more of this noise.

    Devices are drawn without replacement and answer when they can: neither is the independent
    draw that amplification by sampling needs, so the rate is taken as 1.
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


def _write(
    db: Connection, ctx: Context, task: Task, planned: machine.Round, plan: Plan, attempt: int
) -> str:
    ident = rows.round_id(task.name, planned.number)
    db.execute(
        federated_round.insert().values(
            id=ident, task=task.name, number=planned.number, attempt=attempt,
            state=planned.state.value, journal=msgspec.to_builtins(planned),
            plan=msgspec.to_builtins(plan), parent=task.parent, theta=task.checkpoint,
            old_memory=task.memory, result={}, started_at=ctx.clock(),
        )
    )  # fmt: skip
    changes.note(db, ctx, "round", ident)
    if task.reason:
        rows.set_task(db, ctx, task.name, reason="")
    return ident


def _wait(db: Connection, ctx: Context, task: Task, reason: str) -> None:
    later = ctx.clock() + LOOK_AGAIN_S
    if reason == task.reason:  # nobody has to look again
        query = federated_task.update().where(federated_task.c.name == task.name)
        db.execute(query.values(next_at=later))
    else:
        rows.set_task(db, ctx, task.name, reason=reason, next_at=later)


def measure(db: Connection, ctx: Context, task: Task, number: int, theta: str) -> str:
    """Write down a round in which whoever fits measures `theta`, round number's; its id.

    ConflictError when nobody fits.
    """
    before, attempt = _last(db, task.name), secrets.token_bytes(16)
    everybody = Pace(goal=1, least=1, over=1e9, evaluate_s=task.plan.pace.evaluate_s)
    found = recruit(_candidates(db, task, before), _demands(task), everybody, attempt)
    pace = msgspec.structs.replace(everybody, over=1.0)
    try:
        asked = machine.measuring(task.name, _number(before), attempt, pace, found.invited)
    except ConflictError as error:
        raise _too_few(error, found.left_out) from error
    plan = Plan(
        task=task.name, round=asked.number, attempt=attempt, strategy=task.plan.strategy, least=1,
        deadline_s=ctx.clock() + pace.evaluate_s, learning=Learning(lr=task.plan.learning.lr),
    )  # fmt: skip
    measured = msgspec.structs.replace(task, parent=number, checkpoint=theta)
    return _write(db, ctx, measured, asked, plan, 1)


def carried(db: Connection, task: str) -> dict[str, machine.Origin]:
    """Who still trains for an earlier round of the task, and not on what is poisoned."""
    query = select(federated_round).where(federated_round.c.task == task)
    tries = db.execute(query.order_by(federated_round.c.number.desc()).limit(_LOOK_BACK)).all()
    trained = (row for row in tries if rows.journal_of(row).purpose == "train")
    before = next(trained, None)
    found = machine.carry(rows.journal_of(before), tries[0].number + 1) if before else {}
    poisoned = {row.number for row in tries if row.poisoned}
    return {name: one for name, one in found.items() if one.number not in poisoned}


def _last(db: Connection, task: str) -> Row[Any] | None:
    """The newest round of a task."""
    query = select(federated_round).where(federated_round.c.task == task)
    return db.execute(query.order_by(federated_round.c.number.desc()).limit(1)).first()


def _clip(db: Connection, task: Task) -> float:
    """What the round that the task goes on from has made of an adaptive clip; 0 for nothing."""
    parent = rows.round_id(task.name, task.parent)
    found = db.scalar(select(federated_round.c.result).where(federated_round.c.id == parent))
    return float((found or {}).get("next_clip", 0.0))


def _number(before: Row[Any] | None) -> int:
    """Every try has its own: a device answers a number once."""
    return before.number + 1 if before else 1


def _try(before: Row[Any] | None, next_at: float) -> int:
    """How many tries in a row this is; from 1 again when a person asked for more rounds."""
    failed = before is not None and before.state == machine.State.FAILED and next_at > 0
    return before.attempt + 1 if failed and before is not None else 1


def _demands(task: Task) -> Demands:
    return msgspec.structs.replace(task.plan.demands, model=task.model)


def _pace(task: Task) -> Pace:
    """As the journal reads it back."""
    return msgspec.convert(msgspec.to_builtins(task.plan.pace), Pace)


def _candidates(db: Connection, task: Task, before: Row[Any] | None) -> Iterator[Candidate]:
    """Every enrolled device. Rows that it does not tell of are taken to be enough: it judges
    itself."""
    parts = (
        select(participation.c.device, func.max(participation.c.number).label("number"))
        .where(
            participation.c.task == task.name,
            participation.c.mark.in_(_TOOK_PART),
            participation.c.bytes > 0,  # who only measured has not learned
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
            rows=int(_rows(row.facts, task.model, default=task.plan.demands.rows)),
            cohort=int(_number_in(_learning(row.facts), "cohort", default=0)),
            resting=None if last is None else _number(before) - last - 1,
        )


def _rows(facts: dict[str, Any], model: str, *, default: float) -> float:
    """Labelled rows: facts of an inventory, {"learning": {"rows": {model: count}}}."""
    told = _learning(facts).get("rows")
    return _number_in(told if isinstance(told, dict) else {}, model, default=default)


def _learning(facts: dict[str, Any]) -> dict[str, Any]:
    found = facts.get("learning")
    return found if isinstance(found, dict) else {}


def _number_in(facts: dict[str, Any], name: str, *, default: float) -> float:
    """What a device says may be anything."""
    value = facts.get(name)
    if isinstance(value, int | float) and math.isfinite(value):
        return float(value)
    return default


def _too_few(error: ConflictError, left_out: dict[str, str]) -> ConflictError:
    """With who is missing and why, and what to do about that where it is known."""
    said = tally(left_out.values())
    message = f"{error.message} ({said})" if said else error.message
    return ConflictError(message, hints(left_out.values()) or error.hint)
