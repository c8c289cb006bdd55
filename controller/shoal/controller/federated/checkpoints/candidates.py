"""Candidate releases: every so many rounds a task's checkpoint becomes a release.

It is signed with the automation key if it passes every gate, so that canary devices may install it;
a person decides about the rest of the fleet.
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
    """Enqueue the candidates that are due; number of operations.

    Once for each multiple of the plan's `candidate`: after a failure, or a refusal by a gate, not
    again before the next multiple.
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
    return bool(every) and task.rounds // every > _last_candidate(db, task) // every


def _last_candidate(db: Connection, task: Task) -> int:
    """Number of completed rounds when a candidate was last requested."""
    query = select(operation.c.params).where(
        operation.c.kind == training.CHECKPOINT, operation.c.subject == task.model
    )
    mine = [
        params["trigger"].removeprefix(training.ROUNDS)
        for params in db.scalars(query)
        if params["origin"]["task"] == task.name
    ]
    return max((int(rounds) for rounds in mine if rounds.isdecimal()), default=0)
