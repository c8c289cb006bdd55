"""Update events of devices: applied to the device's state in its rollout."""

from typing import Any

from sqlalchemy import Connection, Row, func, select, update

from shoal.controller.fleet.records import DeviceEvent
from shoal.controller.host.context import Context
from shoal.controller.rollouts import device_states, undeployments
from shoal.controller.rollouts.machine import State
from shoal.controller.store import changes
from shoal.controller.store.tables import device, device_event, rollout, rollout_device
from shoal.wire import UpdateEvent

#: Cause of the event that an offline bundle was imported: clears the device's error, as a
#: successful update does.
IMPORTED = "folder-imported"
_LONGEST = 500
_BACK = frozenset({State.ROLLING_BACK.value, State.ROLLED_BACK.value})


def apply(db: Connection, ctx: Context, event: UpdateEvent) -> None:
    """Apply an event that was just stored.

    Ignored if it is of another attempt, or if a later event of the same outbox is known: messages
    may arrive out of order.
    """
    if _is_outdated(db, event):
        return
    _note_on_device(db, ctx, event)
    undeployments.on_event(db, ctx, event)
    mine = (rollout_device.c.rollout == event.rollout) & (rollout_device.c.device == event.device)
    row = db.execute(
        select(rollout_device, rollout.c.state.label("whole"))
        .join(rollout, rollout.c.id == rollout_device.c.rollout)
        .where(mine)
    ).first()
    if row is None or row.attempt != event.attempt:
        return
    values = _values(row, event)
    if device_states.follows(row.state, values["state"]):
        facts = row.facts | {"reported": event.facts} if event.facts else row.facts
        facts |= _shadow(event.facts)
        db.execute(
            update(rollout_device).where(mine).values(**values, facts=facts, updated_at=ctx.clock())
        )
        changes.note(db, ctx, "rollout", event.rollout)


def _values(row: Row[Any], event: UpdateEvent) -> dict[str, Any]:
    state = device_states.reported(event.state, event.cause)
    if row.whole in _BACK and state in device_states.SUCCESSES:
        return {
            "state": device_states.CANCELED,
            "cause": "rollback",
            "detail": f"back on {event.release}" if event.release else "removed: it serves none",
        }
    return {"state": state[:32], "cause": event.cause[:80], "detail": event.detail[:2000]}


def _shadow(facts: dict[str, Any]) -> dict[str, float]:
    """Result of the shadow probe: kept, since later events do not repeat it."""
    share, rows = facts.get("disagree", -1), facts.get("compared", 0)
    valid = isinstance(share, int | float) and isinstance(rows, int)
    if not valid or not 0 <= share <= 1 or not 0 < rows <= 10**6:
        return {}
    return {"disagree": float(share), "compared": rows}


def _is_outdated(db: Connection, event: UpdateEvent) -> bool:
    later = select(func.count()).where(
        device_event.c.device == event.device,
        device_event.c.boot == event.boot,
        device_event.c.seq > event.seq,
        device_event.c.kind == "update",
        device_event.c.rollout == event.rollout,
        device_event.c.attempt == event.attempt,
    )
    return bool(db.scalar(later))


def _note_on_device(db: Connection, ctx: Context, event: UpdateEvent) -> None:
    """The device's last error: set by an update that failed, cleared by one that did not."""
    if event.state in device_states.FAILURES and event.cause != device_states.UNSUPPORTED:
        error = error_of(event)
    elif event.state in device_states.SUCCESSES:
        error = ""
    else:
        return
    note_error(db, ctx, event.device, error)


def note_error(db: Connection, ctx: Context, name: str, error: str) -> None:
    """Set the device's current error; "" for none."""
    at = ctx.clock() if error else 0.0
    mine = device.c.name == name
    db.execute(update(device).where(mine).values(error=error[:_LONGEST], error_at=at))
    changes.note(db, ctx, "device", name)


def error_of(event: UpdateEvent | DeviceEvent) -> str:
    """Error text of a failed update or a fault."""
    update_failed = isinstance(event, UpdateEvent) or event.kind == "update"
    text = f"{event.release}: {event.cause}: {event.detail}" if update_failed else event.detail
    return (text or event.cause)[:_LONGEST]
