"""Deletes releases, models and dataset versions that nothing depends on any more.

A release goes in three steps, each repeatable: its row is marked, so that nothing new can depend on
it; it is taken out of the signed metadata, so that no device can be sent it; its row is deleted and
its files are left to `unused_files`. `finish_all` ends what was interrupted. The audit log and the
version number stay: a number is never used again.
"""

from collections.abc import Sequence

from sqlalchemy import Connection, delete, select, update

from shoal import manifest as manifests
from shoal.controller.access import audit
from shoal.controller.alerts import alerts
from shoal.controller.data import datasets
from shoal.controller.deletion import dependents, unused_files
from shoal.controller.deletion.dependents import DATASET, MODEL, POLICY, RELEASE, Item
from shoal.controller.deletion.records import Deleted, Dependent
from shoal.controller.host.context import Context
from shoal.controller.releases import models, releases, retirement
from shoal.controller.rollouts import group_releases
from shoal.controller.store import changes, used_versions
from shoal.controller.store.tables import alert, dataset, model, operation, release
from shoal.errors import ConflictError

#: Dependents that an error names.
_SHOWN = 20


def list_dependents(ctx: Context, item: Item) -> list[Dependent]:
    """What depends on it directly, and for a model on its releases; AbsentError."""
    _check_exists(ctx, item)
    with ctx.store.read() as db:
        return dependents.dependents_of(db, item)


def delete_release(ctx: Context, *, actor: str, ref: str, with_dependents: bool = False) -> Deleted:
    """Delete a release; with_dependents: and what is safe to delete with it.

    AbsentError; ConflictError, which names what depends on it and the next step.
    """
    return _delete(ctx, actor, Item(RELEASE, ref), with_dependents)


def delete_dataset(ctx: Context, *, actor: str, ref: str, with_dependents: bool = False) -> Deleted:
    """Delete a version of a dataset, likewise."""
    return _delete(ctx, actor, Item(DATASET, ref), with_dependents)


def delete_model(ctx: Context, *, actor: str, name: str) -> Deleted:
    """Delete a model with all of its releases and its policy, likewise.

    It is retired first, so that nothing new begins with it; if the deletion is interrupted, it
    stays retired, and a repeat goes on.
    """
    item = Item(MODEL, name)
    _check_exists(ctx, item)
    with ctx.store.read() as db:
        _refuse(item, dependents.dependents_of(db, item))
    retirement.retire_model(ctx, actor=actor, name=name, reason="it is being deleted")
    with ctx.store.read() as db:
        _refuse(item, dependents.dependents_of(db, item))
    gone = []
    for one in reversed(releases.list_releases(ctx, name)):
        _remove_release(ctx, actor, Item(RELEASE, one.ref), of_model=True)
        gone.append(f"release {one.ref}")
    with ctx.store.write() as db:
        _refuse(item, dependents.dependents_of(db, item))
        db.execute(delete(model).where(model.c.name == name))
        audit.record(db, ctx, actor, "model.delete", name, releases=len(gone))
        group_releases.undeploy(db, ctx, name, None, "", actor)
        changes.note(db, ctx, "model", name)
    return Deleted(deleted=[*gone, str(item)])


def finish_all(ctx: Context) -> int:
    """Finish deletions of releases that were interrupted; how many."""
    query = select(release.c.model, release.c.version).where(release.c.state == releases.DELETING)
    with ctx.store.read() as db:
        refs = [f"{row.model}@{row.version}" for row in db.execute(query)]
    for ref in refs:
        _finish_release(ctx, ref)
    return len(refs)


# --- what, and in which order ---------------------------------------------------------------------


def _delete(ctx: Context, actor: str, item: Item, with_dependents: bool) -> Deleted:
    _check_exists(ctx, item)
    with ctx.store.read() as db:
        items = _in_order(db, item) if with_dependents else [item]
        if not with_dependents:
            _refuse(item, dependents.dependents_of(db, item))
    for one in items:
        if one.kind == RELEASE:
            _remove_release(ctx, actor, one)
        elif one.kind == DATASET:
            _remove_dataset(ctx, actor, one)
        else:
            _clear_policy(ctx, actor, one)
    return Deleted(deleted=[str(one) for one in items])


def _in_order(db: Connection, item: Item) -> list[Item]:
    """The item after everything that depends on it; ConflictError if something must not go."""
    order, blocking = dict[Item, None](), list[Dependent]()

    def visit(one: Item) -> None:
        for found in dependents.dependents_of(db, one):
            if not found.safe:
                blocking.append(found)
            elif (child := Item(found.kind, found.name)) not in order:
                visit(child)
        order[one] = None

    visit(item)
    _refuse(item, blocking)
    return list(order)


