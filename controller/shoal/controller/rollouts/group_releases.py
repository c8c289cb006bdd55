"""What groups run: moved by rollouts stage by stage, given up when one is rolled back, undeployed,
or replaced by what ran before when a release is quarantined.

A release that is quarantined is never what a group runs. A retired one stays, and is ordered to
nobody any more.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
from sqlalchemy import Connection, Row, delete, func, select, update

from shoal.controller.host.context import Context
from shoal.controller.rollouts import assignments, group_selection
from shoal.controller.rollouts.group_selection import Runs, contains, text_of
from shoal.controller.rollouts.machine import StageState
from shoal.controller.rollouts.records import RolloutPlan, Selector, Stage
from shoal.controller.store import changes
from shoal.controller.store.group_tables import (
    device_group,
    device_sweep,
    group_release,
    trailing_stage,
)
from shoal.errors import AbsentError, ConflictError

#: Earlier releases that a group remembers, to fall back to.
REMEMBERED = 10
_QUARANTINED = "is in quarantine"
Before = list[dict[str, Any]]


def runs(db: Connection, model: str = "") -> list[Runs]:
    """What every group runs, of one model or of all."""
    query = select(group_release, device_group.c.select).join(
        device_group, device_group.c.name == group_release.c.group
    )
    if model:
        query = query.where(group_release.c.model == model)
    return [
        Runs(
            group=row.group,
            select=msgspec.convert(row._mapping["select"], Selector),
            model=row.model,
            release=row.release,
            rollout=row.rollout,
            since=row.since,
            reason=row.reason,
        )
        for row in db.execute(query)
    ]


def take_over(
    db: Connection, ctx: Context, whole: Row[Any], plan: RolloutPlan, stages: Sequence[Stage]
) -> None:
    """Move the groups of the stages that have succeeded to the rollout's release, once.

    And every group within them that runs another release of the model. whole: the rollout's row.
    """
    successful = [one.name for one in stages if one.state == StageState.SUCCESSFUL]
    selects = group_selection.moved(plan.stages, successful)
    if selects:
        _move(db, ctx, selects, whole.model, plan.release, whole.id, "", whole.created_by)


def give_up(db: Connection, ctx: Context, rollout: str) -> None:
    """Let the groups that a rollout has moved run what they ran before it."""
    mine = select(group_release).where(group_release.c.rollout == rollout)
    for row in db.execute(mine).all():
        _fall_back(db, ctx, row, f"{rollout} was rolled back")


def fall_back(
    db: Connection, ctx: Context, bad: Mapping[str, str], what: str = _QUARANTINED
) -> list[str]:
    """Let groups that run one of these releases run the newest earlier one that may be ordered.

    bad   release -> why; what: became of them. What each falls back to, as sentences.
    """
    said = []
    for row in db.execute(select(group_release).where(group_release.c.release.in_(bad))).all():
        to = _fall_back(db, ctx, row, f"{row.release} {what}")
        whose = " for devices that join or return" if what == _QUARANTINED else ""
        said.append(
            f"group {row.group} falls back to "
            + (f"{to}{whose}" if to else f"no release of {row.model}")
        )
    return said


def undeploy(
    db: Connection, ctx: Context, model: str, selected: Selector | None, ident: str, actor: str
) -> None:
    """Let a selection run no release of a model from now on; None: no group at all."""
    if selected is None:
        _wake(db, db.scalars(select(group_release.c.rollout).where(group_release.c.model == model)))
        db.execute(delete(group_release).where(group_release.c.model == model))
        changes.note(db, ctx, "group", group_selection.FLEET)
        return
    selects = [group_selection.whole(selected)]
    _move(db, ctx, selects, model, "", ident, f"undeployed by {ident}", actor)


def on_deleted(db: Connection, ctx: Context, ref: str) -> None:
    """Let groups that run a release which is deleted run none, until a rollout moves them.

    No device serves it or is ordered it: none is ordered another one for its deletion.
    """
    for row in db.execute(select(group_release).where(group_release.c.release == ref)).all():
        _set(db, ctx, row.group, row.model, "", row.rollout, ctx.clock(), f"{ref} was deleted")


def forget(db: Connection, group: str) -> None:
    """Let a group run nothing of its own any more."""
    mine = group_release.c.group == group
    _wake(db, db.scalars(select(group_release.c.rollout).where(mine)))
    db.execute(delete(group_release).where(mine))


def sweep(db: Connection, selects: Iterable[Selector]) -> None:
    """Have every device of these selectors looked at."""
    rows = [{"select": msgspec.to_builtins(one)} for one in group_selection.widest(selects)]
    if rows:
        db.execute(device_sweep.insert(), rows)


def _move(
    db: Connection,
    ctx: Context,
    selects: Sequence[Selector],
    model: str,
    release: str,
    by: str,
    reason: str,
    actor: str,
) -> None:
    now = ctx.clock()
    for one in selects:
        name = ensure_group(db, ctx, one, actor)
        current = {each.group: each for each in runs(db, model)}
        inside = [each.group for each in current.values() if contains(one, each.select)]
        for group in dict.fromkeys([name, *inside]):
            if group not in current or current[group].rollout != by:
                _set(db, ctx, group, model, release, by, now, reason)


def _set(
    db: Connection,
    ctx: Context,
    group: str,
    model: str,
    release: str,
    by: str,
    now: float,
    reason: str,
) -> None:
    mine = (group_release.c.group == group) & (group_release.c.model == model)
    row = db.execute(select(group_release).where(mine)).first()
    before: Before = []
    if row is not None:
        kept = {"release": row.release, "rollout": row.rollout}
        before = [kept, *row.before][:REMEMBERED]
        _wake(db, [row.rollout])
        db.execute(delete(group_release).where(mine))
    values = {"group": group, "model": model, "release": release, "rollout": by, "since": now}
    db.execute(group_release.insert().values(**values, reason=reason, before=before))
    changes.note(db, ctx, "group", group)


def _fall_back(db: Connection, ctx: Context, row: Row[Any], reason: str) -> str:
    """The release that the group runs now; "" for none."""
    mine = (group_release.c.group == row.group) & (group_release.c.model == row.model)
    left: Before = list(row.before)
    while left and left[0]["release"] and not _may_be_ordered(db, left[0]["release"]):
        left = left[1:]
    _wake(db, [row.rollout])
    changes.note(db, ctx, "group", row.group)
    if not left:
        db.execute(delete(group_release).where(mine))
        return ""
    to, *rest = left
    values = {"release": to["release"], "rollout": to["rollout"], "since": ctx.clock()}
    db.execute(update(group_release).where(mine).values(**values, before=rest, reason=reason))
    return str(to["release"])


def _may_be_ordered(db: Connection, ref: str) -> bool:
    try:
        assignments.role_of(db, ref)
    except (AbsentError, ConflictError):
        return False
    return True


def _wake(db: Connection, rollouts: Iterable[str]) -> None:
    """Have the trailing stages of these rollouts looked at: they may be over."""
    mine = update(trailing_stage).where(trailing_stage.c.rollout.in_(sorted({*rollouts})))
    db.execute(mine.values(due_at=0.0))


def ensure_group(db: Connection, ctx: Context, selected: Selector, actor: str) -> str:
    """Name of the group of a selector; made if there is none."""
    text = text_of(selected)
    name = db.scalar(select(device_group.c.name).where(device_group.c.selector == text))
    if name is not None:
        return str(name)
    db.execute(
        device_group.insert().values(
            name=text, selector=text, select=msgspec.to_builtins(selected),
            created_at=ctx.clock(), created_by=actor,
        )
    )  # fmt: skip
    return text


def is_desired(db: Connection, rollout: str) -> bool:
    """Whether a group runs what this rollout has moved it to."""
    mine = group_release.c.rollout == rollout
    return bool(db.scalar(select(func.count()).select_from(group_release).where(mine)))
