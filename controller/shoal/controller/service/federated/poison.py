"""A poisoned round, and what is done about all that came of it."""

from collections.abc import Mapping, Sequence, Set
from typing import Any

import msgspec
from sqlalchemy import Connection, Row, select

from shoal.controller.federated.lineage import START, Grown, newest_clean, spoiled
from shoal.controller.federated.records import Quarantined, Task
from shoal.controller.federated.rounds import ENDED, Mark
from shoal.controller.io.tables import federated_round
from shoal.controller.service import audit, recall
from shoal.controller.service.context import Context
from shoal.controller.service.federated import rows
from shoal.errors import AbsentError, InputError

DONE = "DONE"
#: Reason of a round that ran on what was poisoned.
BROKEN_OFF = "quarantined"
_ENDED = frozenset(state.value for state in ENDED)
#: Marks of devices whose update is in, or may still be.
_COUNTS = (Mark.JOINED, Mark.UPDATED, Mark.REVEALED, Mark.MEASURED)


def quarantine_round(ctx: Context, *, actor: str, task: str, number: int, why: str) -> Quarantined:
    """Mark a round as poisoned, for good, and every checkpoint that came of it.

    The task goes on from its newest clean checkpoint; a try that started from a poisoned one is
    broken off by the engine. No release of them can be published or rolled out from now on, their
    running rollouts are paused, and no order names one any more: who has not installed it does
    not. Devices that serve one go on until somebody rolls another release out; an alert says so.

    AbsentError for a round that made no checkpoint, InputError without a reason.
    """
    if not why.strip():
        raise InputError("a quarantine without a reason", "say why: it is kept and shown")
    with ctx.store.write() as db:
        before = rows.task_of(rows.task_row(db, task))
        tries = db.execute(select(federated_round).where(federated_round.c.task == task)).all()
        line = _line(tries)
        if number not in {grown.number for grown in line}:
            raise AbsentError("checkpoint", f"{task}.{number}", f"see: shoal round list {task}")
        already = {row.number for row in tries if row.state == DONE and row.poisoned}
        bad = spoiled(line, already | {number})
        marked = _mark(db, ctx, tries, bad, number, why.strip())
        _rewind(db, ctx, before, tries, newest_clean(line, bad))
        met = recall.call_back(db, ctx, task=task, model=before.model)
        audit.record(
            db, ctx, actor, "round.quarantine", f"{task}.{number}", why=why.strip(),
            rounds=sorted(bad), marked=marked, rollouts=met.rollouts, releases=met.releases,
            withdrawn=met.withdrawn,
        )  # fmt: skip
        after = msgspec.structs.asdict(rows.task_of(rows.task_row(db, task)))
        return Quarantined(**after, **met._asdict())


def _line(tries: Sequence[Row[Any]]) -> list[Grown]:
    """Every round that made a checkpoint, and what single updates of it started from."""
    parents = {row.number: row.parent for row in tries}
    return [
        Grown(number=row.number, parent=row.parent, older=_older(row, parents))
        for row in tries
        if row.state == DONE and row.checkpoint
    ]


def _older(row: Row[Any], parents: Mapping[int, int]) -> tuple[int, ...]:
    """Of a round: the checkpoints that late updates in it started from."""
    journal = rows.journal_of(row)
    origins = (one for name, one in journal.carried.items() if journal.marks[name] in _COUNTS)
    return tuple(sorted({parents.get(one.number, START) for one in origins}))


def _mark(
    db: Connection, ctx: Context, tries: Sequence[Row[Any]], bad: Set[int], number: int, why: str
) -> list[str]:
    """Write it on every round that began with a poisoned checkpoint, whatever became of it, and
    on a running one that may take such an update; which they were.
    """
    parents, marked = {row.number: row.parent for row in tries}, []
    for row in tries:
        began = {row.parent, *(_older(row, parents) if row.state not in _ENDED else ())}
        if row.poisoned or not (row.number in bad or began & bad):
            continue
        told = why if row.number == number else f"it came of round {number}: {why}"
        rows.set_round(db, ctx, row.id, poisoned=told)
        marked.append(row.id)
    return marked


def _rewind(
    db: Connection, ctx: Context, task: Task, tries: Sequence[Row[Any]], clean: int
) -> None:
    """The task's newest checkpoint is its newest clean one; the privacy that was spent stays so."""
    if task.parent == clean or task.prepared is None:
        return
    found = next((row for row in tries if row.state == DONE and row.number == clean), None)
    rows.set_task(
        db, ctx, task.name, parent=clean,
        checkpoint=found.checkpoint if found else task.prepared.theta,
        memory=found.memory if found else "",
    )  # fmt: skip
