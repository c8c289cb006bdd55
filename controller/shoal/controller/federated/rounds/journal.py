"""A round's next line in the journal, with all that has to be true at the same moment: what it has
spent of the task's privacy, who took part, that its checkpoint is the task's newest."""

from typing import Any

import msgspec
from sqlalchemy import Connection, Row, select

from shoal.controller.federated.planning import client_selection, plans, scheduling
from shoal.controller.federated.records import Participation
from shoal.controller.federated.rounds import machine, rows
from shoal.controller.federated.rounds.active_round import Live
from shoal.controller.federated.rounds.machine import State
from shoal.controller.host.context import Context
from shoal.controller.store.tables import participation


def write(db: Connection, ctx: Context, live: Live, after: machine.Round, **values: Any) -> None:
    """`after` in the place of live.now; values: further columns of the round."""
    task = rows.task_row(db, live.task.name)
    if _spends(live, after.state):
        noise = plans.noise_of(live.plan, live.size)
        assert noise is not None
        rows.set_task(
            db, ctx, task.name, **scheduling.after_spending(live.task.plan, task.spent, noise)
        )
        task = rows.task_row(db, task.name)
    live.result |= {"ignored": dict(sorted(live.ignored.items())), "epsilon": task.epsilon}
    if after.state in machine.ENDED:
        values["ended_at"] = ctx.clock()
        live.result["seconds"] = ctx.clock() - live.started_at
    rows.set_round(
        db, ctx, live.id, journal=msgspec.to_builtins(after), state=after.state.value,
        reason=after.reason, result=live.result, **values,
    )  # fmt: skip
    if live.now.purpose == "evaluate":
        pass  # nothing was learned: the task stands where it stood
    elif after.state is State.DONE:
        _publish(db, ctx, live, task)
    elif after.state is State.FAILED:
        _try_again(db, ctx, live, task, after)
    if after.state in machine.ENDED:
        keep_participations(db, live.id, facts_of(db, live.id))


def keep_participations(db: Connection, ident: str, facts: dict[str, dict[str, Any]]) -> None:
    """Everybody who was invited; facts: device -> what is known of its update."""
    row = rows.round_row(db, ident)
    rows.keep_participations(db, ident, rows.participations_of(db, row, facts))


def facts_of(db: Connection, ident: str) -> dict[str, dict[str, Any]]:
    """device -> what was kept of its update when the round was aggregated."""
    query = select(participation).where(participation.c.round == ident)
    kept = [Participation(**row) for row in db.execute(query).mappings()]
    return {one.device: {name: getattr(one, name) for name in rows.OF_UPDATE} for one in kept}


def _spends(live: Live, state: State) -> bool:
    """Once in a round, before anything that costs privacy can be known: local noise protects
    single updates, which come from TRAINING on; every other the sum."""
    privacy = live.plan.privacy
    if privacy is None or live.now.state is state:
        return False
    return state is (State.TRAINING if privacy.where == "local" else State.AGGREGATING)


def _publish(db: Connection, ctx: Context, live: Live, task: Row[Any]) -> None:
    done = task.rounds + 1
    going_on = task.state == rows.RUNNING
    rows.set_task(
        db, ctx, task.name, checkpoint=live.checkpoint, memory=live.memory,
        parent=live.now.number, rounds=done, next_at=0.0,
        state=rows.READY if going_on and done >= task.asked else task.state,
    )  # fmt: skip


def _try_again(
    db: Connection, ctx: Context, live: Live, task: Row[Any], after: machine.Round
) -> None:
    """Later, unless it was tried often enough or nobody wants it any more."""
    if task.state != rows.RUNNING:
        return
    why = f"round {live.id} failed: {after.reason}{_refusals(after)}"
    if live.attempt >= live.task.plan.attempts:
        stopped = f"{why}, the {live.attempt}. time in a row; shoal round show {live.id} has more"
        scheduling.stop(db, ctx, task.name, task.model, stopped)
        return
    wait_s = min(scheduling.FIRST_RETRY_S * 2 ** (live.attempt - 1), scheduling.LONGEST_RETRY_S)
    rows.set_task(db, ctx, task.name, reason=f"{why}; it is tried again",
                  next_at=ctx.clock() + wait_s)  # fmt: skip


def _refusals(after: machine.Round) -> str:
    """Why devices left, counted, with what to do about it: the round's own reason says neither."""
    if after.reason not in ("too-few-joined", "too-few-updates"):
        return ""
    left = after.reasons.values()
    hint = client_selection.hints(left)
    return f" ({client_selection.tally(left)}{'; ' if hint else ''}{hint})" if left else ""
