"""Tasks that ask for candidates: every so many rounds their checkpoint becomes a release.

It is signed with the automation key when no gate refuses it, so that canary devices may have it,
and a person decides about the rest of the fleet.
"""

import logging

from sqlalchemy import Connection, select

from shoal.controller.federated.checkpoints import promotion
from shoal.controller.federated.records import Task
from shoal.controller.federated.rounds import rows
from shoal.controller.host.context import Context
from shoal.controller.store.tables import federated_task, operation
from shoal.controller.training import training
from shoal.errors import ShoalError

_log = logging.getLogger(__name__)
ACTOR = "automation"


def evaluate(ctx: Context) -> int:
    """Ask for the candidates that are due; how many operations were begun.

    Once for each multiple of the plan's `candidate`: one that fails, or that a gate refuses, is
    not tried again before the next.
    """
    with ctx.store.read() as db:
        tasks = [rows.task_of(row) for row in db.execute(select(federated_task))]
        due = [task for task in tasks if task.parent and _due(db, task)]
    for task in due:
        try:
            promotion.release(
                ctx, actor=ACTOR, task=task.name, trigger=f"{training.ROUNDS}{task.rounds}"
            )
        except ShoalError as error:
            _log.warning(
                "task %s makes no candidate of round %d: %s", task.name, task.parent, error
            )
    return len(due)


def _due(db: Connection, task: Task) -> bool:
    every = task.plan.candidate
    return bool(every) and task.rounds // every > _asked(db, task) // every


def _asked(db: Connection, task: Task) -> int:
    """Rounds that were done when a candidate was last asked for."""
    query = select(operation.c.params).where(
        operation.c.kind == training.CHECKPOINT, operation.c.subject == task.model
    )
    mine = [
        params["trigger"].removeprefix(training.ROUNDS)
        for params in db.scalars(query)
        if params["origin"]["task"] == task.name
    ]
    return max((int(rounds) for rounds in mine if rounds.isdecimal()), default=0)
