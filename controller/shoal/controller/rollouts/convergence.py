"""Converges devices on what they are to run: takes those that changed off their queue, decides, and
queues them for the trailing stage of the rollout that moved their group.

A step costs what changed: some devices of the queue, or the next ones of a group that has moved,
are read without the write lock; what follows is stored in one short transaction.
"""

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import Connection, bindparam, delete, select, tuple_, update

from shoal.controller.fleet import changed_devices
from shoal.controller.host.context import Context
from shoal.controller.rollouts import (
    assignments,
    cohort,
    desired_releases,
    device_rows,
    device_states,
    trailing,
)
from shoal.controller.rollouts.cohort import candidate
from shoal.controller.rollouts.desired_releases import Looked
from shoal.controller.rollouts.desired_state import TRAILING, Act, has_failed
from shoal.controller.rollouts.records import Selector
from shoal.controller.store import changes
from shoal.controller.store.chunks import chunks
from shoal.controller.store.group_tables import changed_device, deviation, device_sweep
from shoal.controller.store.tables import device
from shoal.errors import ShoalError

_log = logging.getLogger(__name__)
#: Devices of one transaction; transactions of one call.
BATCH, BATCHES = 200, 10


def step_all(ctx: Context) -> float:
    """Look at devices that changed, then advance trailing stages; Unix time when time alone makes
    one due. Reads the heads of two queues and one index when there is nothing to do."""
    for _ in range(BATCHES):
        with ctx.store.read() as db:
            taken = _take(db)
            found = _find(db, ctx, taken) if taken.ids or taken.sweep else None
        if found is None:
            break
        with ctx.store.write() as db:
            _store(db, ctx, taken, found)
    return trailing.step_all(ctx)


class _Taken(NamedTuple):
    """What is off the queues next.

    why     device -> why it is looked at
    ids     of the entries of changed_device
    sweep   id of the sweep that was read; 0 for none. after: the last device read; "" at its end
    """

    why: Mapping[str, set[str]]
    ids: list[int]
    sweep: int = 0
    after: str = ""


class _Found(NamedTuple):
    """Decisions, and the orders of pins, signed."""

    looked: list[Looked]
    pins: list[assignments.Prepared]


def _take(db: Connection) -> _Taken:
    """The next devices: those that changed before those of a sweep."""
    rows = db.execute(select(changed_device).order_by(changed_device.c.id).limit(BATCH)).all()
    if rows:
        why = defaultdict[str, set[str]](set)
        for row in rows:
            why[row.device].add(row.why)
        return _Taken(why, [row.id for row in rows])
    sweep = db.execute(select(device_sweep).order_by(device_sweep.c.id).limit(1)).first()
    if sweep is None:
        return _Taken({}, [])
    selected = msgspec.convert(sweep._mapping["select"], Selector)
    names = ("site", "profile", "ring", "line")
    exact = [device.c[n] == v for n in names if (v := getattr(selected, n))]
    query = select(device).where(device.c.name > sweep.after, device.c.state == "enrolled", *exact)
    read = db.execute(query.order_by(device.c.name).limit(BATCH)).all()
    fitting: dict[str, set[str]] = {
        row.name: set() for row in read if cohort.fits(selected, candidate(row))
    }
    return _Taken(fitting, [], sweep.id, read[-1].name if len(read) == BATCH else "")


def _find(db: Connection, ctx: Context, taken: _Taken) -> _Found:
    looked = desired_releases.look(db, ctx, list(taken.why), taken.why)
    pins = []
    for one in looked:
        if one.decision.act is Act.PIN:
            tries = one.known.pinned.tries if one.known.pinned else 0
            order = assignments.order_of(
                assignments.signed_release(db, one.desired.pin),
                rollout=f"p-{ctx.random.getrandbits(32):08x}",
                attempt=tries + 1,
            )
            pins.append(assignments.Change(one.row.name, one.model, order))
    try:
        return _Found(looked, assignments.prepare(db, ctx, pins))
    except ShoalError:
        _log.exception("pinned devices cannot be ordered")
        return _Found(looked, [])


def _store(db: Connection, ctx: Context, taken: _Taken, found: _Found) -> None:
    _take_off(db, taken)
    acting = [one for one in found.looked if one.decision.act in (Act.QUEUE, Act.RESTART)]
    _queue(db, ctx, [one for one in acting if one.decision.act is Act.QUEUE])
    _restart(db, ctx, [one for one in acting if one.decision.act is Act.RESTART])
    stored = assignments.store(db, found.pins)
    again = {one.device for one in found.pins} - stored
    changed_devices.add(db, sorted(again), changed_devices.SWEPT)
    _list(db, ctx, found.looked)


