"""Rollouts as people read them: pages, filters and records, a few queries a page."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
from sqlalchemy import Connection, Row, func, select

from shoal.controller.host.context import Context
from shoal.controller.rollouts import device_rows, device_states, gate
from shoal.controller.rollouts.desired_state import TRAILING
from shoal.controller.rollouts.gate import Count
from shoal.controller.rollouts.machine import ENDED, State
from shoal.controller.rollouts.records import Rollout, RolloutPlan, Stage, Trailing
from shoal.controller.store.group_tables import trailing_stage
from shoal.controller.store.paging import Orders, has_text, page_of
from shoal.controller.store.records import Page
from shoal.controller.store.rollout_tables import rollout
from shoal.errors import InputError

#: Filter for all that have not ended.
UNFINISHED = "unfinished"
_ORDERS: Orders = {
    "created": (rollout.c.created_at, rollout.c.id),
    "finished": (rollout.c.finished_at, rollout.c.id),
    "release": (rollout.c.release, rollout.c.created_at, rollout.c.id),
    "state": (rollout.c.state, rollout.c.created_at, rollout.c.id),
}


def page(
    ctx: Context,
    *,
    state: str = "",
    model: str = "",
    release: str = "",
    q: str = "",
    sort: str = "-created",
    cursor: str = "",
    limit: int = 50,
) -> tuple[list[Rollout], Page]:
    """Rollouts that match every given filter, newest first unless `sort` says otherwise.

    state   of rollouts.machine.State, or "unfinished" for all that have not ended
    q       part of the id, the release, the reason or who started it
    Raises InputError for an invalid state, order, limit or cursor.
    """
    mine = rollout.c
    exact = {"model": model, "release": release}
    wanted = [mine[name] == value for name, value in exact.items() if value]
    wanted += has_text(q, mine.id, mine.release, mine.reason, mine.created_by)
    if state == UNFINISHED:
        wanted.append(mine.state.not_in([one.value for one in ENDED]))
    elif state:
        if state not in set(State):
            names = ", ".join(one.value for one in State)
            raise InputError(f"state {state!r:.40}", f"use one of: {UNFINISHED}, {names}")
        wanted.append(mine.state == state)
    query = select(rollout).where(*wanted)
    with ctx.store.read() as db:
        rows, made = page_of(db, query, _ORDERS, sort=sort, cursor=cursor, limit=limit)
        return records(db, rows), made


def newest_of(ctx: Context, releases: Iterable[str]) -> dict[str, str]:
    """Release -> id of its newest rollout, of those releases that were rolled out."""
    query = select(rollout.c.release, rollout.c.id).where(rollout.c.release.in_(sorted(releases)))
    with ctx.store.read() as db:
        return dict(db.execute(query.order_by(rollout.c.created_at)).all())


def states(ctx: Context) -> dict[str, int]:
    """State -> number of rollouts in it, over all of them."""
    query = select(rollout.c.state, func.count()).group_by(rollout.c.state)
    with ctx.store.read() as db:
        return dict(db.execute(query).all())


def records(db: Connection, rows: Sequence[Row[Any]]) -> list[Rollout]:
    """Records of rows, their counts as of now: devices report after a rollout was paused or ended.

    Two queries, however many rows.
    """
    ids = [row.id for row in rows]
    counts = device_rows.counts_of(db, ids)
    of_trailing = select(trailing_stage).where(trailing_stage.c.rollout.in_(ids))
    trailing = {row.rollout: row for row in db.execute(of_trailing)}
    return [_record(row, counts.get(row.id, {}), trailing.get(row.id)) for row in rows]


def _record(
    row: Row[Any], counts: Mapping[str, Mapping[str, Count]], trailing: Row[Any] | None
) -> Rollout:
    stages = [
        _with_counts(stage, {s: n.devices for s, n in counts.get(stage.name, {}).items()})
        for stage in msgspec.convert(row.stages, list[Stage])
    ]
    return Rollout.of_row(
        row,
        plan=msgspec.convert(row.plan, RolloutPlan),
        stages=stages,
        trailing=trailing_record(trailing, counts) if trailing is not None else None,
    )


def trailing_record(row: Row[Any], counts: Mapping[str, Mapping[str, Count]]) -> Trailing:
    """The trailing stage of a rollout. row: of trailing_stage."""
    count = gate.tally(counts.get(TRAILING, {}))
    return Trailing(
        state=row.state, reason=row.reason, devices=count.devices, succeeded=count.succeeded,
        failed=count.failed, skipped=count.skipped,
    )  # fmt: skip


def _with_counts(stage: Stage, states: Mapping[str, int]) -> Stage:
    def total(group: frozenset[str]) -> int:
        return sum(number for state, number in states.items() if state in group)

    succeeded, failed = total(device_states.SUCCESSES), total(device_states.FAILURES)
    skipped, devices = total(device_states.EXCLUDED), sum(states.values())
    unseen = min(stage.unseen, devices - succeeded - failed - skipped)
    return msgspec.structs.replace(
        stage, devices=devices, succeeded=succeeded, failed=failed, skipped=skipped, unseen=unseen
    )
