"""Alerts: one per cause, updated while it lasts, closed when it ends.

What people do with them is in `actions`, who reads them in `listing`, what devices show in
`members`, what is due in `upkeep`. Each change that somebody may want to be told of is an
alert_event, in the transaction of the change.
"""

from collections.abc import Callable
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, select, update

from shoal.controller.alerts import listing, machine, silences
from shoal.controller.alerts.machine import SNOOZED, Event, step
from shoal.controller.alerts.records import Alert, Draft
from shoal.controller.host.context import Context
from shoal.controller.store import changes, cursors
from shoal.controller.store.alert_tables import alert_event
from shoal.controller.store.tables import alert

OPEN, CLOSED, UNRESOLVED = machine.OPEN, machine.CLOSED, machine.UNRESOLVED
#: A cause that returns so soon reopens its alert, and each time the alert waits longer to close.
REOPEN_S = 3_600.0
_FIRST_WAIT_S, _LONGEST_WAIT_S = 60.0, 86_400.0
#: Why the cause of an alert, a row of the table, is gone; "" while it lasts.
Why = Callable[[Connection, Context, Row[Any]], str]


def list_alerts(ctx: Context, state: str = "") -> list[Alert]:
    """The newest 500 alerts; state "" for all. InputError for a state that there is not."""
    return listing.page(ctx, state=state, limit=cursors.MAX_LIMIT)[0]


def raise_alert(db: Connection, ctx: Context, draft: Draft, findings: int = 1) -> int:
    """Open an alert, or update the open one of the same cause; its id."""
    now = ctx.clock()
    current = _unresolved(db, draft.key)
    values = draft._asdict() | {"updated_at": now}
    if current is None:
        return _open(db, ctx, values | {"findings": findings})
    values["features"] = [*current.features, *(set(draft.features) - set(current.features))]
    values["detail"] = draft.detail or current.detail
    change(db, ctx, current, **values, findings=current.findings + findings)
    return int(current.id)


def update_open(db: Connection, ctx: Context, draft: Draft) -> None:
    """Update the open alert of this cause, if there is one."""
    if _unresolved(db, draft.key) is not None:
        raise_alert(db, ctx, draft, findings=0)


def touch(db: Connection, ctx: Context, key: str, every_s: float) -> None:
    """Keep an alert open: its cause still lasts. Written at most once in `every_s` seconds."""
    current = _unresolved(db, key)
    if current is not None and current.updated_at < ctx.clock() - every_s:
        db.execute(update(alert).where(alert.c.id == current.id).values(updated_at=ctx.clock()))


def close(db: Connection, ctx: Context, key: str, why: str) -> None:
    """Close the open alert of this key, if there is one, with the reason."""
    current = _unresolved(db, key)
    if current is not None:
        end(db, ctx, current, why)


def close_resolved(ctx: Context, which: ColumnElement[bool], why: Why) -> None:
    """Close unresolved alerts of `which` for which `why` returns a reason."""
    with ctx.store.read() as db:
        current = db.execute(select(alert).where(which, alert.c.state.in_(UNRESOLVED))).all()
        resolved = {row.key: reason for row in current if (reason := why(db, ctx, row))}
    if resolved:
        with ctx.store.write() as db:
            for key, reason in resolved.items():
                close(db, ctx, key, reason)


def set_members(db: Connection, ctx: Context, draft: Draft, members: int) -> None:
    """Open, update or end the alert for which `members` devices stand.

    An alert that was closed within REOPEN_S is opened again instead of another one, and each time
    it waits longer after its last member before it closes: what comes and goes is one alert.
    """
    current = _unresolved(db, draft.key)
    if not members:
        if current is not None and not current.ending_at:
            _end_later(db, ctx, current)
        return
    values = draft._asdict() | {"updated_at": ctx.clock(), "members": members, "ending_at": 0.0}
    if current is None:
        recent = _recently_closed(db, ctx, draft.key)
        if recent is None:
            _open(db, ctx, values)
        else:
            _reopen(db, ctx, recent, values)
        return
    change(db, ctx, current, **values)
    if members >= 2 * max(1, current.findings):
        note(db, ctx, current.id, "grew", text=f"{members} devices")
        db.execute(update(alert).where(alert.c.id == current.id).values(findings=members))