def _refuse(item: Item, found: Sequence[Dependent]) -> None:
    """ConflictError that names what depends on the item, if anything does."""
    if not found:
        return
    whys = [one.why if one.on == str(item) else f"{one.on}: {one.why}" for one in found]
    steps = dict.fromkeys(one.next_step for one in found)
    shown, more = whys[:_SHOWN], len(whys) - _SHOWN
    raise ConflictError(
        f"{item} is still needed: {'; '.join(shown)}{f'; and {more} more' if more > 0 else ''}",
        f"next: {'; '.join(list(steps)[:_SHOWN])}",
        dependents=[
            {"kind": one.kind, "name": one.name, "on": one.on, "why": one.why,
             "next_step": one.next_step, "safe": one.safe}
            for one in found
        ],
    )  # fmt: skip


def _check_exists(ctx: Context, item: Item) -> None:
    """AbsentError; SettingError for a dataset without a version."""
    if item.kind == RELEASE:
        releases.get_release(ctx, item.name)
    elif item.kind == MODEL:
        models.get_model(ctx, item.name)
    else:
        manifests.parse_release(item.name)
        datasets.get_dataset(ctx, item.name)


# --- one of them ----------------------------------------------------------------------------------


def _remove_release(ctx: Context, actor: str, item: Item, *, of_model: bool = False) -> None:
    """of_model: the whole model is deleted, and what depends on that was checked."""
    name, version = manifests.parse_release(item.name)
    mine = (release.c.model == name) & (release.c.version == version)
    with ctx.store.write() as db:
        row = db.execute(select(release.c.state, release.c.dataset).where(mine)).first()
        if row is None:
            return
        if row.state != releases.DELETING:
            found = dependents.dependents_of(db, item)
            _refuse(item, [one for one in found if not (of_model and one.safe)])
            db.execute(update(release).where(mine).values(state=releases.DELETING))
            used_versions.use(db, MODEL, name, version)
            _close_alerts(db, ctx, item.name)
            audit.record(
                db, ctx, actor, "release.delete", item.name, state=row.state, dataset=row.dataset
            )
            changes.note(db, ctx, "release", item.name)
    _finish_release(ctx, item.name)


def _finish_release(ctx: Context, ref: str) -> None:
    name, version = manifests.parse_release(ref)
    ctx.signer.remove_target(name, version)
    mine = (release.c.model == name) & (release.c.version == version)
    with ctx.store.write() as db:
        row = db.execute(select(release.c.manifest, release.c.operation).where(mine)).first()
        if row is None:
            return
        params = db.scalar(select(operation.c.params).where(operation.c.id == row.operation))
        unused_files.leave(db, ctx, unused_files.of_release(bytes(row.manifest), params or {}))
        db.execute(delete(release).where(mine))
        group_releases.on_deleted(db, ctx, ref)
        changes.note(db, ctx, "release", ref)


def _remove_dataset(ctx: Context, actor: str, item: Item) -> None:
    name, version = manifests.parse_release(item.name)
    mine = (dataset.c.name == name) & (dataset.c.version == version)
    with ctx.store.write() as db:
        _refuse(item, dependents.dependents_of(db, item))
        sha256 = db.scalar(select(dataset.c.sha256).where(mine))
        if sha256 is None:
            return
        used_versions.use(db, DATASET, name, version)
        unused_files.leave(db, ctx, {sha256})
        db.execute(delete(dataset).where(mine))
        audit.record(db, ctx, actor, "dataset.delete", item.name, sha256=sha256)
        changes.note(db, ctx, "dataset", item.name)


def _clear_policy(ctx: Context, actor: str, item: Item) -> None:
    assert item.kind == POLICY
    now = models.get_model(ctx, item.name)
    models.set_policy(
        ctx, actor=actor, model=item.name, retrain_on_drift=False, dataset="", task=now.task,
        rounds=now.rounds, cooldown_s=now.cooldown_s,
    )  # fmt: skip


def _close_alerts(db: Connection, ctx: Context, ref: str) -> None:
    keys = select(alert.c.key).where(alert.c.release == ref, alert.c.state.in_(alerts.UNRESOLVED))
    for key in db.scalars(keys).all():
        alerts.close(db, ctx, key, f"{ref} was deleted")
