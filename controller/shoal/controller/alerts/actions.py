"""What people do with alerts: acknowledge, assign, snooze, wake, resolve."""

from typing import Any

from sqlalchemy import Connection, Row, delete, select

from shoal.controller.access import audit
from shoal.controller.alerts import alerts
from shoal.controller.alerts.machine import ACKNOWLEDGED, Event, step
from shoal.controller.alerts.records import Alert
from shoal.controller.host.context import Context
from shoal.controller.store.alert_tables import alert_member
from shoal.controller.store.tables import alert, user
from shoal.errors import AbsentError, InputError

LONGEST_SNOOZE_S = 90 * 86_400.0


def acknowledge(ctx: Context, *, actor: str, id: int) -> Alert:  # noqa: A002 - the API's name
    """Mark an alert as acknowledged; it stays until its cause ends. AbsentError, ConflictError."""
    with ctx.store.write() as db:
        row = _row(db, id)
        after = step(row.state, Event.ACKNOWLEDGED, f"alert {id}")
        if row.state != ACKNOWLEDGED:
            values = {"state": after, "acknowledged_by": actor, "snoozed_until": 0.0, "silence": ""}
            _act(db, ctx, row, Event.ACKNOWLEDGED, actor, "", **values)
        return Alert.of_row(_row(db, id))


def assign(ctx: Context, *, actor: str, id: int, to: str) -> Alert:  # noqa: A002 - the API's name
    """Give an alert to a user; "" takes it back. AbsentError, ConflictError if it is closed."""
    with ctx.store.write() as db:
        row = _row(db, id)
        step(row.state, Event.SNOOZED, f"alert {id}")  # anything but closed
        if to and db.scalar(select(user.c.name).where(user.c.name == to)) is None:
            raise AbsentError("user", to, "list them: shoal user list")
        _act(db, ctx, row, "assigned", actor, to, assigned_to=to)
        return Alert.of_row(_row(db, id))


def snooze(ctx: Context, *, actor: str, id: int, for_s: float) -> Alert:  # noqa: A002
    """Put an alert aside for so many seconds; then, if it lasts, it is open again."""
    if not 0 < for_s <= LONGEST_SNOOZE_S:
        raise InputError(f"a snooze of {for_s:g} s", "up to 90 days")
    with ctx.store.write() as db:
        row = _row(db, id)
        after = step(row.state, Event.SNOOZED, f"alert {id}")
        until = ctx.clock() + for_s
        _act(
            db, ctx, row, Event.SNOOZED, actor, f"for {for_s:g} s", state=after,
            snoozed_until=until, silence="",
        )  # fmt: skip
        return Alert.of_row(_row(db, id))


def wake(ctx: Context, *, actor: str, id: int) -> Alert:  # noqa: A002 - the API's name
    """End a snooze now. AbsentError, ConflictError if it is not snoozed."""
    with ctx.store.write() as db:
        row = _row(db, id)
        after = step(row.state, Event.WOKEN, f"alert {id}")
        _act(db, ctx, row, Event.WOKEN, actor, "", state=after, snoozed_until=0.0, silence="")
        return Alert.of_row(_row(db, id))


def resolve(ctx: Context, *, actor: str, id: int, note: str = "") -> Alert:  # noqa: A002
    """Close an alert by hand. What its devices showed is forgotten: a new sign opens it again."""
    with ctx.store.write() as db:
        row = _row(db, id)
        after = step(row.state, Event.RESOLVED, f"alert {id}")
        db.execute(delete(alert_member).where(alert_member.c.alert_key == row.key))
        said = f" Resolved by {actor}{': ' + note[:200] if note else ''}."
        _act(
            db, ctx, row, Event.RESOLVED, actor, note, state=after, closed_at=ctx.clock(),
            detail=row.detail + said, members=0, ending_at=0.0, snoozed_until=0.0,
        )  # fmt: skip
        return Alert.of_row(_row(db, id))


def _act(
    db: Connection, ctx: Context, row: Row[Any], what: str, actor: str, text: str, **values: Any
) -> None:
    alerts.change(db, ctx, row, **values)
    alerts.note(db, ctx, row.id, what, actor=actor, text=text)
    verb = f"alert.{_VERBS[what]}"
    audit.record(db, ctx, actor, verb, str(row.id), title=row.title, note=text)


_VERBS = {
    Event.ACKNOWLEDGED: "acknowledge", "assigned": "assign", Event.SNOOZED: "snooze",
    Event.WOKEN: "wake", Event.RESOLVED: "resolve",
}  # fmt: skip


def _row(db: Connection, ident: int) -> Row[Any]:
    row = db.execute(select(alert).where(alert.c.id == ident)).first()
    if row is None:
        raise AbsentError("alert", ident, "list them: shoal alert list")
    return row
