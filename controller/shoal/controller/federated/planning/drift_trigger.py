"""Start rounds on drift: devices retrain the model on their new rows.

For a task that is ready, and not again before the model's cool-down is over. A task that was
aborted, or stopped by itself, stays stopped until a person starts it.
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
    """Start the rounds that policies request for open drift alerts; names of their tasks."""
    with ctx.store.read() as db:
        due = [row.name for row in db.execute(_due(ctx.clock()))]
    return [task for name in due if (task := _start(ctx, name))]


def _start(ctx: Context, name: str) -> str:
    """Start a model's task; its name, or "" when it is no longer due."""
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
    """Models with an open drift alert, an expired cool-down and a ready task."""
    return (
        select(model.c.name, model.c.task, model.c.rounds, func.min(alert.c.id).label("alert"))
        .join(federated_task, federated_task.c.name == model.c.task)
        .join(alert, alert.c.model == model.c.name)
        .where(
            alert.c.kind == "drift",
            model.c.retired_at == 0,
            alert.c.state.in_(alerts.UNRESOLVED),
            federated_task.c.state == rows.READY,
            model.c.asked_at + model.c.cooldown_s <= now_s,
        )
        .group_by(model.c.name, model.c.task, model.c.rounds)
    )
