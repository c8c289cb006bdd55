"""Database rows of tasks, rounds and participations, and their structs."""

from collections import Counter
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
#: Largest integer of a database column.
_MOST = 2**31 - 1
#: Fields of a participation that describe its update.
_OF_UPDATE = ("examples", "loss", "norm", "cosine", "suspect", "seconds", "bytes", "chosen")


def round_id(task: str, number: int) -> str:
    """Id of a round.

    >>> round_id("digits", 3)
    'digits.3'
    """
    return f"{task}.{number}"


def task_row(db: Connection, name: str) -> Row[Any]:
    """AbsentError if there is none."""
    row = db.execute(select(federated_task).where(federated_task.c.name == name)).first()
    if row is None:
        raise AbsentError("federated task", name, "list them: shoal round tasks")
    return row


def round_row(db: Connection, ident: str) -> Row[Any]:
    """AbsentError if there is none."""
    row = db.execute(select(federated_round).where(federated_round.c.id == ident)).first()
    if row is None:
        raise AbsentError("round", ident, "list them: shoal round list")
    return row


def task_of(row: Row[Any]) -> Task:
    return Task.of_row(
        row,
        plan=msgspec.convert(row.plan, TaskPlan),
        prepared=msgspec.convert(row.prepared, Prepared) if row.prepared else None,
    )


def round_of(row: Row[Any]) -> Round:
    """Record of a round; of a running one, so far."""
    record, plan = record_of(row), plan_of(row)
    computed = {
        "purpose": record.purpose, "secure": plan.secure is not None,
        "deadline_at": record.deadline_s, "clip": plan.privacy.clip if plan.privacy else 0.0,
        "marks": _counted(record.marks.values()), "reasons": _counted(record.reasons.values()),
    }  # fmt: skip
    columns = {str(name): value for name, value in row._mapping.items()}
    return msgspec.convert(row.result | columns | computed, Round)


def record_of(row: Row[Any]) -> machine.RoundRecord:
    return msgspec.convert(row.journal, machine.RoundRecord)


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
    """Every invited device of a round; facts: device -> facts of its update."""
    record = record_of(row)
    names = sorted(record.marks)
    found = db.execute(select(device.c.name, device.c.site).where(device.c.name.in_(names)))
    sites = {one.name: one.site for one in found}
    return [
        Participation(
            round=row.id, device=name, site=sites.get(name, ""), task=row.task, number=row.number,
            mark=record.marks[name].value, reason=record.reasons.get(name, ""),
            **facts.get(name, {}),
        )
        for name in names
    ]  # fmt: skip


def update_facts(db: Connection, ident: str) -> dict[str, dict[str, Any]]:
    """Device -> facts of its update that were saved when the round was aggregated."""
    query = select(participation).where(participation.c.round == ident)
    saved = db.execute(query).mappings()
    return {one["device"]: {name: one[name] for name in _OF_UPDATE} for one in saved}


def save_participations(db: Connection, ident: str, facts: dict[str, dict[str, Any]]) -> None:
    """Replace a round's participations."""
    found = participations_of(db, round_row(db, ident), facts)
    db.execute(delete(participation).where(participation.c.round == ident))
    values = [msgspec.to_builtins(one) | _bounded(one) for one in found]
    if values:
        db.execute(participation.insert(), values)


def _bounded(one: Participation) -> dict[str, float]:
    """Numbers reported by a device, limited to what a column holds."""
    return {"examples": min(one.examples, _MOST), "seconds": min(max(0.0, one.seconds), _MOST)}


def _counted(values: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(map(str, values)).items()))
