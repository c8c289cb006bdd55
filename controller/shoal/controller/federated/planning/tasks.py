"""Federated tasks: plan one, prepare its graphs in an operation, then it is ready for rounds."""

from typing import Any, Literal

import msgspec
from sqlalchemy import Connection, select

from shoal.controller.access import audit
from shoal.controller.data import datasets
from shoal.controller.federated.planning import plans
from shoal.controller.federated.records import Prepared, Task, TaskPlan
from shoal.controller.federated.rounds import rows
from shoal.controller.host.context import Context
from shoal.controller.operations import operations
from shoal.controller.operations.operations import Operation
from shoal.controller.releases import models, quarantine, releases
from shoal.controller.store.tables import federated_task, operation
from shoal.controller.training import training
from shoal.controller.training.jobs import ModelBuilder, TrainGraphJob, read_params
from shoal.errors import ConflictError

FEDERATE = "federate"
_ORPHANED_S, _ORPHANED = 60.0, "the controller was killed while it was planned; plan it again"
_LOST = (operations.FAILED, operations.CANCELED)
_LOSSES: dict[str, Literal["cross-entropy", "mse"]] = {
    "classification": "cross-entropy", "regression": "mse"
}  # fmt: skip


def plan(ctx: Context, *, actor: str, asked: TaskPlan) -> Task:
    """Create a task and enqueue the operation that prepares it.

    SettingError names contradictions in the plan; ConflictError for a name that is taken,
    AbsentError for a missing release or dataset.
    """
    asked = _resolve(ctx, plans.check_task(asked))
    model = asked.model or asked.release.partition("@")[0]
    params = {"task": asked.name, "dataset": asked.dataset, "release": asked.release}
    with ctx.store.write() as db:
        models.ensure_model(db, ctx, actor=actor, name=model)
        _add(db, ctx, asked, model, actor)
        audit.record(db, ctx, actor, "round.plan", asked.name, model=model)
    work = operations.enqueue(
        ctx, actor=actor, kind=FEDERATE, subject=model, params=params | _training_params(ctx, asked)
    )
    with ctx.store.write() as db:
        rows.set_task(db, ctx, asked.name, operation=work.id)
        return rows.task_of(rows.task_row(db, asked.name))


def perform(
    builder: ModelBuilder, ctx: Context, work: Operation, report: operations.Report
) -> dict[str, Any]:
    """Run a FEDERATE operation: train the base release if the task has none, then prepare it."""
    release = work.params["release"] or training.build_release(builder, ctx, work, report)
    prepare(builder, ctx, work, release, report)
    return {"task": work.params["task"], "release": release}


def prepare(
    builder: ModelBuilder, ctx: Context, work: Operation, release: str, report: operations.Report
) -> Prepared:
    """Derive the train graph, loss graph and theta, in the operation's process.

    release   of the task's first checkpoint. ModelError names what cannot be trained in it.
    """
    name = str(work.params["task"])
    with ctx.store.read() as db:
        asked = rows.task_of(rows.task_row(db, name)).plan
    manifest, _ = releases.manifest_of(ctx, release)
    report(0.92, "differentiating the model")
    derived = builder.derive(_derivation(ctx, asked, release))
    put = {
        kind: ctx.blobs.put_bytes(getattr(derived, kind)).sha256
        for kind in ("graph", "loss_graph", "inference", "theta")
    }
    made = Prepared(
        **put,
        size=derived.size,
        personal=[*derived.personal],
        labels=manifest.labels,
        features=[feature.name for feature in manifest.features],
    )
    with ctx.store.write() as db:
        rows.set_task(
            db, ctx, name, state=rows.READY, release=release,
            prepared=msgspec.to_builtins(made),
            checkpoint=made.theta,
        )  # fmt: skip
    return made


def sweep(ctx: Context) -> None:
    """Fail tasks whose operation failed, or was never enqueued."""
    orphaned = operation.c.id.is_(None) & (federated_task.c.created_at < ctx.clock() - _ORPHANED_S)
    lost = (
        select(federated_task.c.name, operation.c.error)
        .outerjoin(operation, operation.c.id == federated_task.c.operation)
        .where(
            federated_task.c.state == rows.PREPARING, operation.c.state.in_(_LOST) | orphaned
        )
    )  # fmt: skip
    with ctx.store.read() as db:
        found = list(db.execute(lost))
    for one in found:
        with ctx.store.write() as db:
            rows.set_task(db, ctx, one.name, state=rows.FAILED, reason=one.error or _ORPHANED)


def _resolve(ctx: Context, asked: TaskPlan) -> TaskPlan:
    """The plan with its release or dataset checked, and the dataset's version."""
    if asked.release:
        release = releases.get_release(ctx, asked.release)
        quarantine.check(release)
        if asked.model not in ("", release.model):
            raise ConflictError(
                f"{asked.release} is no release of {asked.model}", "leave the model out"
            )
        return asked
    read_params(asked.estimator, asked.params)
    version = datasets.get_dataset(ctx, asked.dataset)
    return msgspec.structs.replace(asked, dataset=version.ref)


def _add(db: Connection, ctx: Context, asked: TaskPlan, model: str, actor: str) -> None:
    """Insert the task's row; ConflictError for a name that is taken."""
    taken = select(federated_task.c.name).where(federated_task.c.name == asked.name)
    if db.scalar(taken) is not None:
        raise ConflictError(f"there is a federated task {asked.name!r}", "give it another name")
    db.execute(
        federated_task.insert().values(
            name=asked.name, model=model, release=asked.release, state=rows.PREPARING,
            plan=msgspec.to_builtins(asked), prepared={}, created_at=ctx.clock(),
            created_by=actor, spent=[],
        )
    )  # fmt: skip


def _training_params(ctx: Context, asked: TaskPlan) -> dict[str, Any]:
    """Parameters of an operation of kind "train", for a task that starts from a dataset."""
    if not asked.dataset:
        return {}
    return {
        "dataset_sha256": datasets.get_dataset(ctx, asked.dataset).sha256,
        "estimator": asked.estimator,
        "params": asked.params,
        "trigger": "manual",
    }


def _derivation(ctx: Context, asked: TaskPlan, release: str) -> TrainGraphJob:
    manifest, _ = releases.manifest_of(ctx, release)
    graph, terms = asked.graph, plans.strategy_for(asked).terms()
    return TrainGraphJob(
        onnx=ctx.blobs.path(manifest.variant(graph.variant).file.sha256),
        loss=graph.loss or _LOSSES[manifest.task],
        delta=graph.delta,
        answers=graph.answers,
        output=manifest.output,
        optimiser=graph.optimiser,
        trained=graph.trained,
        personal=graph.personal,
        clip_norm=graph.clip_norm,
        proximal="mu" in terms or graph.ditto > 0,
        shift="shift" in terms,
    )
