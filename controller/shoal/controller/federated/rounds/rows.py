"""Tasks and rounds between the database and their structs."""

from collections.abc import Iterable
from typing import Any

import msgspec
from sqlalchemy import Connection, Row, delete, select, update

from shoal.controller.federated.records import Participation, Prepared, Round, Task, TaskPlan
from shoal.controller.federated.rounds import machine
from shoal.controller.host.context import Context
from shoal.controller.store import changes
from shoal.controller.store.tables import device, federated_round, federated_task, participation
from shoal.errors import AbsentError
from shoal.federated.plan import Plan

PREPARING, FAILED, READY, RUNNING, STOPPED = "preparing", "failed", "ready", "running", "stopped"
_OF_TASK = (
    "name", "model", "release", "state", "reason", "operation", "created_at", "created_by",
    "rounds", "asked", "checkpoint", "memory", "parent", "epsilon",
)  # fmt: skip
_OF_ROUND = (
    "id", "task", "number", "attempt", "state", "reason", "parent", "theta", "started_at",
    "ended_at", "checkpoint", "memory", "poisoned", "charge",
    "pruned_at",
)  # fmt: skip
#: What an integer of a database holds.
_MOST = 2**31 - 1
#: Of a participation: what its update was like.
OF_UPDATE = ("examples", "loss", "norm", "cosine", "suspect", "seconds", "bytes", "chosen")


def round_id(task: str, number: int) -> str:
    """What a round is called.

    >>> round_id("digits", 3)
    'digits.3'
    """
    return f"{task}.{number}"


def task_row(db: Connection, name: str) -> Row[Any]:
    """AbsentError if there is none such."""
    row = db.execute(select(federated_task).where(federated_task.c.name == name)).first()
    if row is None:
        raise AbsentError("federated task", name, "shoal round tasks says which there are")
    return row


def round_row(db: Connection, ident: str) -> Row[Any]:
    """AbsentError if there is none such."""
    row = db.execute(select(federated_round).where(federated_round.c.id == ident)).first()
    if row is None:
        raise AbsentError("round", ident, "list them: shoal round list")
    return row


def task_of(row: Row[Any]) -> Task:
    return Task(
        **{name: getattr(row, name) for name in _OF_TASK},
        plan=msgspec.convert(row.plan, TaskPlan),
        prepared=msgspec.convert(row.prepared, Prepared) if row.prepared else None,
    )


def round_of(row: Row[Any]) -> Round:
    """The record; what a running round has so far."""
    journal, plan = journal_of(row), plan_of(row)
    made = {name: getattr(row, name) for name in _OF_ROUND}
    made |= {
        "purpose": journal.purpose,
        "secure": plan.secure is not None,
        "deadline_at": journal.deadline_s,
    }
    made |= {"clip": plan.privacy.clip if plan.privacy else 0.0}
    made |= {"marks": _counted(journal.marks.values())}
    made |= {"reasons": _counted(journal.reasons.values())}
    return msgspec.convert(row.result | made, Round)


def journal_of(row: Row[Any]) -> machine.Round:
    return msgspec.convert(row.journal, machine.Round)


def plan_of(row: Row[Any]) -> Plan:
    return msgspec.convert(row.plan, Plan)


def set_task(db: Connection, ctx: Context, name: str, **values: Any) -> None:
    db.execute(update(federated_task).where(federated_task.c.name == name).values(**values))
    changes.note(db, ctx, "task", name)


def set_round(db: Connection, ctx: Context, ident: str, **values: Any) -> None:
    db.execute(update(federated_round).where(federated_round.c.id == ident).values(**values))
    changes.note(db, ctx, "round", ident)


def participations_of(
    db: Connection, row: Row[Any], facts: dict[str, dict[str, Any]]
) -> list[Participation]:
    """Everybody that was invited; facts: device -> what is known of its update."""
    journal = journal_of(row)
    names = sorted(journal.marks)
    found = db.execute(select(device.c.name, device.c.site).where(device.c.name.in_(names)))
    sites = {one.name: one.site for one in found}
    return [
        Participation(
            round=row.id, device=name, site=sites.get(name, ""), task=row.task, number=row.number,
            mark=journal.marks[name].value, reason=journal.reasons.get(name, ""),
            **facts.get(name, {}),
        )
        for name in names
    ]  # fmt: skip


def keep_participations(db: Connection, ident: str, found: Iterable[Participation]) -> None:
    """In the place of what was kept of this round before."""
    db.execute(delete(participation).where(participation.c.round == ident))
    values = [msgspec.to_builtins(one) | _bounded(one) for one in found]
    if values:
        db.execute(participation.insert(), values)


def _bounded(one: Participation) -> dict[str, float]:
    """What a device said of itself, as a column can hold it."""
    return {"examples": min(one.examples, _MOST), "seconds": min(max(0.0, one.seconds), _MOST)}


def _counted(values: Iterable[str]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for value in values:
        counts[str(value)] = counts.get(str(value), 0) + 1
    return dict(sorted(counts.items()))