def note(
    db: Connection, ctx: Context, ident: int, what: str, *, actor: str = "", text: str = ""
) -> None:
    """Add a line to an alert's history."""
    db.execute(
        alert_event.insert().values(
            alert=ident, at=ctx.clock(), what=what, actor=actor, note=text[:500]
        )
    )


def change(db: Connection, ctx: Context, row: Row[Any], **values: Any) -> None:
    """Change columns of an alert, and when it is looked at next."""
    values["due_at"] = _due_at(ctx, {**row._mapping, **values})
    db.execute(update(alert).where(alert.c.id == row.id).values(**values))
    changes.note(db, ctx, "alert", str(row.id))


def _open(db: Connection, ctx: Context, values: dict[str, Any]) -> int:
    now = ctx.clock()
    row = {
        **values, **silences.first_state(db, now, values), "opened_at": now, "escalated_at": 0.0,
        "findings": values.get("findings", values.get("members", 1)),
    }  # fmt: skip
    row["due_at"] = _due_at(ctx, row)
    made = db.execute(alert.insert().values(**row))
    ident = int(made.inserted_primary_key[0])  # type: ignore[index]
    changes.note(db, ctx, "alert", str(ident))
    note(db, ctx, ident, "opened" if row["state"] == OPEN else "silenced", text=values["title"])
    return ident


def _reopen(db: Connection, ctx: Context, row: Row[Any], values: dict[str, Any]) -> None:
    step(row.state, Event.REOPENED, f"alert {row.id}")
    first = silences.first_state(db, ctx.clock(), values)
    change(
        db, ctx, row, **values, **first, reopened=row.reopened + 1, closed_at=0.0,
        findings=values["members"],
    )  # fmt: skip
    note(db, ctx, row.id, Event.REOPENED, text=f"{row.reopened + 1} times")


def _end_later(db: Connection, ctx: Context, row: Row[Any]) -> None:
    if not row.reopened:
        end(db, ctx, row, "its cause is gone")
        return
    wait_s = min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 4.0**row.reopened)
    change(db, ctx, row, members=0, ending_at=ctx.clock() + wait_s)


def end(db: Connection, ctx: Context, row: Row[Any], why: str) -> None:
    change(
        db, ctx, row, state=step(row.state, Event.ENDED, f"alert {row.id}"), closed_at=ctx.clock(),
        ending_at=0.0, snoozed_until=0.0, members=0, detail=f"{row.detail} Closed: {why}.",
    )  # fmt: skip
    note(db, ctx, row.id, Event.ENDED, text=why)


def _due_at(ctx: Context, row: dict[str, Any]) -> float:
    """When `upkeep` has to look at this alert; 0 for never."""
    times = []
    if row["state"] in UNRESOLVED:
        times.append(row.get("ending_at") or 0.0)
    if row["state"] == SNOOZED:
        times.append(row["snoozed_until"])
    if row["state"] == OPEN and not row["escalated_at"]:
        times.append(escalation_at(ctx, row["severity"], row["opened_at"]))
    return min((at for at in times if 0 < at < float("inf")), default=0.0)


def escalation_at(ctx: Context, severity: str, opened_at: float) -> float:
    after_s = ctx.settings.alerts.escalate_s.get(severity, 0.0)
    return opened_at + after_s if after_s > 0 else float("inf")


def _unresolved(db: Connection, key: str) -> Row[Any] | None:
    return db.execute(
        select(alert).where(alert.c.key == key, alert.c.state.in_(UNRESOLVED))
    ).first()


def _recently_closed(db: Connection, ctx: Context, key: str) -> Row[Any] | None:
    closed = (alert.c.state == CLOSED) & (alert.c.closed_at > ctx.clock() - REOPEN_S)
    query = select(alert).where(alert.c.key == key, closed).order_by(alert.c.id.desc())
    return db.execute(query.limit(1)).first()
