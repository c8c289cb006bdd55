"""What depends on a release, a model or a dataset version."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Connection, and_, func, or_, select

from shoal import manifest as manifests
from shoal.controller.deletion.records import Dependent
from shoal.controller.operations import operations
from shoal.controller.releases import quarantine
from shoal.controller.rollouts.machine import ENDED
from shoal.controller.store.rollout_tables import assignment, rollout, rollout_device
from shoal.controller.store.tables import dataset, device, federated_task, model, operation, release
from shoal.orders import REMOVE

RELEASE, MODEL, DATASET, POLICY = "release", "model", "dataset", "policy"
#: Devices that are named.
_NAMED = 10
_UNFINISHED = rollout.c.state.not_in([state.value for state in ENDED])


class Item(NamedTuple):
    """What is to be deleted. kind: RELEASE, MODEL, DATASET, or POLICY to be cleared."""

    kind: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"


def dependents_of(db: Connection, item: Item) -> list[Dependent]:
    """Everything that depends on it directly; what has to be ended first comes first."""
    kinds = {RELEASE: _of_release, MODEL: _of_model, DATASET: _of_dataset}
    return list(kinds[item.kind](db, item)) if item.kind in kinds else []


def _of_release(db: Connection, item: Item) -> Iterator[Dependent]:
    ref = item.name
    name, version = manifests.parse_release(ref)
    yield from _rollouts(db, item, rollout.c.release == ref)
    yield from _ways_back(db, item)
    of_model = operation.c.subject == name
    params = operation.c.params
    named = or_(
        params["origin"]["release"].as_string() == ref, params["release"].as_string() == ref
    )
    yield from _operations(db, item, and_(of_model, named))
    path = assignment.c.orders[(name, "path")].as_string()
    paths = [f"{role}/{name}/{version}/manifest.json" for role in ("release", "candidate")]
    serves = device.c.releases[name].as_string() == ref
    yield from _devices(db, item, name, or_(serves, path.in_(paths)))
    yield from _tasks(db, item, federated_task.c.release == ref)
    base = release.c.report["origin"]["release"].as_string() == ref
    yield from _releases(db, item, base, "was trained from it in federated rounds")


def _of_model(db: Connection, item: Item) -> Iterator[Dependent]:
    name = item.name
    yield from _rollouts(db, item, rollout.c.model == name)
    yield from _operations(db, item, operation.c.subject == name)
    path = assignment.c.orders[(name, "path")].as_string()
    ordered = and_(path.is_not(None), path.not_like(f"{REMOVE}/%"))
    yield from _devices(db, item, name, or_(device.c.releases[name].as_string() != "", ordered))
    yield from _tasks(db, item, federated_task.c.model == name)


def _of_dataset(db: Connection, item: Item) -> Iterator[Dependent]:
    ref = item.name
    name = ref.partition("@")[0]
    yield from _operations(db, item, operation.c.params["dataset"].as_string() == ref)
    yield from _tasks(db, item, federated_task.c.plan["dataset"].as_string() == ref)
    yield from _releases(db, item, release.c.dataset == ref, "was made with it")
    query = select(dataset.c.name, dataset.c.version, dataset.c.parents)
    for row in db.execute(query.order_by(dataset.c.name, dataset.c.version)):
        if ref in row.parents:
            child = f"{row.name}@{row.version}"
            yield Dependent(
                kind=DATASET, name=child, on=str(item), why=f"dataset {child} was derived from it",
                next_step=f"shoal dataset delete {child}", safe=True,
            )  # fmt: skip
    versions = db.scalar(select(func.count()).where(dataset.c.name == name)) or 0
    named = [ref, name] if versions <= 1 else [ref]
    for policy in db.scalars(select(model.c.name).where(model.c.dataset.in_(named))):
        yield Dependent(
            kind=POLICY, name=policy, on=str(item), why=f"the policy of {policy} retrains from it",
            next_step=f'shoal model policy {policy} --no-retrain-on-drift --dataset ""', safe=True,
        )  # fmt: skip


def _rollouts(db: Connection, item: Item, mine: ColumnElement[bool]) -> Iterator[Dependent]:
    for row in db.execute(select(rollout).where(mine, _UNFINISHED)):
        yield Dependent(
            kind="rollout", name=row.id, on=str(item), why=f"rollout {row.id} is {row.state}",
            next_step=f"shoal rollout abort {row.id}",
        )  # fmt: skip


def _ways_back(db: Connection, item: Item) -> Iterator[Dependent]:
    """Unfinished rollouts of other releases that may put devices back to this one."""
    query = (
        select(rollout.c.id, rollout.c.state)
        .join(rollout_device, rollout_device.c.rollout == rollout.c.id)
        .where(rollout_device.c.previous == item.name, _UNFINISHED)
        .distinct()
    )
    for row in db.execute(query):
        yield Dependent(
            kind="rollout", name=row.id, on=str(item),
            why=f"rollout {row.id} is {row.state} and may put devices back to it",
            next_step=f"shoal rollout abort {row.id}",
        )  # fmt: skip


def _operations(db: Connection, item: Item, mine: ColumnElement[bool]) -> Iterator[Dependent]:
    query = select(operation).where(mine, operation.c.state.not_in(operations.ENDED))
    for row in db.execute(query):
        yield Dependent(
            kind="operation", name=row.id, on=str(item),
            why=f"operation {row.id} ({row.kind}) is {row.state}",
            next_step=f"shoal operation cancel {row.id}",
        )  # fmt: skip


def _devices(
    db: Connection, item: Item, name: str, have: ColumnElement[bool]
) -> Iterator[Dependent]:
    """Enrolled devices that serve it, by their last report, or are ordered it."""
    query = (
        select(device.c.name)
        .outerjoin(assignment, assignment.c.device == device.c.name)
        .where(device.c.state == "enrolled", have)
        .order_by(device.c.name)
    )
    names = list(db.scalars(query))
    if not names:
        return
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    count = (
        "1 device serves it or is" if len(names) == 1 else f"{len(names)} devices serve it or are"
    )
    which = " ".join(f"--device {one}" for one in names) if not more else "--all"
    step = f"shoal model undeploy {name} {which}"
    if more and item.kind == RELEASE and (other := quarantine.way_back(db, item.name)):
        step = f"shoal rollout start {other}"  # others may serve another release: not --all
    yield Dependent(
        kind="devices", name=name, on=str(item),
        why=f"{count} ordered it ({', '.join(names[:_NAMED])}{more})",
        next_step=step,
    )  # fmt: skip


def _tasks(db: Connection, item: Item, mine: ColumnElement[bool]) -> Iterator[Dependent]:
    """Federated tasks: their rounds, checkpoints and spent privacy are kept for good."""
    for row in db.execute(select(federated_task).where(mine)):
        yield Dependent(
            kind="task", name=row.name, on=str(item),
            why=f"federated task {row.name}, its rounds and its checkpoints began with it and stay",
            next_step=_instead(item),
        )  # fmt: skip


def _instead(item: Item) -> str:
    if item.kind == DATASET:
        return f"shoal dataset show {item.name}"
    return f"shoal {item.kind} retire {item.name}"


def _releases(
    db: Connection, item: Item, mine: ColumnElement[bool], why: str
) -> Iterator[Dependent]:
    columns: Any = (release.c.model, release.c.version)
    for row in db.execute(select(*columns).where(mine).order_by(*columns)):
        ref = f"{row.model}@{row.version}"
        yield Dependent(
            kind=RELEASE, name=ref, on=str(item), why=f"release {ref} {why}",
            next_step=f"shoal release delete {ref}", safe=True,
        )  # fmt: skip
