"""Groups: create, list, show, delete; which devices deviate, and what a device is to run."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
from sqlalchemy import ColumnElement, Connection, Row, Text, delete, func, select, update

from shoal.controller.access import audit
from shoal.controller.fleet import devices
from shoal.controller.host.context import Context
from shoal.controller.rollouts import (
    cohort,
    desired_releases,
    group_releases,
    overrides,
)
from shoal.controller.rollouts.group_records import (
    DesiredRelease,
    DesiredState,
    Deviation,
    Group,
    GroupRelease,
)
from shoal.controller.rollouts.group_selection import FLEET, text_of
from shoal.controller.rollouts.records import Selector
from shoal.controller.store import changes, cursors
from shoal.controller.store.group_tables import deviation, device_group, group_release
from shoal.controller.store.records import Page
from shoal.controller.store.tables import device
from shoal.errors import AbsentError, ConflictError, InputError

_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_FIELDS = ("site", "profile", "ring", "line")


def create(ctx: Context, *, actor: str, name: str, select: Selector) -> Group:
    """Name the devices of a selector: a group, which runs nothing of its own until a rollout moves
    it. InputError for an invalid name or selector; ConflictError for a name that is taken, or a
    selector that has a name already: two such groups would decide for the same devices.
    """
    if not _NAME.fullmatch(name):
        raise InputError(f"group name {name!r:.80}", "use a-z, 0-9 and -, up to 63 characters")
    if select.percent != 100 or select == Selector():
        raise InputError(
            "a group needs a site, line, profile, ring or label", "see: shoal group create -h"
        )
    text = text_of(select)
    with ctx.store.write() as db:
        if db.execute(device_group.select().where(device_group.c.name == name)).first():
            raise ConflictError(f"there is a group {name}", f"see: shoal group show {name}")
        same = db.execute(device_group.select().where(device_group.c.selector == text)).first()
        if same is not None and same.name != text:
            raise ConflictError(
                f"group {same.name} selects {text} already", f"see: shoal group show {same.name}"
            )
        if same is not None:  # made by a rollout that targeted it: it gets its name
            _rename(db, same.name, name)
        else:
            group_releases.ensure_group(db, ctx, select, actor)
            _rename(db, text, name)
        audit.record(db, ctx, actor, "group.create", name, selector=text)
        changes.note(db, ctx, "group", name)
    return get_group(ctx, name)


def remove(ctx: Context, *, actor: str, name: str) -> None:
    """Delete a group: its devices run what the group that decides then runs.

    AbsentError; ConflictError for the whole fleet.
    """
    with ctx.store.write() as db:
        row = _row(db, name)
        if row.selector == FLEET:
            raise ConflictError(
                f"{FLEET} is every device", "end a model: shoal model undeploy MODEL --all"
            )
        group_releases.forget(db, row.name)
        db.execute(delete(device_group).where(device_group.c.name == name))
        group_releases.sweep(db, [_selector(row)])
        audit.record(db, ctx, actor, "group.delete", name, selector=row.selector)
        changes.note(db, ctx, "group", name)


def list_groups(ctx: Context) -> list[Group]:
    """The fleet, then the others by name."""
    with ctx.store.read() as db:
        rows = db.execute(
            select(device_group).order_by(device_group.c.selector != FLEET, device_group.c.name)
        )
        return _records(db, list(rows))


def get_group(ctx: Context, name: str) -> Group:
    """One group; AbsentError."""
    with ctx.store.read() as db:
        return _records(db, [_row(db, name)])[0]


def deviations(
    ctx: Context, group: str = "", state: str = "", cursor: str = "", limit: int = 100
) -> tuple[list[Deviation], Page]:
    """Devices that do not run what they are to run, by name; of one group, or in one state.

    AbsentError for an unknown group; InputError.
    """
    limit, mine = cursors.bounded(limit), deviation.c
    wanted = [mine.group == group] if group else []
    wanted += [mine.state == state] if state else []
    query = (
        select(deviation, device.c.releases)
        .join(device, device.c.name == mine.device)
        .where(*wanted)
        .order_by(mine.device, mine.model)
        .limit(limit + 1)
    )
    if cursor:
        after = cursors.decode(cursor, str, str)
        query = query.where(
            (mine.device > after[0]) | ((mine.device == after[0]) & (mine.model > after[1]))
        )
    with ctx.store.read() as db:
        if group:
            _row(db, group)
        rows = db.execute(query).all()
        total = db.scalar(select(func.count()).select_from(deviation).where(*wanted)) or 0
    more = (
        cursors.encode(rows[limit - 1].device, rows[limit - 1].model) if len(rows) > limit else ""
    )
    found = [
        Deviation.of_row(row, serves=(row.releases or {}).get(row.model, ""))
        for row in rows[:limit]
    ]
    return found, Page(next=more, total=total)


def desired_state(ctx: Context, name: str) -> DesiredState:
    """What a device is to run, why, and what it runs; AbsentError."""
    devices.get_device(ctx, name)
    with ctx.store.read() as db:
        looked = desired_releases.look(db, ctx, [name], {})
        mine = overrides.overrides_of(db, [name]).get(name, [])
        deviates = select(deviation).where(deviation.c.device == name)
        listed = {row.model: row for row in db.execute(deviates)}
        row = db.execute(select(device).where(device.c.name == name)).one()
        whose = cohort.candidate(row)
        groups = [
            one.name
            for one in db.execute(select(device_group))
            if cohort.fits(_selector(one), whose)
        ]
    found = []
    for one in looked:
        told = listed.get(one.model)
        desired, by = one.desired, one.by
        found.append(
            DesiredRelease(
                model=one.model,
                want=desired.pin or ("" if desired.excluded is not None else desired.release),
                by=overrides.PIN if desired.pin else desired.group,
                rollout="" if desired.pin else desired.rollout,
                since=by.since if by and not desired.pin else 0.0,
                serves=one.known.serves,
                state=told.state if told else "",
                why=told.why if told else "",
            )
        )
    return DesiredState(device=name, releases=found, groups=sorted(groups), overrides=mine)


# --- inside a transaction -----------------------------------------------------------------------


def _rename(db: Connection, old: str, new: str) -> None:
    db.execute(update(device_group).where(device_group.c.name == old).values(name=new))
    db.execute(update(group_release).where(group_release.c.group == old).values(group=new))
    db.execute(update(deviation).where(deviation.c.group == old).values(group=new))


def _records(db: Connection, rows: list[Row[Any]]) -> list[Group]:
    runs = group_releases.runs(db)
    deviate = desired_releases.deviating(db)
    return [
        Group(
            name=row.name,
            selector=row.selector,
            select=_selector(row),
            devices=_members(db, _selector(row)),
            releases=[
                GroupRelease(
                    model=one.model,
                    release=one.release,
                    rollout=one.rollout,
                    since=one.since,
                    reason=one.reason,
                    deviating=deviate.get((row.name, one.model), 0),
                )
                for one in sorted(runs, key=lambda one: one.model)
                if one.group == row.name
            ],
            created_at=row.created_at,
            created_by=row.created_by,
        )
        for row in rows
    ]


def _members(db: Connection, selected: Selector) -> int:
    """Enrolled devices of a selector."""
    exact = [device.c[n] == v for n in _FIELDS if (v := getattr(selected, n))]
    enrolled = (device.c.state == devices.ENROLLED, *exact)
    if not selected.label:
        return db.scalar(select(func.count()).select_from(device).where(*enrolled)) or 0
    return sum(cohort.fits(selected, cohort.candidate(row)) for row in _labelled(db, enrolled))


def _labelled(db: Connection, which: Sequence[ColumnElement[bool]]) -> Iterable[Row[Any]]:
    columns = ("name", "site", "profile", "ring", "labels", "line")
    labelled = device.c.labels.cast(Text) != "{}"
    return db.execute(select(*(device.c[name] for name in columns)).where(*which, labelled))


def _selector(row: Row[Any]) -> Selector:
    return msgspec.convert(row._mapping["select"], Selector)


def _row(db: Connection, name: str) -> Row[Any]:
    row = db.execute(device_group.select().where(device_group.c.name == name)).first()
    if row is None:
        raise AbsentError("group", name, "list them: shoal group list")
    return row
