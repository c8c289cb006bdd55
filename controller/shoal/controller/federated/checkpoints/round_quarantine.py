"""Quarantine of a poisoned round and of everything derived from it, and its reversal."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from sqlalchemy import Connection, Row, select

from shoal.controller.access import audit
from shoal.controller.federated.checkpoints.lineage import (
    START,
    LineageNode,
    newest_clean,
    reason,
    roots,
)
from shoal.controller.federated.records import Lifted, Quarantined, Task
from shoal.controller.federated.rounds import rows
from shoal.controller.federated.rounds.machine import ENDED, Mark
from shoal.controller.host.context import Context
from shoal.controller.releases import quarantine
from shoal.controller.rollouts import quarantine_withdrawal
from shoal.controller.store.tables import federated_round
from shoal.errors import AbsentError, ConflictError, InputError

DONE = "DONE"
#: Reason of a round that was running on a poisoned checkpoint.
CANCELLED = "quarantined"
_ENDED = frozenset(state.value for state in ENDED)
#: Marks of devices with an update in the round, or still to come.
_COUNTS = (Mark.JOINED, Mark.UPDATED, Mark.REVEALED, Mark.MEASURED)


def quarantine_round(ctx: Context, *, actor: str, task: str, number: int, why: str) -> Quarantined:
    """Mark a round as poisoned, and every checkpoint derived from it.

    The task resumes from its newest clean checkpoint; the engine aborts a round that started from a
    poisoned one. Releases of them can no longer be published or rolled out, their running rollouts
    are paused, and their assignments are withdrawn, so that no further device installs one. Devices
    that serve one continue until another release is rolled out; an alert says so.

    AbsentError for a round that made no checkpoint, InputError without a reason.
    """
    why = _checked(why)
    with ctx.store.write() as db:
        before = rows.task_of(rows.task_row(db, task))
        tries = _tries(db, task)
        if number not in {made.number for made in _line(tries)}:
            raise AbsentError("checkpoint", f"{task}.{number}", f"see: shoal round list {task}")
        charges = {number: why} | _charges(tries)
        rows.set_round(db, ctx, rows.round_id(task, number), charge=charges[number])
        bad, marked = _mark_poisoned(db, ctx, before, tries, charges)
        met = quarantine_withdrawal.withdraw(db, ctx, task=task, model=before.model)
        audit.record(
            db, ctx, actor, "round.quarantine", f"{task}.{number}", why=why, rounds=bad,
            marked=marked, rollouts=met.rollouts, releases=met.releases, withdrawn=met.withdrawn,
        )  # fmt: skip
        return Quarantined(**_task(db, task), **met._asdict())


def lift(ctx: Context, *, actor: str, task: str, number: int, why: str) -> Lifted:
    """Lift a round's quarantine: it was a mistake.

    Checkpoints derived from it are clean again, unless they are derived from another round in
    quarantine, and the task resumes from its newest clean checkpoint. Releases of them may be
    published and rolled out; nothing is rolled out by itself: paused rollouts stay paused,
    withdrawn assignments stay withdrawn, and devices keep what they have.

    InputError without a reason; ConflictError for a round that is in quarantine only because of
    another one, which is named.
    """
    why = _checked(why)
    with ctx.store.write() as db:
        before = rows.task_of(rows.task_row(db, task))
        tries = _tries(db, task)
        charges = _charges(tries)
        if charges.pop(number, None) is None:
            raise _not_charged(task, number, tries)
        held = quarantine.in_quarantine(db)
        rows.set_round(db, ctx, rows.round_id(task, number), charge="")
        bad, cleared = _mark_poisoned(db, ctx, before, tries, charges)
        freed = held.keys() - quarantine.in_quarantine(db).keys()
        met = quarantine_withdrawal.lift(
            db, ctx, actor=actor, task=task, model=before.model, releases=freed
        )
        audit.record(
            db, ctx, actor, "round.lift", f"{task}.{number}", why=why, cleared=cleared,
            rounds_left=bad, releases=met.releases, rollouts=met.rollouts,
        )  # fmt: skip
        return Lifted(**_task(db, task), cleared=cleared, rounds_left=bad, **met._asdict())


def _checked(why: str) -> str:
    if not why.strip():
        raise InputError("a quarantine without a reason", "give a reason: it is kept and shown")
    return why.strip()


def _not_charged(task: str, number: int, tries: Sequence[Row[Any]]) -> ConflictError:
    """Why a round cannot be lifted; AbsentError for an unknown round."""
    poisoned = {row.number: row.poisoned for row in tries}
    ident = rows.round_id(task, number)
    if number not in poisoned:
        raise AbsentError("round", ident, f"see: shoal round list {task}")
    if not poisoned[number]:
        return ConflictError(f"round {ident} is not in quarantine", "nothing to do")
    return ConflictError(
        f"round {ident} is in quarantine because of another one: {poisoned[number]}",
        f"lift the round that it is derived from: shoal round lift {task} N",
    )


def _task(db: Connection, task: str) -> dict[str, Any]:
    return msgspec.structs.asdict(rows.task_of(rows.task_row(db, task)))


def _tries(db: Connection, task: str) -> Sequence[Row[Any]]:
    return db.execute(select(federated_round).where(federated_round.c.task == task)).all()


def _charges(tries: Sequence[Row[Any]]) -> dict[int, str]:
    """Round -> reason that a person gave for its quarantine."""
    return {row.number: row.charge for row in tries if row.charge}


def _line(tries: Sequence[Row[Any]]) -> list[LineageNode]:
    """Every round that made a checkpoint, with its parents."""
    parents = {row.number: row.parent for row in tries}
    return [
        LineageNode(number=row.number, parent=row.parent, older=_older(row, parents))
        for row in tries
        if row.state == DONE and row.checkpoint
    ]


def _older(row: Row[Any], parents: Mapping[int, int]) -> tuple[int, ...]:
    """Parents of a round's late updates."""
    record = rows.record_of(row)
    origins = (one for name, one in record.carried.items() if record.marks[name] in _COUNTS)
    return tuple(sorted({parents.get(one.number, START) for one in origins}))


