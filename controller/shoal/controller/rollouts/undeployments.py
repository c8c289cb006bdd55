"""Undeployments: devices are ordered to remove a model, and then serve no release of it.

The devices are selected and ordered in batches, each in its own transaction, by the engine: a fleet
of any size holds the write lock for a batch at most. Devices whose agents do not know the order
wait with the reason, and are ordered once they were updated.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import ColumnElement, Connection, Row, and_, func, or_, select, update

from shoal.controller.access import audit
from shoal.controller.host.context import Context
from shoal.controller.releases import models
from shoal.controller.rollouts import assignments, cohort, device_states, group_releases
from shoal.controller.rollouts.machine import ENDED
from shoal.controller.rollouts.records import Selector, Undeployment, UndeploymentDevice
from shoal.controller.store import changes, cursors
from shoal.controller.store.paging import Orders, page_of
from shoal.controller.store.records import Page
from shoal.controller.store.rollout_tables import (
    assignment,
    rollout,
    undeployment,
    undeployment_device,
)
from shoal.controller.store.tables import device
from shoal.errors import AbsentError, ConflictError, InputError
from shoal.orders import REMOVE
from shoal.trust import removal
from shoal.wire import UpdateEvent

#: States of an undeployment. SELECTING: devices are still being added.
SELECTING, RUNNING, FINISHED, CANCELED = "SELECTING", "RUNNING", "FINISHED", "CANCELED"
ACTIVE = (SELECTING, RUNNING)
#: States of a device in it. CANNOT: its agent does not know the order; GONE: decommissioned.
WAITING, ORDERED, CANNOT = "WAITING", "ORDERED", "CANNOT"
REMOVED, FAILED, GONE = "REMOVED", "FAILED", "GONE"
OPEN = (WAITING, ORDERED, CANNOT)
#: Devices read, and ordered, in one transaction; transactions in one call of `step_all`.
SELECTED, BATCH, BATCHES = 500, 50, 10
_ORDERS: Orders = {"created": (undeployment.c.created_at, undeployment.c.id)}
_OUTDATED = "its agent does not know the order to remove a model: update the agent"
_SELECTIONS = "name devices, select by ring, site, profile or label, or ask for all of them"


def start(
    ctx: Context,
    *,
    actor: str,
    model: str,
    devices: Sequence[str] = (),
    select: Selector = Selector(),  # noqa: B008 (immutable)
    all: bool = False,  # noqa: A002 - the API's word
) -> Undeployment:
    """Have devices remove `model`: those named, those selected, or all that have it.

    A device has it if it serves a release of it by its last report, or is ordered one. InputError
    for no or more than one selection, or one that fits no device that has the model; AbsentError
    for an unknown model or device; ConflictError while a rollout of the model has not ended.
    """
    chosen = select != Selector()
    if [bool(devices), chosen, all].count(True) != 1 or select.percent != 100:
        raise InputError("which devices are to remove the model?", _SELECTIONS)
    models.get_model(ctx, model)
    if not _any(ctx, model, select, devices):
        what = f"none of the selected devices has a release of {model}"
        raise InputError(what, "see which have one: shoal device list")
    ident = f"u-{ctx.random.getrandbits(32):08x}"
    with ctx.store.write() as db:
        _check_rollouts(db, model)
        db.execute(
            undeployment.insert().values(
                id=ident, model=model, select=msgspec.to_builtins(select), named=sorted(devices),
                state=SELECTING, created_at=ctx.clock(), created_by=actor,
            )
        )  # fmt: skip
        detail: dict[str, Any] = {"devices": sorted(devices)} if devices else {"all": all}
        if chosen:
            detail = {"select": {k: v for k, v in msgspec.to_builtins(select).items() if v}}
        if not devices:
            group_releases.undeploy(db, ctx, model, select if chosen else None, ident, actor)
        audit.record(db, ctx, actor, "model.undeploy", model, undeployment=ident, **detail)
        changes.note(db, ctx, "model", model)
    return get_undeployment(ctx, ident)


def cancel(ctx: Context, *, actor: str, id: str) -> Undeployment:  # noqa: A002 - the API's name
    """Order no further device; those that were ordered go on. ConflictError if it has ended."""
    with ctx.store.write() as db:
        row = _row(db, id)
        if row.state not in ACTIVE:
            raise ConflictError(f"undeployment {id} is {row.state}: it cannot be canceled")
        _end(db, ctx, row, CANCELED, f"canceled by {actor}")
        audit.record(db, ctx, actor, "model.undeploy.cancel", row.model, undeployment=id)
    return get_undeployment(ctx, id)


def supersede(db: Connection, ctx: Context, model: str, by: str) -> None:
    """End the active undeployments of a model that is rolled out again."""
    for row in db.execute(_active().where(undeployment.c.model == model)).all():
        _end(db, ctx, row, CANCELED, f"superseded by {by}")


def page(
    ctx: Context,
    *,
    model: str = "",
    state: str = "",
    sort: str = "-created",
    cursor: str = "",
    limit: int = 50,
) -> tuple[list[Undeployment], Page]:
    """Undeployments of one model or of all, in one state or in any, newest first unless `sort` says
    otherwise. InputError for an unknown order, an invalid limit or cursor."""
    given = {"model": model, "state": state}
    wanted = [undeployment.c[name] == value for name, value in given.items() if value]
    query = select(undeployment).where(*wanted)
    with ctx.store.read() as db:
        rows, made = page_of(db, query, _ORDERS, sort=sort, cursor=cursor, limit=limit)
        return [_record(db, row) for row in rows], made


def get_undeployment(ctx: Context, id: str) -> Undeployment:  # noqa: A002
    """One undeployment; AbsentError if there is none such."""
    with ctx.store.read() as db:
        return _record(db, _row(db, id))


def undeployment_devices(
    ctx: Context,
    id: str,  # noqa: A002
    state: str = "",
    cursor: str = "",
    limit: int = 100,
) -> tuple[list[UndeploymentDevice], Page]:
    """Its devices by name, those of one state only; AbsentError, InputError."""
    limit, mine = cursors.bounded(limit), undeployment_device
    wanted = [mine.c.undeployment == id] + ([mine.c.state == state] if state else [])
    query = (
        select(mine, device.c.site)
        .join(device, device.c.name == mine.c.device)
        .where(*wanted)
        .order_by(mine.c.device)
        .limit(limit + 1)
    )
    if cursor:
        query = query.where(mine.c.device > cursors.decode(cursor, str)[0])
    with ctx.store.read() as db:
        _row(db, id)
        rows = db.execute(query).all()
        total = db.scalar(select(func.count()).select_from(mine).where(*wanted)) or 0
    more = cursors.encode(rows[limit - 1].device) if len(rows) > limit else ""
    return [UndeploymentDevice.of_row(row) for row in rows[:limit]], Page(next=more, total=total)


def step_all(ctx: Context) -> None:
    """Select and order some devices of each active undeployment; end those that are done."""
    with ctx.store.read() as db:
        idents = [row.id for row in db.execute(_active()) if _is_due(db, row)]
    for ident in idents:
        for _ in range(BATCHES):
            with ctx.store.write() as db:
                row = _row(db, ident)
                more = row.state in ACTIVE and _step(db, ctx, row)
            if not more:
                break


def look_again(ctx: Context) -> None:
    """Let devices whose agents were updated be ordered; leave those out that were decommissioned,
    or have another order since, as after another enrolment."""
    with ctx.store.read() as db:
        changed = [one for row in db.execute(_active()).all() for one in _changed(db, row)]
    if not changed:
        return
    with ctx.store.write() as db:
        for row, values in changed:
            _set(db, ctx, row, **values)


def _changed(db: Connection, row: Row[Any]) -> list[tuple[Row[Any], dict[str, str]]]:
    """Devices of an undeployment that are to be ordered again, or not waited for any more."""
    mine = undeployment_device
    removes = device.c.facts["removes"].as_boolean()
    ordered_by = assignment.c.orders[(row.model, "rollout")].as_string()
    left = device.c.state != "enrolled"
    query = (
        select(mine, left.label("left"))
        .join(device, device.c.name == mine.c.device)
        .outerjoin(assignment, assignment.c.device == mine.c.device)
        .where(
            mine.c.undeployment == row.id,
            or_(
                and_(mine.c.state.in_(OPEN), left),
                and_(mine.c.state == CANNOT, removes),
                and_(mine.c.state == ORDERED, ordered_by.is_distinct_from(row.id)),
            ),
        )
        .limit(SELECTED)
    )
    found = []
    for one in db.execute(query).all():
        values = {"state": CANCELED, "detail": "it has another order since"}
        if one.left:
            values = {"state": GONE, "detail": "it was decommissioned"}
        elif one.state == CANNOT:
            values = {"state": WAITING, "detail": ""}
        found.append((one, values))
    return found


def on_events(db: Connection, ctx: Context, events: Sequence[UpdateEvent]) -> None:
    """Apply devices' reports about orders to remove a model, which were just stored."""
    given = sorted({event.rollout for event in events})
    known = set(db.scalars(select(undeployment.c.id).where(undeployment.c.id.in_(given))))
    for event in events:
        if event.rollout in known:
            _on_event(db, ctx, event)