def _take_off(db: Connection, taken: _Taken) -> None:
    for some in chunks(taken.ids):
        db.execute(delete(changed_device).where(changed_device.c.id.in_(some)))
    if taken.sweep:
        mine = device_sweep.c.id == taken.sweep
        if taken.after:
            db.execute(update(device_sweep).where(mine).values(after=taken.after))
        else:
            db.execute(delete(device_sweep).where(mine))


def _queue(db: Connection, ctx: Context, looked: Sequence[Looked]) -> None:
    """Put devices into the trailing stages of the rollouts that moved their groups."""
    new: dict[str, list[str]] = defaultdict(list)
    for one in looked:
        new[one.desired.rollout]
        if one.place is None:
            new[one.desired.rollout].append(one.row.name)
    for ident, names in new.items():
        known = device_rows.names_in(db, ident, names)
        fresh = {name: TRAILING for name in names if name not in known}
        device_rows.add(db, ctx, ident, fresh)
        trailing.begin(db, ident, ctx.clock())
        changes.note(db, ctx, "rollout", ident)
    _change(db, ctx, [(one.place, _again(one)) for one in looked if one.place is not None])


def _again(one: Looked) -> dict[str, Any]:
    """Values of a device's row that waits again, in the trailing stage."""
    place = one.known.place
    assert place is not None
    counts = has_failed(place) and not (place.replaced or one.known.decided)
    tries = place.tries + 1 if counts else 0
    return _waiting(place.attempt, {"tries": tries}) | {"stage": TRAILING}


def _waiting(attempt: int, facts: dict[str, Any]) -> dict[str, Any]:
    # A late report about the attempt before must not pass for one about the next.
    return {
        "state": device_states.WAITING, "attempt": attempt + 1, "cause": "", "detail": "",
        "previous": "", "facts": facts,
    }  # fmt: skip


def _restart(db: Connection, ctx: Context, looked: Sequence[Looked]) -> None:
    """Replaced devices are ordered again in the rollout that has not ended."""
    rows = [(one.active, _waiting(one.active.attempt, {})) for one in looked if one.active]
    _change(db, ctx, rows)
    device_rows.wake(db, {row.rollout for row, _ in rows})


def _change(db: Connection, ctx: Context, rows: Sequence[tuple[Any, dict[str, Any]]]) -> None:
    same = device_rows.unchanged(db, [row for row, _ in rows])
    kept = {(row.rollout, row.device) for row in same}
    moved = [
        device_rows.Change(row, values) for row, values in rows if (row.rollout, row.device) in kept
    ]
    device_rows.change(db, ctx, moved)
    # One that has reported meanwhile is looked at again.
    late = [row.device for row, _ in rows if (row.rollout, row.device) not in kept]
    changed_devices.add(db, late, changed_devices.SWEPT)


# --- the list of deviations ---------------------------------------------------------------------


def _list(db: Connection, ctx: Context, looked: Sequence[Looked]) -> None:
    """Make the list of deviations say what was decided; rows that stay the same are not written."""
    known = _listed(db, [one.row.name for one in looked])
    gone, changed, new = [], [], []
    for one in looked:
        key = (one.row.name, one.model)
        row = known.get(key)
        if one.decision.state is None:
            gone += [key] if row is not None else []
            continue
        values = {
            "group": one.desired.group, "want": one.desired.pin or one.desired.release,
            "state": one.decision.state.value, "why": one.decision.why[:500],
        }  # fmt: skip
        if row is None:
            new.append({"device": key[0], "model": key[1], **values, "since": ctx.clock()})
        elif any(row._mapping[name] != value for name, value in values.items()):
            same = row.state == values["state"]
            since = row.since if same else ctx.clock()
            changed.append({"of": key[0], "of_model": key[1], **values, "since": since})
    if gone:
        db.execute(delete(deviation).where(tuple_(deviation.c.device, deviation.c.model).in_(gone)))
    if new:
        db.execute(deviation.insert(), new)
    if changed:
        db.execute(_UPDATE, changed)
    noted = [*(key[0] for key in gone), *(r["device"] for r in new), *(r["of"] for r in changed)]
    changes.note_all(db, ctx, "device", dict.fromkeys(noted))


def _listed(db: Connection, names: Sequence[str]) -> dict[tuple[str, str], Any]:
    found: dict[tuple[str, str], Any] = {}
    for some in chunks(list(dict.fromkeys(names))):
        query = select(deviation).where(deviation.c.device.in_(some))
        found |= {(row.device, row.model): row for row in db.execute(query)}
    return found


_UPDATE = update(deviation).where(
    deviation.c.device == bindparam("of"), deviation.c.model == bindparam("of_model")
)
