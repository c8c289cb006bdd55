"""Models: a name, its releases, and its policy on drift."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Row, case, func, select, update

from shoal import manifest
from shoal.controller.access import audit
from shoal.controller.data import datasets
from shoal.controller.host.context import Context
from shoal.controller.releases import revocation
from shoal.controller.releases.records import Model
from shoal.controller.store import changes
from shoal.controller.store.paging import Orders, has_text, page_of
from shoal.controller.store.records import Page
from shoal.controller.store.tables import federated_task, model, release
from shoal.errors import AbsentError, ConflictError

RELEASED = "released"
_ORDERS: Orders = {
    "name": (model.c.name,),
    "created": (model.c.created_at, model.c.name),
}


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
        return _records(db, db.execute(query).all())


def page(
    ctx: Context,
    *,
    q: str = "",
    retired: bool = False,
    sort: str = "name",
    cursor: str = "",
    limit: int = 50,
) -> tuple[list[Model], Page]:
    """Models whose name has `q` in it, by name unless `sort` says otherwise. retired: with those
    that are retired. InputError for an unknown order, an invalid limit or cursor."""
    wanted = has_text(q, model.c.name)
    wanted += [] if retired else [model.c.retired_at == 0]
    query = select(model).where(*wanted)
    with ctx.store.read() as db:
        rows, made = page_of(db, query, _ORDERS, sort=sort, cursor=cursor, limit=limit)
        return _records(db, rows), made


def names(ctx: Context, limit: int = 200) -> list[str]:
    """Names of models, in order, `limit` at most: for a list to choose from."""
    with ctx.store.read() as db:
        return list(db.scalars(select(model.c.name).order_by(model.c.name).limit(limit)))


def get_model(ctx: Context, name: str) -> Model:
    """One model; AbsentError if there is none such."""
    with ctx.store.read() as db:
        row = db.execute(select(model).where(model.c.name == name)).first()
        if row is None:
            raise AbsentError("model", name, "list them: shoal model list")
        return _records(db, [row])[0]


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
        columns = [_TABLE.c[name] for name in values]
        before = db.execute(select(*columns).where(_TABLE.c.name == model)).one()._asdict()
        db.execute(update(_TABLE).where(_TABLE.c.name == model).values(**values))
        audit.record(db, ctx, actor, "model.policy", model, before=before, **values)
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


def _records(db: Connection, rows: Sequence[Row[Any]]) -> list[Model]:
    """Models of rows, with the numbers of their releases: one query, however many."""
    mine = release.c
    good = (mine.state == RELEASED) & (mine.retired_at == 0) & ~revocation.IS_REVOKED
    signed = case((good, mine.version))
    counts = select(mine.model, func.count(), func.max(mine.version), func.max(signed))
    of_these = counts.where(mine.model.in_([row.name for row in rows])).group_by(mine.model)
    found = {name: (number, last, good) for name, number, last, good in db.execute(of_these)}
    return [_record(row, *found.get(row.name, (0, None, None))) for row in rows]


def _record(row: Row[Any], number: int, last: int | None, signed: int | None) -> Model:
    return Model.of_row(
        row,
        latest=f"{row.name}@{last}" if last else "",
        released=f"{row.name}@{signed}" if signed else "",
        releases=number,
    )