def _on_event(db: Connection, ctx: Context, event: UpdateEvent) -> None:
    mine = undeployment_device
    this = (mine.c.undeployment == event.rollout) & (mine.c.device == event.device)
    row = db.execute(select(mine).where(this)).first()
    if row is None or row.attempt != event.attempt:
        return
    if event.state in device_states.SUCCESSES:
        _set(db, ctx, row, state=REMOVED, detail="")
    elif event.state in device_states.ENDED and row.state == ORDERED:
        detail = f"{event.state.lower()}: {event.cause}: {event.detail}"
        _set(db, ctx, row, state=FAILED, detail=detail[:2000])
    else:
        return
    model = select(undeployment.c.model).where(undeployment.c.id == event.rollout)
    changes.note(db, ctx, "model", str(db.scalar(model)))


# --- one step -----------------------------------------------------------------------------------


class _Found(NamedTuple):
    """A device that may be selected."""

    row: Row[Any]
    has: bool


def _active() -> Any:
    return select(undeployment).where(undeployment.c.state.in_(ACTIVE))


def _is_due(db: Connection, row: Row[Any]) -> bool:
    """Whether there is anything to do without a device's report or an agent's update."""
    if row.state == SELECTING:
        return True
    counts = _counts(db, row.id)
    return bool(counts[WAITING]) or not any(counts[state] for state in OPEN)


