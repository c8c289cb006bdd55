"""Retention of checkpoints: delete the files of old ones, keep the records of their rounds.

A round is marked as pruned before its file is deleted, so that nothing starts from a file that is
about to go. After an interruption between the two, the next run deletes what was left.
"""

import logging
from collections.abc import Mapping, Sequence

from sqlalchemy import Connection, func, select, update

from shoal.controller.federated.planning import scheduling
from shoal.controller.federated.rounds import rows
from shoal.controller.host.context import Context
from shoal.controller.operations import operations
from shoal.controller.runs.records import CHECKPOINT
from shoal.controller.store import changes
from shoal.controller.store.tables import federated_round, federated_task, operation, release

_log = logging.getLogger(__name__)

DONE = "DONE"
#: Files deleted in one transaction, which blocks other writes.
_AT_ONCE = 50
_made = (federated_round.c.state == DONE) & (federated_round.c.checkpoint != "")
_kept = _made & (federated_round.c.pruned_at == 0)


def prune(ctx: Context) -> int:
    """Prune every task's checkpoints that are not needed; number of deleted files."""
    most = ctx.settings.rounds.checkpoints
    if most:
        many = select(federated_round.c.task).where(_kept).group_by(federated_round.c.task)
        with ctx.store.read() as db:
            tasks = list(db.scalars(many.having(func.count() > most)))
        for task in tasks:
            with ctx.store.write() as db:
                _mark(db, ctx, task, most)
    return _drop(ctx)


def _mark(db: Connection, ctx: Context, task: str, most: int) -> None:
    table = federated_round
    query = select(table.c.number, table.c.poisoned).where(table.c.task == task, _kept)
    made = {row.number: row.poisoned for row in db.execute(query.order_by(table.c.number.desc()))}
    needed = _needed(db, task, made, most)
    old = [number for number in made if number not in needed]
    if old:
        mine = (table.c.task == task) & table.c.number.in_(old)
        db.execute(update(table).where(mine).values(pruned_at=ctx.clock()))
        changes.note(db, ctx, "task", task)
        _log.info("task %s: checkpoints of %d rounds are pruned", task, len(old))


def _needed(db: Connection, task: str, made: Mapping[int, str], most: int) -> set[int]:
    """Rounds whose checkpoints stay: the newest, the newest clean ones, the one that the task
    resumes from, and those of releases, operations and running rounds.

    made   rounds with a checkpoint file, newest first -> why they are poisoned
    """
    newest = {*list(made)[:most]}
    clean = [number for number, poisoned in made.items() if not poisoned][:most]
    whole = rows.task_row(db, task)
    in_use = _released(db, task, whole.model) | _running(db, task)
    return newest | {*clean, whole.parent} | in_use


def _released(db: Connection, task: str, model: str) -> set[int]:
    """Rounds whose checkpoint is a release, in any state, or is being built as one."""
    reports = db.scalars(select(release.c.report).where(release.c.model == model))
    asked = db.scalars(
        select(operation.c.params).where(
            operation.c.kind == CHECKPOINT, operation.c.state.not_in(operations.ENDED)
        )
    )
    origins = [one["origin"] for one in (*reports, *asked) if one.get("origin")]
    return {one["number"] for one in origins if one["task"] == task}


def _running(db: Connection, task: str) -> set[int]:
    """Rounds whose checkpoint devices train on or evaluate."""
    table = federated_round
    late = [one.number for one in scheduling.carried_over(db, task).values()]
    runs = (table.c.ended_at == 0) | table.c.number.in_(late)
    return set(db.scalars(select(table.c.parent).where(table.c.task == task, runs)))


def _drop(ctx: Context) -> int:
    """Delete the remaining files of pruned rounds."""
    gone = select(federated_round.c.checkpoint).where(_made, federated_round.c.pruned_at > 0)
    with ctx.store.read() as db:
        left = [one for one in db.scalars(gone.distinct()) if ctx.blobs.exists(one)]
    for start in range(0, len(left), _AT_ONCE):
        with ctx.store.write() as db:  # no new reference to one of them meanwhile
            some = left[start : start + _AT_ONCE]
            for sha256 in set(some) - _referenced(db, some):
                ctx.blobs.remove(sha256)
    return sum(not ctx.blobs.exists(one) for one in left)


def _referenced(db: Connection, files: Sequence[str]) -> set[str]:
    """Files of these that are needed elsewhere, as they have the same content."""
    table = federated_round
    named = set(db.scalars(select(table.c.checkpoint).where(_kept | (table.c.ended_at == 0))))
    named |= set(db.scalars(select(table.c.theta).where(table.c.ended_at == 0)))
    named |= set(db.scalars(select(federated_task.c.checkpoint)))
    prepared = db.scalars(select(federated_task.c.prepared))
    named |= {value for one in prepared for value in one.values() if isinstance(value, str)}
    return named & {*files}
