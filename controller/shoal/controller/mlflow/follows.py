"""Followed aliases: made, listed and ended by people."""

from typing import Any

import msgspec
from sqlalchemy import Row, delete, insert, select, update

from shoal.controller.access import audit
from shoal.controller.host.context import Context
from shoal.controller.mlflow import mirror, registry
from shoal.controller.mlflow.records import (
    POLICIES,
    SEEN,
    Follow,
    FollowedVersion,
    MlflowStatus,
    Rule,
)
from shoal.controller.mlflow.registry import Registry
from shoal.controller.rollouts import rollouts
from shoal.controller.store.mlflow_tables import mlflow_follow, mlflow_version
from shoal.errors import AbsentError, ConflictError, InputError
from shoal.manifest import check_model

#: Aliases that are followed at most, and versions that are listed.
MOST, LISTED = 200, 50


def follow(
    ctx: Context, server: Registry, *, actor: str, name: str, model: str, rule: Rule, now: bool
) -> Follow:
    """Follow an alias: a version that it moves to is imported, signed and rolled out.

    name   "press@champion"
    now    the version that it names already is rolled out too
    InputError for a rule that can start nothing; ConflictError for an alias that is followed;
    LinkError, DeniedError when MLflow cannot be asked.
    """
    alias = registry.parse_reference(name)
    if not alias.alias:
        raise InputError(f"{name} is no alias", "write it as NAME@alias")
    check_model(model)
    if rule.policy not in POLICIES:
        raise InputError(f"policy {rule.policy!r:.40}", f"use one of: {', '.join(POLICIES)}")
    if not rule.dataset and not rule.task:
        raise InputError(
            f"nothing to measure versions of {alias.name} on",
            "name a dataset, or a task; task tensors claims nothing",
        )
    rollouts.check_plan(rule.plan)
    try:
        version = server.version_of(alias).version
    except AbsentError:
        version = ""  # it may be set later
    one = Follow(
        name=str(alias), model=model, rule=rule, created_at=ctx.clock(), created_by=actor,
        version="" if now else version, checked_at=ctx.clock(),
    )  # fmt: skip
    with ctx.store.write() as db:
        known = set(db.scalars(select(mlflow_follow.c.name)))
        if one.name in known:
            raise ConflictError(f"{one.name} is followed", f"first: shoal mlflow unfollow {name}")
        if len(known) >= MOST:
            raise InputError(f"{MOST} aliases are followed", "shoal mlflow unfollow some")
        db.execute(insert(mlflow_follow).values(msgspec.to_builtins(one)))
        audit.record(
            db, ctx, actor, "mlflow.follow", one.name, model=model, rule=msgspec.to_builtins(rule)
        )
    return get_follow(ctx, one.name)


def unfollow(ctx: Context, *, actor: str, name: str) -> None:
    """End a rule. Rollouts that it started go on. AbsentError."""
    one = get_follow(ctx, name)
    with ctx.store.write() as db:
        db.execute(delete(mlflow_follow).where(mlflow_follow.c.name == one.name))
        mine = mlflow_version.c.follow == one.name
        db.execute(delete(mlflow_version).where(mine, mlflow_version.c.state == SEEN))
        opened = update(mlflow_version).where(mine, mlflow_version.c.ended_at == 0)
        text = f"{one.name} is not followed any more"
        db.execute(opened.values(ended_at=ctx.clock(), reason=text))
        audit.record(db, ctx, actor, "mlflow.unfollow", one.name)


def get_follow(ctx: Context, name: str) -> Follow:
    """One rule; AbsentError."""
    with ctx.store.read() as db:
        mine = select(mlflow_follow).where(mlflow_follow.c.name == name)
        row = db.execute(mine).first()
    if row is None:
        raise AbsentError("followed alias", name, "list them: shoal mlflow status")
    return of_row(row)


def status(ctx: Context) -> MlflowStatus:
    """The connection, the rules, and the newest versions that they have dealt with."""
    newest = select(mlflow_version).order_by(
        mlflow_version.c.seen_at.desc(), mlflow_version.c.version.desc()
    )
    with ctx.store.read() as db:
        rules = db.execute(select(mlflow_follow).order_by(mlflow_follow.c.name)).all()
        versions = db.execute(newest.limit(LISTED)).all()
    return MlflowStatus(
        url=ctx.settings.mlflow.url,
        runs=mirror.state(ctx),
        follows=[of_row(row) for row in rules],
        versions=[
            FollowedVersion.of_row(row, tagged=row.written == row.tags and bool(row.tags))
            for row in versions
        ],
    )


def of_row(row: Row[Any]) -> Follow:
    return Follow.of_row(row, rule=msgspec.convert(row.rule, Rule))