def _step(db: Connection, ctx: Context, row: Row[Any]) -> bool:
    """One batch; whether there is more to do at once."""
    if row.state == SELECTING:
        return _select(db, ctx, row)
    mine = undeployment_device
    query = select(mine).where(mine.c.undeployment == row.id, mine.c.state == WAITING).limit(BATCH)
    waiting = db.execute(query).all()
    if not waiting:
        if not any(_counts(db, row.id)[state] for state in OPEN):
            _end(db, ctx, row, FINISHED, "")
        return False
    _order(db, ctx, row, waiting)
    changes.note(db, ctx, "model", row.model)
    return True


def _select(db: Connection, ctx: Context, row: Row[Any]) -> bool:
    """Add the next devices of the selection."""
    selector = msgspec.convert(row._mapping["select"], Selector)
    read = _devices(db, row.model, row.named, after=row.cursor)
    members = [
        {
            "undeployment": row.id,
            "device": one.row.name,
            "state": WAITING,
            "updated_at": ctx.clock(),
        }
        for one in read
        if one.has and cohort.fits(selector, cohort.candidate(one.row))
    ]
    if members:
        db.execute(undeployment_device.insert(), members)
    done = len(read) < SELECTED
    after = {"state": RUNNING} if done else {"cursor": read[-1].row.name}
    db.execute(update(undeployment).where(undeployment.c.id == row.id).values(**after))
    return True


def _order(db: Connection, ctx: Context, row: Row[Any], waiting: Sequence[Row[Any]]) -> None:
    names = [one.device for one in waiting]
    know = assignments.know_removal(db, names)
    _leave_others(db, ctx, row, names)
    orders = {
        one.device: removal(row.model, rollout=row.id, attempt=one.attempt + 1)
        for one in waiting
        if one.device in know
    }
    assignments.change(db, ctx, [assignments.Change(n, row.model, o) for n, o in orders.items()])
    table, now = undeployment_device, ctx.clock()
    mine = update(table).where(table.c.undeployment == row.id)
    able = mine.where(table.c.device.in_(know))
    db.execute(able.values(state=ORDERED, detail="", attempt=table.c.attempt + 1, updated_at=now))
    old = mine.where(table.c.device.in_({*names} - know))
    db.execute(old.values(state=CANNOT, detail=_OUTDATED, updated_at=now))


