"""Models: a name, its releases, and its policy on drift."""

from typing import Any

from sqlalchemy import Connection, Row, select, update

from shoal import manifest
from shoal.controller.access import audit
from shoal.controller.data import datasets
from shoal.controller.host.context import Context
from shoal.controller.releases.records import Model
from shoal.controller.store import changes
from shoal.controller.store.tables import federated_task, model, release
from shoal.errors import AbsentError, ConflictError

RELEASED = "released"


def ensure_model(db: Connection, ctx: Context, *, actor: str, name: str) -> None:
    """Add the model if it is new; SettingError for an invalid name, ConflictError for a retired
    model."""
    manifest.check_model(name)
    retired_at = db.scalar(select(model.c.retired_at).where(model.c.name == name))
    if retired_at:
        raise ConflictError(
            f"model {name} is retired", f"take it back: shoal model unretire {name}"
        )
    if retired_at is None:
        db.execute(model.insert().values(name=name, created_at=ctx.clock(), dataset=""))
        audit.record(db, ctx, actor, "model.add", name)
        changes.note(db, ctx, "model", name)


def list_models(ctx: Context, *, retired: bool = True) -> list[Model]:
    """Every model, by name. retired: with those that are retired."""
    query = select(model).order_by(model.c.name)
    if not retired:
        query = query.where(model.c.retired_at == 0)
    with ctx.store.read() as db:
        rows = db.execute(query).all()
        return [_record(db, row) for row in rows]


def get_model(ctx: Context, name: str) -> Model:
    """One model; AbsentError if there is none such."""
    with ctx.store.read() as db:
        row = db.execute(select(model).where(model.c.name == name)).first()
        if row is None:
            raise AbsentError("model", name, "list them: shoal model list")
        return _record(db, row)


def set_policy(
    ctx: Context,
    *,
    actor: str,
    model: str,
    retrain_on_drift: bool,
    dataset: str,
    task: str = "",
    rounds: int = 10,
    cooldown_s: float = 86_400.0,
) -> Model:
    """Set the policy on drift: retrain `model` from the newest version of `dataset`, and request
    `rounds` of a federated task, at most once in cooldown_s seconds.

    AbsentError if there is no such model, dataset or task; ConflictError for another model's task,
    and for a model whose newest release takes tensors: nothing of it is tested for drift.
    """
    newest = get_model(ctx, model).latest
    if dataset:
        datasets.get_labelled_table(ctx, dataset)
    values: dict[str, Any] = {
        "retrain_on_drift": retrain_on_drift, "dataset": dataset, "task": task, "rounds": rounds,
        "cooldown_s": cooldown_s,
    }  # fmt: skip
    with ctx.store.write() as db:
        if retrain_on_drift or task:
            _check_drifts(db, newest)
        if task:
            _check_task(db, task, model)
        db.execute(update(_TABLE).where(_TABLE.c.name == model).values(**values))
        audit.record(db, ctx, actor, "model.policy", model, **values)
        changes.note(db, ctx, "model", model)
    return get_model(ctx, model)


_TABLE = model


def _check_drifts(db: Connection, newest: str) -> None:
    name, _, version = newest.rpartition("@")
    mine = (release.c.model == name) & (release.c.version == int(version or 0))
    report = db.scalar(select(release.c.report).where(mine))
    if report is not None and report.get("tensors"):
        raise ConflictError(
            f"{newest} takes tensors, and is not trained here",
            "import it with a dataset, or retrain it yourself",
        )


def _check_task(db: Connection, task: str, model: str) -> None:
    of_task = select(federated_task.c.model).where(federated_task.c.name == task)
    trains = db.scalar(of_task)
    if trains is None:
        raise AbsentError("federated task", task, "list them: shoal round tasks")
    if trains != model:
        raise ConflictError(
            f"task {task} trains {trains}", f"name one of {model}: shoal round tasks"
        )


def _record(db: Connection, row: Row[Any]) -> Model:
    columns = (release.c.version, release.c.state, release.c.retired_at)
    newest = select(*columns).where(release.c.model == row.name)
    releases = db.execute(newest.order_by(release.c.version.desc())).all()
    signed = [one.version for one in releases if one.state == RELEASED and not one.retired_at]
    return Model.of_row(
        row,
        latest=f"{row.name}@{releases[0].version}" if releases else "",
        released=f"{row.name}@{signed[0]}" if signed else "",
        releases=len(releases),
    )