def _mark_poisoned(
    db: Connection,
    ctx: Context,
    task: Task,
    tries: Sequence[Row[Any]],
    charges: Mapping[int, str],
) -> tuple[list[int], list[str]]:
    """Write which rounds are poisoned by these charges; (numbers of them, changed attempts).

    Includes failed attempts that started from a poisoned checkpoint, and running ones that may take
    an update of one.
    """
    line, parents = _line(tries), {row.number: row.parent for row in tries}
    bad, marked = roots(line, charges.keys()), []
    pruned = {row.number for row in tries if row.pruned_at}
    for row in tries:
        late = row.state not in _ENDED or row.reason == CANCELLED or row.number in bad
        parents_of = {row.parent, *(_older(row, parents) if late else ())}
        poisoned = charges.get(row.number) or reason(parents_of, bad, charges)
        if poisoned != row.poisoned:
            rows.set_round(db, ctx, row.id, poisoned=poisoned)
            marked.append(row.id)
    _resume_from(db, ctx, task, tries, newest_clean(line, charges.keys(), pruned))
    return sorted(bad), marked


def _resume_from(
    db: Connection, ctx: Context, task: Task, tries: Sequence[Row[Any]], clean: int
) -> None:
    """Set the task's checkpoint to its newest clean one; spent privacy stays spent."""
    if task.parent == clean or task.prepared is None:
        return
    found = next((row for row in tries if row.state == DONE and row.number == clean), None)
    rows.set_task(
        db, ctx, task.name, parent=clean,
        checkpoint=found.checkpoint if found else task.prepared.theta,
        memory=found.memory if found else "",
    )  # fmt: skip
