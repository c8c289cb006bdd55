"""Links of lineage, a step up or down from several things at once: a query for each kind."""

from collections.abc import Callable, Iterator, Sequence

from sqlalchemy import Connection, func, select, true, tuple_

from shoal.controller.lineage.records import (
    ALERT,
    DATASET,
    DEVICE,
    MLFLOW,
    RELEASE,
    ROLLOUT,
    RUN,
    Link,
)
from shoal.controller.runs.records import CHECKPOINT
from shoal.controller.store.mlflow_tables import mlflow_import
from shoal.controller.store.rollout_tables import rollout
from shoal.controller.store.tables import alert, dataset, device, operation, release

#: Prefix of the trigger of a run that an alert has started.
_BY_ALERT = "alert:"
Step = Callable[[Connection, Sequence[str]], Iterator[Link]]


def link(source_kind: str, source: object, kind: str, name: object, why: str) -> Link:
    return Link(source=f"{source_kind}:{source}", to=f"{kind}:{name}", why=why)


def keys_of(names: Sequence[str]) -> list[tuple[str, int]]:
    """("model", 3) of each "model@3"; others are left out."""
    parts = (name.rpartition("@") for name in names)
    return [(head, int(tail)) for head, _, tail in parts if tail.isdecimal() and len(tail) < 10]


# ---- up: what it was made from


def _made_by(db: Connection, refs: Sequence[str]) -> Iterator[Link]:
    key = tuple_(release.c.model, release.c.version)
    columns = (release.c.model, release.c.version, release.c.operation)
    for row in db.execute(
        select(*columns).where(key.in_(keys_of(refs)), release.c.operation != "")
    ):
        yield link(RUN, row.operation, RELEASE, f"{row.model}@{row.version}", "made")


def _given_to(db: Connection, idents: Sequence[str]) -> Iterator[Link]:
    query = select(operation.c.id, operation.c.params).where(operation.c.id.in_(idents))
    for row in db.execute(query):
        if data := row.params.get("dataset"):
            yield link(DATASET, data, RUN, row.id, "data")
        trigger = row.params.get("trigger", "")
        if trigger.startswith(_BY_ALERT):
            yield link(ALERT, trigger.removeprefix(_BY_ALERT), RUN, row.id, "retrained")
        if source := (row.params.get("source") or {}).get("name"):
            yield link(MLFLOW, source, RUN, row.id, "imported")
        if base := (row.params.get("origin") or {}).get("release"):
            yield link(RELEASE, base, RUN, row.id, "federated rounds")


def _parents(db: Connection, refs: Sequence[str]) -> Iterator[Link]:
    key = tuple_(dataset.c.name, dataset.c.version)
    query = select(dataset.c.name, dataset.c.version, dataset.c.parents, dataset.c.how)
    for row in db.execute(query.where(key.in_(keys_of(refs)))):
        for parent in row.parents:
            why = row.how or "made from"
            yield link(DATASET, parent, DATASET, f"{row.name}@{row.version}", why)


def _rolled_out(db: Connection, idents: Sequence[str]) -> Iterator[Link]:
    query = select(rollout.c.id, rollout.c.release).where(rollout.c.id.in_(idents))
    for row in db.execute(query):
        yield link(RELEASE, row.release, ROLLOUT, row.id, "rolled out")


def _served(db: Connection, names: Sequence[str]) -> Iterator[Link]:
    query = select(device.c.name, device.c.releases).where(device.c.name.in_(names))
    for row in db.execute(query):
        for ref in row.releases.values():
            yield link(RELEASE, ref, DEVICE, row.name, "serves")


def _found_in(db: Connection, idents: Sequence[str]) -> Iterator[Link]:
    known = [int(ident) for ident in idents]
    query = select(alert.c.id, alert.c.release, alert.c.kind).where(alert.c.id.in_(known))
    for row in db.execute(query.where(alert.c.release != "")):
        yield link(RELEASE, row.release, ALERT, row.id, row.kind)


# ---- down: what came of it


def _trained_on(db: Connection, refs: Sequence[str]) -> Iterator[Link]:
    query = select(release.c.dataset, release.c.operation).where(release.c.dataset.in_(refs))
    for row in db.execute(query.where(release.c.operation != "")):
        yield link(DATASET, row.dataset, RUN, row.operation, "data")
    each = func.json_each(dataset.c.parents).table_valued("value")
    columns = (dataset.c.name, dataset.c.version, dataset.c.how, each.c.value)
    joined = dataset.join(each, true())
    for child in db.execute(select(*columns).select_from(joined).where(each.c.value.in_(refs))):
        name = f"{child.name}@{child.version}"
        yield link(DATASET, child.value, DATASET, name, child.how or "made from")


def _imported(db: Connection, names: Sequence[str]) -> Iterator[Link]:
    query = select(mlflow_import.c.name, mlflow_import.c.operation)
    for row in db.execute(query.where(mlflow_import.c.name.in_(names))):
        yield link(MLFLOW, row.name, RUN, row.operation, "imported")


def _made(db: Connection, idents: Sequence[str]) -> Iterator[Link]:
    columns = (release.c.model, release.c.version, release.c.operation)
    for row in db.execute(select(*columns).where(release.c.operation.in_(idents))):
        yield link(RUN, row.operation, RELEASE, f"{row.model}@{row.version}", "made")


def _done_with(db: Connection, refs: Sequence[str]) -> Iterator[Link]:
    for row in db.execute(
        select(rollout.c.id, rollout.c.release).where(rollout.c.release.in_(refs))
    ):
        yield link(RELEASE, row.release, ROLLOUT, row.id, "rolled out")
    query = select(alert.c.id, alert.c.release, alert.c.kind).where(alert.c.release.in_(refs))
    for raised in db.execute(query):
        yield link(RELEASE, raised.release, ALERT, raised.id, raised.kind)
    base = operation.c.params["origin"]["release"].as_string()
    mine = operation.c.subject.in_({model for model, _ in keys_of(refs)})
    by_rounds = select(operation.c.id, base.label("base")).where(mine, base.in_(refs))
    for made in db.execute(by_rounds.where(operation.c.kind == CHECKPOINT)):
        yield link(RELEASE, made.base, RUN, made.id, "federated rounds")


def _started(db: Connection, idents: Sequence[str]) -> Iterator[Link]:
    by = release.c.trigger.in_([f"{_BY_ALERT}{ident}" for ident in idents])
    for row in db.execute(select(release.c.trigger, release.c.operation).where(by)):
        ident = row.trigger.removeprefix(_BY_ALERT)
        yield link(ALERT, ident, RUN, row.operation, "retrained")


UP: dict[str, Step] = {
    RELEASE: _made_by, RUN: _given_to, DATASET: _parents, ROLLOUT: _rolled_out, DEVICE: _served,
    ALERT: _found_in,
}  # fmt: skip
DOWN: dict[str, Step] = {
    DATASET: _trained_on, MLFLOW: _imported, RUN: _made, RELEASE: _done_with, ALERT: _started,
}  # fmt: skip
