"""Retirement: a retired release is kept, and can be neither published nor rolled out any more.

Devices that serve it go on. A release is retired by itself or with its whole model.
"""

from typing import Any

from sqlalchemy import ColumnElement, Connection, select, update

from shoal import manifest as manifests
from shoal.controller.access import audit
from shoal.controller.host.context import Context
from shoal.controller.store import changes
from shoal.controller.store.rollout_tables import rollout
from shoal.controller.store.tables import federated_task, model, release
from shoal.errors import AbsentError, ConflictError

#: States of rollouts that have ended, and of tasks whose rounds run or will.
_ENDED, _BUSY = ("FINISHED", "STOPPED", "ROLLED_BACK"), ("preparing", "running")


def retire_release(ctx: Context, *, actor: str, ref: str, reason: str = "") -> None:
    """Retire a release; a repeat changes nothing. AbsentError; ConflictError while a rollout of it
    has not ended."""
    name, version = manifests.parse_release(ref)
    mine = (release.c.model == name) & (release.c.version == version)
    with ctx.store.write() as db:
        at = db.scalar(select(release.c.retired_at).where(mine))
        if at is None:
            raise AbsentError("release", ref, "list them: shoal release list --all")
        _check_rollouts(db, ref, rollout.c.release == ref)
        if at:
            return
        db.execute(update(release).where(mine).values(retired_at=ctx.clock(), retired_by=actor))
        audit.record(db, ctx, actor, "release.retire", ref, reason=reason)
        changes.note(db, ctx, "release", ref)


def unretire_release(ctx: Context, *, actor: str, ref: str) -> None:
    """Take a retired release back; AbsentError, ConflictError for one whose model is retired."""
    name, version = manifests.parse_release(ref)
    mine = (release.c.model == name) & (release.c.version == version)
    with ctx.store.write() as db:
        at = db.scalar(select(release.c.retired_at).where(mine))
        if at is None:
            raise AbsentError("release", ref, "list them: shoal release list --all")
        _check_model(db, name)
        if not at:
            return
        db.execute(update(release).where(mine).values(retired_at=0.0, retired_by=""))
        audit.record(db, ctx, actor, "release.unretire", ref)
        changes.note(db, ctx, "release", ref)


def retire_model(ctx: Context, *, actor: str, name: str, reason: str = "") -> None:
    """Retire a model with all of its releases: no training, import or rollout any more.

    A repeat changes nothing. AbsentError; ConflictError while a rollout or a federated task of it
    has not ended.
    """
    with ctx.store.write() as db:
        at = db.scalar(select(model.c.retired_at).where(model.c.name == name))
        if at is None:
            raise AbsentError("model", name, "list them: shoal model list --all")
        _check_rollouts(db, name, rollout.c.model == name)
        _check_tasks(db, name)
        if at:
            return
        mine = update(model).where(model.c.name == name)
        db.execute(mine.values(retired_at=ctx.clock(), retired_by=actor))
        audit.record(db, ctx, actor, "model.retire", name, reason=reason)
        changes.note(db, ctx, "model", name)


def unretire_model(ctx: Context, *, actor: str, name: str) -> None:
    """Take a retired model back; releases that were retired by themselves stay so. AbsentError."""
    with ctx.store.write() as db:
        at = db.scalar(select(model.c.retired_at).where(model.c.name == name))
        if at is None:
            raise AbsentError("model", name, "list them: shoal model list --all")
        if not at:
            return
        mine = update(model).where(model.c.name == name)
        db.execute(mine.values(retired_at=0.0, retired_by=""))
        audit.record(db, ctx, actor, "model.unretire", name)
        changes.note(db, ctx, "model", name)


def check_release(db: Connection, ref: str) -> None:
    """ConflictError if the release, by name, or its model is retired."""
    name, version = manifests.parse_release(ref)
    _check_model(db, name)
    mine = (release.c.model == name) & (release.c.version == version)
    if db.scalar(select(release.c.retired_at).where(mine)):
        raise ConflictError(f"{ref} is retired", f"take it back: shoal release unretire {ref}")


def _check_model(db: Connection, name: str) -> None:
    if db.scalar(select(model.c.retired_at).where(model.c.name == name)):
        raise ConflictError(
            f"model {name} is retired", f"take it back: shoal model unretire {name}"
        )


def _check_rollouts(db: Connection, what: str, mine: ColumnElement[bool]) -> None:
    row: Any = db.execute(select(rollout).where(mine, rollout.c.state.not_in(_ENDED))).first()
    if row is not None:
        raise ConflictError(
            f"{what} cannot be retired: rollout {row.id} of {row.release} is {row.state}",
            f"end it first: shoal rollout abort {row.id}",
        )


def _check_tasks(db: Connection, name: str) -> None:
    busy = (federated_task.c.model == name) & federated_task.c.state.in_(_BUSY)
    row: Any = db.execute(select(federated_task).where(busy)).first()
    if row is not None:
        raise ConflictError(
            f"model {name} cannot be retired: federated task {row.name} is {row.state}",
            f"end it first: shoal round abort {row.name}",
        )
