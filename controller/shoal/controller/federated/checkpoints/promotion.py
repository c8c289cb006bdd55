"""Promote a task's checkpoint to a release: its origin, and the operation that builds it.

The task's inference graph gets the checkpoint's weights and is built like every model: variants,
golden vectors, reference statistics, gates on held-back rows. A round never makes a release by
itself; devices serve releases only.

A plan may ask for a candidate every so many rounds. It is signed with the automation key if it
passes every gate, so that canary devices may install it; a person decides about the others.
"""

import logging

from sqlalchemy import Connection, func, select

from shoal.controller.federated.records import Checkpoint, Task
from shoal.controller.federated.rounds import rounds, rows
from shoal.controller.host.context import Context
from shoal.controller.operations.operations import Operation
from shoal.controller.releases import releases
from shoal.controller.releases.records import Contributor, Origin
from shoal.controller.runs.records import CHECKPOINT
from shoal.controller.store.tables import (
    federated_round,
    federated_task,
    model,
    operation,
    participation,
)
from shoal.controller.training import training
from shoal.errors import ConflictError, ShoalError

_log = logging.getLogger(__name__)
ACTOR = "automation"
DONE = "DONE"
#: Trigger of a release that a person requests as a candidate for the canary ring.
REQUESTED_CANDIDATE = f"{training.ROUNDS}asked"


def release(
    ctx: Context,
    *,
    actor: str,
    task: str,
    number: int | None = None,
    dataset: str = "",
    trigger: str = "manual",
) -> Operation:
    """Enqueue a release of a task's checkpoint, by default the newest.

    number    of the round that made it
    dataset   with held-back rows for the gates; "" for that of the task's base release
    trigger   "rounds:..." signs the release as a candidate if it passes every gate

    AbsentError for a round without a checkpoint, ConflictError for a poisoned one and for the
    initial model, which is a release already.
    """
    whole = rounds.get_task(ctx, task)
    found = rounds.checkpoint(ctx, task, number)
    if found.number == 0:
        raise ConflictError(
            f"task {task} has made no checkpoint: it begins with {whole.release}",
            f"start some rounds first: shoal round start {task}",
        )
    origin = origin_of(ctx, whole, found)
    base = releases.get_release(ctx, whole.release)
    return training.start_checkpoint(
        ctx, actor=actor, dataset=dataset or base.dataset, base=base,
        onnx=found.prepared.inference, origin=origin, trigger=trigger,
        checkpoint={
            "theta": found.theta, "graph": found.prepared.graph,
            "personal": found.prepared.personal, "notes": _notes(origin),
        },
    )  # fmt: skip


def origin_of(ctx: Context, task: Task, found: Checkpoint) -> Origin:
    """Origin of a checkpoint: its rounds and devices; ConflictError if one round is poisoned."""
    mine = (federated_round.c.task == task.name) & (federated_round.c.state == DONE)
    with ctx.store.read() as db:
        done = {row.number: row for row in db.execute(select(federated_round).where(mine))}
        devices = _contributors(db, [done[number].id for number in found.lineage])
    for number in found.lineage:
        if done[number].poisoned:
            raise ConflictError(
                f"round {number} of {task.name} is poisoned, and checkpoint {found.number} is "
                f"derived from it: {done[number].poisoned}",
                f"release an earlier one: shoal round list {task.name}",
            )
    privacy, last = task.plan.privacy, done[found.number]
    return Origin(
        task=task.name, number=found.number, rounds=found.lineage, release=task.release,
        strategy=task.plan.strategy, devices=devices, secure=task.plan.secure is not None,
        epsilon=last.result.get("epsilon", 0.0) if privacy else None,
        delta=privacy.delta if privacy else 0.0,
    )  # fmt: skip


def _contributors(db: Connection, idents: list[str]) -> list[Contributor]:
    """Devices with updates in these rounds, by name."""
    taking_part = (
        select(
            participation.c.device,
            func.max(participation.c.site).label("site"),
            func.count().label("rounds"),
            func.sum(participation.c.examples).label("examples"),
        )
        .where(participation.c.round.in_(idents), participation.c.chosen)
        .group_by(participation.c.device)
        .order_by(participation.c.device)
    )
    return [Contributor(**one) for one in db.execute(taking_part).mappings()]


def _notes(origin: Origin) -> list[str]:
    examples = sum(one.examples for one in origin.devices)
    rows = f" with {examples} rows" if examples else ""
    trained = (
        f"trained by {len(origin.devices)} devices{rows} in {len(origin.rounds)} federated rounds "
        f"(task {origin.task}, round {origin.number}, {origin.strategy}), which started from "
        f"{origin.release}; the rows never left the devices"
    )
    notes = [trained]
    if origin.secure:
        notes.append(
            "secure aggregation: single updates were not visible, so they were not checked"
        )
    if origin.epsilon is not None:
        notes.append(
            f"differential privacy of each device: epsilon {origin.epsilon:.2f} at delta "
            f"{origin.delta:g}"
        )
    return notes


# --- candidates: every so many rounds ---------------------------------------------------------


def promote_candidates(ctx: Context) -> int:
    """Enqueue the candidates that are due; number of operations.

    Once for each multiple of the plan's `candidate`: after a failure, or a refusal by a gate, not
    again before the next multiple.
    """
    with ctx.store.read() as db:
        query = select(federated_task).join(model, model.c.name == federated_task.c.model)
        tasks = [rows.task_of(row) for row in db.execute(query.where(model.c.retired_at == 0))]
        due = [task for task in tasks if task.parent and _due(db, task)]
    for task in due:
        try:
            trigger = f"{training.ROUNDS}{task.rounds}"
            release(ctx, actor=ACTOR, task=task.name, trigger=trigger)
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
        operation.c.kind == CHECKPOINT, operation.c.subject == task.model
    )
    mine = [
        params["trigger"].removeprefix(training.ROUNDS)
        for params in db.scalars(query)
        if params["origin"]["task"] == task.name
    ]
    return max((int(rounds) for rounds in mine if rounds.isdecimal()), default=0)
