"""A federated task: planned by a person, prepared by an operation, then ready for rounds."""

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
from shoal.controller.training.jobs import Derivation, Learning, read_params
from shoal.errors import ConflictError

FEDERATE = "federate"
_UNASKED_S, _UNASKED = 60.0, "the controller was killed while it was planned; plan it anew"
_LOST = (operations.FAILED, operations.CANCELED)
_LOSSES: dict[str, Literal["cross-entropy", "mse"]] = {
    "classification": "cross-entropy", "regression": "mse"
}  # fmt: skip


def plan(ctx: Context, *, actor: str, asked: TaskPlan) -> Task:
    """Write a task down and have it prepared; the operation tells how far that is.

    SettingError names what contradicts itself; ConflictError for a name that is taken, AbsentError
    for a release or dataset that is not there.
    """
    asked = _known(ctx, plans.check_task(asked))
    model = asked.model or asked.release.partition("@")[0]
    params = {"task": asked.name, "dataset": asked.dataset, "release": asked.release}
    with ctx.store.write() as db:
        models.ensure_model(db, ctx, actor=actor, name=model)
        _add(db, ctx, asked, model, actor)
        audit.record(db, ctx, actor, "round.plan", asked.name, model=model)
    work = operations.enqueue(
        ctx, actor=actor, kind=FEDERATE, subject=model, params=params | _trained(ctx, asked)
    )
    with ctx.store.write() as db:
        rows.set_task(db, ctx, asked.name, operation=work.id)
        return rows.task_of(rows.task_row(db, asked.name))


def perform(
    learning: Learning, ctx: Context, work: Operation, report: operations.Report
) -> dict[str, Any]:
    """Run a FEDERATE operation: train the base release if the task has none, then prepare it."""
    release = work.params["release"] or training.build_release(learning, ctx, work, report)
    prepare(learning, ctx, work, release, report)
    return {"task": work.params["task"], "release": release}


def prepare(
    learning: Learning, ctx: Context, work: Operation, release: str, report: operations.Report
) -> Prepared:
    """Make the train graph and what goes with it, in the operation's process.

    release   that the task begins with. ModelError says what in it cannot be trained.
    """
    name = str(work.params["task"])
    with ctx.store.read() as db:
        asked = rows.task_of(rows.task_row(db, name)).plan
    manifest, _ = releases.manifest_of(ctx, release)
    report(0.92, "differentiating the model")
    derived = learning.derive(_derivation(ctx, asked, release))
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
    """A task whose operation ended badly, or was never asked for, has failed with it."""
    unasked = operation.c.id.is_(None) & (federated_task.c.created_at < ctx.clock() - _UNASKED_S)
    lost = (
        select(federated_task.c.name, operation.c.error)
        .outerjoin(operation, operation.c.id == federated_task.c.operation)
        .where(
            federated_task.c.state == rows.PREPARING, operation.c.state.in_(_LOST) | unasked
        )
    )  # fmt: skip
    with ctx.store.read() as db:
        found = list(db.execute(lost))
    for one in found:
        with ctx.store.write() as db:
            rows.set_task(db, ctx, one.name, state=rows.FAILED, reason=one.error or _UNASKED)


def _known(ctx: Context, asked: TaskPlan) -> TaskPlan:
    """With what it begins with by its full name."""
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
    """ConflictError for a name that is taken."""
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


def _trained(ctx: Context, asked: TaskPlan) -> dict[str, Any]:
    """What an operation of kind "train" is told, where a dataset is trained on first."""
    if not asked.dataset:
        return {}
    return {
        "dataset_sha256": datasets.get_dataset(ctx, asked.dataset).sha256,
        "estimator": asked.estimator,
        "params": asked.params,
        "trigger": "manual",
    }


def _derivation(ctx: Context, asked: TaskPlan, release: str) -> Derivation:
    manifest, _ = releases.manifest_of(ctx, release)
    graph, terms = asked.graph, plans.strategy_for(asked).terms()
    return Derivation(
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
