"""Drift asks for rounds: the devices that see what is new learn it, where the rows are.

Of a task that rests, and not again before the model's cool-down is over. A task that somebody
aborted, or that stopped by itself, stays so: a person decides.
"""

from typing import Any

from sqlalchemy import Select, func, select, update

from shoal.controller.alerts import alerts
from shoal.controller.federated.rounds import rounds, rows
from shoal.controller.host.context import Context
from shoal.controller.monitoring import triggers
from shoal.controller.store import changes
from shoal.controller.store.tables import alert, federated_task, model


def evaluate(ctx: Context) -> list[str]:
    """Ask for the rounds that policies want of standing drift alerts; of which tasks."""
    with ctx.store.read() as db:
        due = [row.name for row in db.execute(_due(ctx.clock()))]
    return [task for name in due if (task := _ask(ctx, name))]


def _ask(ctx: Context, name: str) -> str:
    """The task of a model; "" where it is not due any more."""
    with ctx.store.write() as db:
        found = db.execute(_due(ctx.clock()).where(model.c.name == name)).first()
        if found is None:
            return ""
        rounds.ask(
            db, ctx, actor=triggers.ACTOR, task=found.task, rounds=found.rounds,
            because=f"alert:{found.alert}",
        )  # fmt: skip
        db.execute(update(model).where(model.c.name == name).values(asked_at=ctx.clock()))
        changes.note(db, ctx, "model", name)
        return str(found.task)


def _due(now_s: float) -> Select[Any]:
    """Models with a drift alert that stands, their cool-down over, and a task that rests."""
    return (
        select(model.c.name, model.c.task, model.c.rounds, func.min(alert.c.id).label("alert"))
        .join(federated_task, federated_task.c.name == model.c.task)
        .join(alert, alert.c.model == model.c.name)
        .where(
            alert.c.kind == "drift",
            alert.c.state.in_(alerts.STANDING),
            federated_task.c.state == rows.READY,
            model.c.asked_at + model.c.cooldown_s <= now_s,
        )
        .group_by(model.c.name, model.c.task, model.c.rounds)
    )
