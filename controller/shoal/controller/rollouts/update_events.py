"""Update events of devices: applied to the device's state in its rollout."""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Row, bindparam, func, select, tuple_, update

from shoal.controller.fleet import changed_devices
from shoal.controller.fleet.records import DeviceEvent
from shoal.controller.host.context import Context
from shoal.controller.rollouts import device_rows, device_states, undeployments
from shoal.controller.rollouts.machine import ENDED, State
from shoal.controller.store import changes
from shoal.controller.store.chunks import chunks
from shoal.controller.store.rollout_tables import rollout, rollout_device
from shoal.controller.store.tables import device, device_event
from shoal.wire import UpdateEvent

#: Cause of the event that an offline bundle was imported: clears the device's error, as a
#: successful update does.
IMPORTED = "folder-imported"
_LONGEST = 500
#: A deadline that is reported as passed so many seconds before it is one of a wrong clock.
EARLY_S = 5.0
#: Device, boot and sequence number of an event.
Key = tuple[str, str, int]
_OVER = frozenset(state.value for state in ENDED)
_BACK = frozenset({State.ROLLING_BACK.value, State.ROLLED_BACK.value})


def apply_all(db: Connection, ctx: Context, events: Sequence[UpdateEvent]) -> dict[Key, str]:
    """Apply events that were just stored, in order of arrival: all of a device change its row once.

    One is ignored if it is of another attempt, or if a later one of the same outbox was applied:
    messages may arrive out of order.

    Event -> the device's error after it, "" for none; events that say nothing of it are absent.
    """
    rows, others = _rows(db, events), []
    errors: dict[Key, str] = {}
    for event in events:
        row = rows.get((event.rollout, event.device))
        if _is_outdated(db, event) if row is None else row.is_outdated(event):
            continue
        if (error := _error_after(event)) is not None:
            errors[event.device, event.boot, event.seq] = error
        if row is None:
            others.append(event)
        else:
            row.apply(event, ctx.clock())
    moved = [one for one in rows.values() if one.values]
    device_rows.change(db, ctx, [device_rows.Change(one.row, one.values) for one in moved])
    idents = sorted({one.row.rollout for one in moved})
    device_rows.wake(db, idents)
    changes.note_all(db, ctx, "rollout", idents)
    undeployments.on_events(db, ctx, others)
    changed_devices.add(db, _left_to_groups(events, rows), changed_devices.REPORTED)
    return errors


def _left_to_groups(
    events: Sequence[UpdateEvent], rows: Mapping[tuple[str, str], "_DeviceRow"]
) -> list[str]:
    """Devices that ended an update which no unfinished rollout looks after."""
    found = []
    for event in events:
        row = rows.get((event.rollout, event.device))
        if event.state in device_states.ENDED and (row is None or row.row.whole in _OVER):
            found.append(event.device)
    return list(dict.fromkeys(found))


class _DeviceRow:
    """A device's row in a rollout, and what events have made of it."""

    def __init__(self, row: Row[Any]) -> None:
        self.row, self.values = row, dict[str, Any]()

    def is_outdated(self, event: UpdateEvent) -> bool:
        """Whether a later event of the same attempt and outbox was applied."""
        boot, seq = self._now("boot"), self._now("seq")
        return bool(event.attempt == self.row.attempt and event.boot == boot and event.seq < seq)

    def apply(self, event: UpdateEvent, now: float) -> None:
        """Apply an event that arrived at `now`."""
        if event.attempt != self.row.attempt:
            return
        values = _values(self.row, event, now)
        if not device_states.follows(self._now("state"), values["state"]):
            return
        facts = self._now("facts")
        facts = facts | ({"reported": event.facts} if event.facts else {}) | _shadow(event.facts)
        self.values |= {**values, "facts": facts, "boot": event.boot, "seq": event.seq}

    def _now(self, name: str) -> Any:
        return self.values[name] if name in self.values else getattr(self.row, name)


def _rows(db: Connection, events: Sequence[UpdateEvent]) -> dict[tuple[str, str], _DeviceRow]:
    """(rollout, device) -> row, for the events of rollouts."""
    keys = sorted({(event.rollout, event.device) for event in events})
    mine = rollout_device.c
    found: dict[tuple[str, str], _DeviceRow] = {}
    for some in chunks(keys):
        deadline_s = rollout.c.plan["deadline_s"].as_float().label("deadline_s")
        query = (
            select(rollout_device, rollout.c.state.label("whole"), rollout.c.cursor, deadline_s)
            .join(rollout, rollout.c.id == mine.rollout)
            .where(tuple_(mine.rollout, mine.device).in_(some))
        )
        found |= {(row.rollout, row.device): _DeviceRow(row) for row in db.execute(query)}
    return found


def _values(row: Row[Any], event: UpdateEvent, now: float) -> dict[str, Any]:
    cause = event.cause
    if cause == "deadline" and now < row.ordered_at + (row.deadline_s or 0.0) - EARLY_S:
        cause = device_states.CLOCK  # an agent that judges deadlines by its own clock alone
    state = device_states.reported(event.state, cause)
    went_back = row.whole in _BACK and row.device <= row.cursor
    if went_back and state in device_states.SUCCESSES:
        return {
            "state": device_states.CANCELED,
            "cause": "rollback",
            "detail": f"back on {event.release}" if event.release else "removed: it serves none",
        }
    return {"state": state[:32], "cause": cause[:80], "detail": event.detail[:2000]}


def _shadow(facts: dict[str, Any]) -> dict[str, float]:
    """Result of the shadow probe: kept, since later events do not repeat it."""
    share, rows = facts.get("disagree", -1), facts.get("compared", 0)
    valid = isinstance(share, int | float) and isinstance(rows, int)
    if not valid or not 0 <= share <= 1 or not 0 < rows <= 10**6:
        return {}
    return {"disagree": float(share), "compared": rows}


def _is_outdated(db: Connection, event: UpdateEvent) -> bool:
    """Whether a later event of the same outbox is stored, for one that is of no rollout."""
    if event.state not in device_states.ENDED:
        return True  # it says nothing of the device
    later = select(func.count()).where(
        device_event.c.device == event.device,
        device_event.c.boot == event.boot,
        device_event.c.seq > event.seq,
        device_event.c.kind == "update",
        device_event.c.rollout == event.rollout,
        device_event.c.attempt == event.attempt,
    )
    return bool(db.scalar(later))


def _error_after(event: UpdateEvent) -> str | None:
    """The device's error: set by an update that failed, cleared by one that did not; None: as is"""
    if event.state in device_states.FAILURES and event.cause != device_states.UNSUPPORTED:
        return error_of(event)
    return "" if event.state in device_states.SUCCESSES else None


def note_errors(db: Connection, ctx: Context, errors: Mapping[str, str]) -> None:
    """Set the devices' current errors; "" for none."""
    if not errors:
        return
    now = ctx.clock()
    rows = [
        {"of_device": name, "error": error[:_LONGEST], "error_at": now if error else 0.0}
        for name, error in errors.items()
    ]
    db.execute(update(device).where(device.c.name == bindparam("of_device")), rows)
    changes.note_all(db, ctx, "device", errors)


def error_of(event: UpdateEvent | DeviceEvent) -> str:
    """Error text of a failed update or a fault."""
    update_failed = isinstance(event, UpdateEvent) or event.kind == "update"
    text = f"{event.release}: {event.cause}: {event.detail}" if update_failed else event.detail
    return (text or event.cause)[:_LONGEST]
