"""Use cases of rounds: start, abort, evaluate, list, participations, checkpoints."""

from sqlalchemy import Connection, select

from shoal.controller.access import audit
from shoal.controller.alerts import alerts
from shoal.controller.federated.planning import scheduling
from shoal.controller.federated.records import Checkpoint, Participation, Round, Task
from shoal.controller.federated.rounds import rows
from shoal.controller.host.context import Context
from shoal.controller.store.tables import federated_round, federated_task, participation
from shoal.errors import AbsentError, ConflictError


def start(ctx: Context, *, actor: str, task: str, rounds: int) -> Task:
    """Request more rounds; the engine runs them one after the other.

    ConflictError while the task is being prepared, or when preparation failed.
    """
    with ctx.store.write() as db:
        return ask(db, ctx, actor=actor, task=task, rounds=rounds)


def ask(db: Connection, ctx: Context, *, actor: str, task: str, rounds: int, **why: object) -> Task:
    """`start` within the caller's transaction. why: for the audit log."""
    row = rows.task_row(db, task)
    if row.state in (rows.PREPARING, rows.FAILED):
        raise ConflictError(
            f"task {task} is {row.state}" + (f": {row.reason}" if row.reason else ""),
            f"follow it with: shoal operation show {row.operation}",
        )
    begun = row.asked if row.state == rows.RUNNING else row.rounds
    rows.set_task(db, ctx, task, state=rows.RUNNING, reason="", asked=begun + rounds, next_at=0.0)
    alerts.close(db, ctx, scheduling.task_key(task), f"{actor} asked for more rounds")
    audit.record(db, ctx, actor, "round.start", task, rounds=rounds, **why)
    return rows.task_of(rows.task_row(db, task))


def abort(ctx: Context, *, actor: str, task: str) -> Task:
    """Stop a task; the engine aborts its running round and dismisses the devices."""
    with ctx.store.write() as db:
        row = rows.task_row(db, task)
        if row.state == rows.RUNNING:
            reason = f"aborted by {actor}"
            rows.set_task(db, ctx, task, state=rows.STOPPED, reason=reason, asked=row.rounds)
            audit.record(db, ctx, actor, "round.abort", task)
        return rows.task_of(rows.task_row(db, task))


def evaluate(ctx: Context, *, actor: str, task: str, number: int | None = None) -> Round:
    """Let every eligible device evaluate a checkpoint, without training.

    number   of the round that made it, by default the newest; 0: the initial model

    ConflictError while rounds of the task run, and when no device is eligible.
    """
    found = checkpoint(ctx, task, number)
    with ctx.store.write() as db:
        whole = rows.task_of(rows.task_row(db, task))
        going = select(federated_round.c.id).where(
            federated_round.c.task == task, federated_round.c.ended_at == 0
        )
        if whole.state == rows.RUNNING or db.scalar(going):
            raise ConflictError(
                f"rounds of task {task} run", f"wait for them, or: shoal round abort {task}"
            )
        ident = scheduling.start_evaluation(db, ctx, whole, found.number, found.theta)
        audit.record(db, ctx, actor, "round.evaluate", task, checkpoint=found.number)
    return get_round(ctx, ident)


def list_rounds(ctx: Context, *, task: str = "", limit: int = 100) -> list[Round]:
    """Attempts of rounds, newest first; AbsentError for an unknown task."""
    query = select(federated_round).order_by(
        federated_round.c.started_at.desc(), federated_round.c.number.desc(),
        federated_round.c.attempt.desc(),
    )  # fmt: skip
    with ctx.store.read() as db:
        if task:
            rows.task_row(db, task)
            query = query.where(federated_round.c.task == task)
        return [rows.round_of(row) for row in db.execute(query.limit(limit))]


def get_round(ctx: Context, ident: str) -> Round:
    """One round, "task.number"; AbsentError if there is none."""
    with ctx.store.read() as db:
        return rows.round_of(rows.round_row(db, ident))