def _leave_others(db: Connection, ctx: Context, row: Row[Any], names: Sequence[str]) -> None:
    """A device is ordered by the newest undeployment of its model only."""
    mine = undeployment_device
    others = select(undeployment.c.id).where(
        undeployment.c.model == row.model,
        undeployment.c.state.in_(ACTIVE),
        undeployment.c.id != row.id,
    )
    db.execute(
        update(mine)
        .where(mine.c.undeployment.in_(others), mine.c.device.in_(names), mine.c.state.in_(OPEN))
        .values(state=CANCELED, detail=f"superseded by {row.id}", updated_at=ctx.clock())
    )


def _end(db: Connection, ctx: Context, row: Row[Any], state: str, reason: str) -> None:
    """End it; devices that were not ordered are out of it."""
    mine, now = undeployment_device, ctx.clock()
    db.execute(
        update(mine)
        .where(mine.c.undeployment == row.id, mine.c.state.in_((WAITING, CANNOT)))
        .values(state=CANCELED, detail=reason, updated_at=now)
    )
    whole = update(undeployment).where(undeployment.c.id == row.id)
    db.execute(whole.values(state=state, reason=reason, finished_at=now))
    changes.note(db, ctx, "model", row.model)


# --- devices ------------------------------------------------------------------------------------


def _any(ctx: Context, model: str, selector: Selector, names: Sequence[str]) -> bool:
    """Whether the selection has any device with the model; AbsentError for an unknown name."""
    with ctx.store.read() as db:
        known = set(db.scalars(select(device.c.name).where(device.c.name.in_(names))))
        for name in names:
            if name not in known:
                raise AbsentError("device", name, "list them: shoal device list")
        after = ""
        while read := _devices(db, model, names, after=after):
            if any(one.has and cohort.fits(selector, cohort.candidate(one.row)) for one in read):
                return True
            after = read[-1].row.name
    return False


def _devices(db: Connection, model: str, names: Sequence[str], *, after: str) -> list[_Found]:
    """The next enrolled devices by name, and whether each has a release of the model."""
    serves = device.c.releases[model].as_string()
    path = assignment.c.orders[(model, "path")].as_string()
    query = (
        select(device, serves.label("serves"), path.label("ordered"))
        .outerjoin(assignment, assignment.c.device == device.c.name)
        .where(device.c.state == "enrolled", device.c.name > after)
        .order_by(device.c.name)
        .limit(SELECTED)
    )
    if names:
        query = query.where(device.c.name.in_(names))
    removal = f"{REMOVE}/"
    return [
        _Found(row, bool(row.serves) or bool(row.ordered and not row.ordered.startswith(removal)))
        for row in db.execute(query)
    ]


def _check_rollouts(db: Connection, model: str) -> None:
    ended = [state.value for state in ENDED]
    mine: ColumnElement[bool] = rollout.c.model == model
    row = db.execute(select(rollout).where(mine, rollout.c.state.not_in(ended))).first()
    if row is not None:
        raise ConflictError(
            f"rollout {row.id} of {row.release} is {row.state}: it would order the model again",
            f"end it first: shoal rollout abort {row.id}",
        )


def _set(db: Connection, ctx: Context, row: Row[Any], **values: Any) -> None:
    mine = undeployment_device
    this = (mine.c.undeployment == row.undeployment) & (mine.c.device == row.device)
    db.execute(update(mine).where(this).values(**values, updated_at=ctx.clock()))


def _counts(db: Connection, ident: str) -> Counter[str]:
    mine = undeployment_device
    query = select(mine.c.state, func.count()).where(mine.c.undeployment == ident)
    return Counter(dict(db.execute(query.group_by(mine.c.state)).all()))


def _record(db: Connection, row: Row[Any]) -> Undeployment:
    counts = _counts(db, row.id)
    return Undeployment.of_row(
        row,
        select=msgspec.convert(row._mapping["select"], Selector),
        devices=counts.total(),
        removed=counts[REMOVED],
        waiting=counts[WAITING] + counts[ORDERED],
        cannot=counts[CANNOT],
        failed=counts[FAILED],
        out=counts[GONE] + counts[CANCELED],
    )


def _row(db: Connection, ident: str) -> Row[Any]:
    row = db.execute(select(undeployment).where(undeployment.c.id == ident)).first()
    if row is None:
        raise AbsentError("undeployment", ident, "list them: shoal model undeployments")
    return row
