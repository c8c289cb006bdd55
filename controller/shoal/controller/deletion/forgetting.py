"""Erases a subject's rows from a dataset, and names everything that was trained on them."""

from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import Connection, or_, select, update

from shoal.controller.access import audit
from shoal.controller.data import datasets, subjects
from shoal.controller.data.masking import KeyOf
from shoal.controller.data.records import DatasetVersion
from shoal.controller.deletion import unused_files
from shoal.controller.deletion.records import Forgotten
from shoal.controller.host.context import Context
from shoal.controller.operations import operations
from shoal.controller.store import changes
from shoal.controller.store.tables import dataset, device, federated_task, model, operation, release
from shoal.errors import AbsentError, ConflictError, DatasetError, SettingError


def forget(
    ctx: Context, keys: KeyOf, *, actor: str, name: str, column: str, value: str
) -> Forgotten:
    """Add a version of dataset `name` without the rows that have `value` in `column`, and erase
    the versions that have them. Repeatable: what was interrupted goes on.

    The value is in no record, log or error. AbsentError if no version has it; ConflictError while
    a training on one of them is unfinished; DatasetError as subjects.rows_of, for the newest.
    """
    if "@" in name or not value.strip():
        what = f"dataset {name!r:.80}" if "@" in name else "an empty value"
        raise SettingError(what, "name the dataset without its version, and the subject's value")
    every = datasets.versions_of(ctx, name)
    versions = [version for version in every if not version.erased_at] or every[:1]
    unknown = list[str]()
    newest = subjects.rows_of(ctx, versions[0], column, value, keys)
    counts = {versions[0].ref: int(newest.sum())}
    for version in versions[1:]:
        try:
            rows = subjects.rows_of(ctx, version, column, value, keys)
            counts[version.ref] = int(rows.sum())
        except (DatasetError, ConflictError):
            unknown.append(version.ref)
    held = {ref: count for ref, count in counts.items() if count}
    if not held:
        raise AbsentError(
            "row", f"of this subject in {name}",
            f"see what is in {column}: shoal dataset show {versions[0].ref}",
        )  # fmt: skip
    _check_idle(ctx, held)
    made, why = "", ""
    if versions[0].ref in held:
        try:
            made = subjects.add_without(ctx, versions[0], newest, actor=actor).ref
        except DatasetError as error:
            why = error.message
    erased = [version for version in versions if version.ref in held]
    with ctx.store.write() as db:
        _erase(db, ctx, actor, name, column, erased, made)
        return _trained(db, name, held, made=made, why=why, unknown=unknown, column=column)


def _check_idle(ctx: Context, refs: Iterable[str]) -> None:
    of_them = operation.c.params["dataset"].as_string().in_([*refs])
    query = select(operation.c.id).where(of_them, operation.c.state.not_in(operations.ENDED))
    with ctx.store.read() as db:
        if running := db.scalars(query).all():
            raise ConflictError(
                f"operation {running[0]} is about to train on these rows",
                f"shoal operation cancel {running[0]}, or wait for it",
            )


def _erase(
    db: Connection,
    ctx: Context,
    actor: str,
    name: str,
    column: str,
    erased: Sequence[DatasetVersion],
    made: str,
) -> None:
    for version in erased:
        mine = (dataset.c.name == name) & (dataset.c.version == version.version)
        db.execute(update(dataset).where(mine).values(erased_at=ctx.clock()))
        changes.note(db, ctx, "dataset", version.ref)
    unused_files.leave(db, ctx, {version.sha256 for version in erased})
    refs = [version.ref for version in erased]
    audit.record(db, ctx, actor, "dataset.forget", name, column=column, erased=refs, made=made)


def _trained(
    db: Connection, name: str, held: dict[str, int], *, column: str, **more: Any
) -> Forgotten:
    """What came of the versions of `held`: in SQL, a few queries for each generation."""
    derived = dict.fromkeys([*_same_rows(db, [*held]), *_closure(db, [*held], _derived)])
    sources = [*held, *(one for one in derived if one.partition("@")[0] != name)]
    runs = db.scalars(
        select(operation.c.id).where(operation.c.params["dataset"].as_string().in_(sources))
    ).all()
    first = [f"{row.model}@{row.version}" for row in db.execute(
        select(release.c.model, release.c.version).where(release.c.dataset.in_(sources))
    )]  # fmt: skip
    releases = [*first, *_closure(db, first, _retrained)]
    policies = db.scalars(select(model.c.name).where(model.c.dataset.in_(sources))).all()
    data = federated_task.c.plan["dataset"].as_string()
    tasks = db.scalars(
        select(federated_task.c.name).where(
            or_(data.in_(sources), federated_task.c.release.in_(releases))
        )
    ).all()
    return Forgotten(
        dataset=name, column=column, rows=held, erased=[*held], runs=[*runs], releases=releases,
        devices=_serving(db, releases), tasks=[*tasks], policies=[*policies],
        derived=sources[len(held) :], **more,
    )  # fmt: skip


def _closure(db: Connection, start: Sequence[str], step: Any) -> list[str]:
    """What is reached from `start`, without it, the nearest first."""
    seen, frontier = dict.fromkeys(start), [*start]
    while frontier:
        frontier = [one for one in step(db, frontier) if one not in seen]
        seen |= dict.fromkeys(frontier)
    return [*seen][len(start) :]


def _same_rows(db: Connection, refs: Sequence[str]) -> list[str]:
    """Versions of other datasets that are stored in the same files."""
    rows = db.execute(select(dataset.c.name, dataset.c.version, dataset.c.sha256)).all()
    files = {row.sha256 for row in rows if f"{row.name}@{row.version}" in refs}
    names = [f"{row.name}@{row.version}" for row in rows if row.sha256 in files]
    return [one for one in names if one not in refs]


def _derived(db: Connection, refs: Sequence[str]) -> list[str]:
    rows = db.execute(select(dataset.c.name, dataset.c.version, dataset.c.parents))
    return [f"{row.name}@{row.version}" for row in rows if not {*row.parents}.isdisjoint(refs)]


def _retrained(db: Connection, refs: Sequence[str]) -> list[str]:
    """Releases that federated rounds made from others."""
    base = release.c.report["origin"]["release"].as_string()
    rows = db.execute(select(release.c.model, release.c.version).where(base.in_(refs)))
    return [f"{row.model}@{row.version}" for row in rows]


def _serving(db: Connection, refs: Sequence[str]) -> list[str]:
    """Devices that serve one of them, by their last report."""
    found: set[str] = set()
    for name in sorted({ref.partition("@")[0] for ref in refs}):
        serves = device.c.releases[name].as_string().in_([*refs])
        found |= {*db.scalars(select(device.c.name).where(serves, device.c.state == "enrolled"))}
    return sorted(found)