def participations(ctx: Context, ident: str) -> list[Participation]:
    """Every device of one attempt; of a running round, so far."""
    with ctx.store.read() as db:
        row = rows.round_row(db, ident)
        kept = select(participation).where(participation.c.round == ident)
        found = list(db.execute(kept.order_by(participation.c.device)).mappings())
        if row.ended_at and found:
            return [Participation(**one) for one in found]
        return rows.participations_of(db, row, rows.update_facts(db, ident))


def matrix(ctx: Context, task: str, *, last: int = 50) -> list[Participation]:
    """Participations in the newest `last` attempts, round by round."""
    newest = (
        select(federated_round.c.id)
        .where(federated_round.c.task == task)
        .order_by(federated_round.c.number.desc(), federated_round.c.attempt.desc())
        .limit(last)
    )
    order = (participation.c.number, participation.c.round, participation.c.device)
    with ctx.store.read() as db:
        rows.task_row(db, task)
        query = select(participation).where(participation.c.round.in_(newest)).order_by(*order)
        return [Participation(**one) for one in db.execute(query).mappings()]


def _evaluated_by(db: Connection, task: str, number: int) -> int | None:
    """Round whose checkpoint an evaluation measured, 0: the initial model; None if it trained."""
    mine = (federated_round.c.task == task) & (federated_round.c.number == number)
    row = db.execute(select(federated_round).where(mine)).first()
    evaluates = row is not None and rows.record_of(row).purpose == "evaluate"
    return int(row.parent) if row is not None and evaluates else None


def checkpoint(ctx: Context, task: str, number: int | None = None) -> Checkpoint:
    """Theta after a round of a task, by default the newest, and its lineage.

    number   0: the initial model. AbsentError for a round without a checkpoint, ConflictError for
             an evaluation, which measured another round's, and for a pruned one.
    """
    with ctx.store.read() as db:
        found = rows.task_of(rows.task_row(db, task))
        if found.prepared is None:
            raise ConflictError(f"task {task} is {found.state}: it has no theta yet")
        done = select(federated_round).where(
            federated_round.c.task == task,
            federated_round.c.state == "DONE",
            federated_round.c.checkpoint != "",
        )
        made = {row.number: row for row in db.execute(done)}
        wanted = found.parent if number is None else number
        evaluated = _evaluated_by(db, task, wanted) if wanted not in made else None
    if evaluated is not None:
        made_by = (
            f"round {evaluated}'s checkpoint" if evaluated else "the model that the task began with"
        )
        raise ConflictError(
            f"round {wanted} of {task} was an evaluation: it measured {made_by}, no more",
            f"name a round that learned: shoal round list {task} lists the training rounds",
        )
    if wanted and wanted not in made:
        raise AbsentError("checkpoint", f"{task}.{wanted}", "shoal round list shows which are DONE")
    if wanted and made[wanted].pruned_at:
        raise ConflictError(
            f"the checkpoint of round {task}.{wanted} is pruned: its file is deleted",
            f"name a newer one: shoal round list {task} shows which are pruned; [rounds] "
            "checkpoints in controller.toml sets how many are kept",
        )
    line, at = [], wanted
    while at:
        line.append(at)
        at = made[at].parent
    theta = made[wanted].checkpoint if wanted else found.prepared.theta
    return Checkpoint(
        task=task, number=wanted, theta=theta, prepared=found.prepared, lineage=line[::-1]
    )


def list_tasks(ctx: Context) -> list[Task]:
    """Newest first."""
    query = select(federated_task).order_by(federated_task.c.created_at.desc())
    with ctx.store.read() as db:
        return [rows.task_of(row) for row in db.execute(query)]


def get_task(ctx: Context, name: str) -> Task:
    """AbsentError if there is none."""
    with ctx.store.read() as db:
        return rows.task_of(rows.task_row(db, name))
