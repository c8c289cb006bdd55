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
from shoal.controller.training.jobs import ModelBuilder, TrainGraphJob
from shoal.errors import ConflictError
from shoal.estimators import read_params

FEDERATE = "federate"
_ORPHANED_S, _ORPHANED = 60.0, "the controller was killed while it was planned; plan it again"
_LOST = (operations.FAILED, operations.CANCELED)
_LOSSES: dict[str, Literal["cross-entropy", "mse"]] = {
    "classification": "cross-entropy", "regression": "mse"
}  # fmt: skip


def plan(ctx: Context, *, actor: str, task_plan: TaskPlan) -> Task:
    """Create a task and enqueue the operation that prepares it.

    SettingError names contradictions in the plan; ConflictError for a name that is taken,
    AbsentError for a missing release or dataset.
    """
    task_plan = _resolve(ctx, plans.check_task(task_plan))
    model = task_plan.model or task_plan.release.partition("@")[0]
    params = {"task": task_plan.name, "dataset": task_plan.dataset, "release": task_plan.release}
    with ctx.store.write() as db:
        models.ensure_model(db, ctx, actor=actor, name=model)
        _add(db, ctx, task_plan, model, actor)
        audit.record(db, ctx, actor, "round.plan", task_plan.name, model=model)
    work = operations.enqueue(
        ctx,
        actor=actor,
        kind=FEDERATE,
        subject=model,
        params=params | _training_params(ctx, task_plan),
    )
    with ctx.store.write() as db:
        rows.set_task(db, ctx, task_plan.name, operation=work.id)
        return rows.task_of(rows.task_row(db, task_plan.name))


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
        task_plan = rows.task_of(rows.task_row(db, name)).plan
    manifest, _ = releases.manifest_of(ctx, release)
    report(0.92, "differentiating the model")
    derived = builder.derive(_derivation(ctx, task_plan, release))
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


def _resolve(ctx: Context, task_plan: TaskPlan) -> TaskPlan:
    """The plan with its release or dataset checked, and the dataset's version."""
    if task_plan.release:
        release = releases.get_release(ctx, task_plan.release)
        quarantine.check(release)
        if release.tensors is not None:
            raise ConflictError(
                f"{release.ref} takes tensors, rounds need rows",
                "start from a release that was trained, or imported with a dataset",
            )
        if task_plan.model not in ("", release.model):
            raise ConflictError(
                f"{task_plan.release} is no release of {task_plan.model}", "leave the model out"
            )
        return task_plan
    read_params(task_plan.estimator, task_plan.params)
    version = datasets.get_labelled_table(ctx, task_plan.dataset)
    return msgspec.structs.replace(task_plan, dataset=version.ref)


def _add(db: Connection, ctx: Context, task_plan: TaskPlan, model: str, actor: str) -> None:
    """Insert the task's row; ConflictError for a name that is taken."""
    taken = select(federated_task.c.name).where(federated_task.c.name == task_plan.name)
    if db.scalar(taken) is not None:
        raise ConflictError(f"there is a federated task {task_plan.name!r}", "give it another name")
    db.execute(
        federated_task.insert().values(
            name=task_plan.name, model=model, release=task_plan.release, state=rows.PREPARING,
            plan=msgspec.to_builtins(task_plan), prepared={}, created_at=ctx.clock(),
            created_by=actor, spent=[],
        )
    )  # fmt: skip


def _training_params(ctx: Context, task_plan: TaskPlan) -> dict[str, Any]:
    """Parameters of an operation of kind "train", for a task that starts from a dataset."""
    if not task_plan.dataset:
        return {}
    return {
        "dataset_sha256": datasets.get_dataset(ctx, task_plan.dataset).sha256,
        "estimator": task_plan.estimator,
        "params": task_plan.params,
        "trigger": "manual",
    }


def _derivation(ctx: Context, task_plan: TaskPlan, release: str) -> TrainGraphJob:
    manifest, _ = releases.manifest_of(ctx, release)
    graph, terms = task_plan.graph, plans.strategy_for(task_plan).terms()
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
