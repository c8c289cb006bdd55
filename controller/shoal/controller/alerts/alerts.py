"""Alerts: one per cause, updated while it lasts, closed when it ends."""

from collections.abc import Callable
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, select, update

from shoal.controller.access import audit
from shoal.controller.alerts.records import Alert, Draft
from shoal.controller.host.context import Context
from shoal.controller.store import changes
from shoal.controller.store.tables import alert
from shoal.errors import AbsentError, ConflictError, InputError

OPEN, ACKNOWLEDGED, CLOSED = "open", "acknowledged", "closed"
STATES = (OPEN, ACKNOWLEDGED, CLOSED)
UNRESOLVED = (OPEN, ACKNOWLEDGED)
#: Why the cause of an alert, a row of the table, is gone; "" while it lasts.
Why = Callable[[Connection, Context, Row[Any]], str]


def list_alerts(ctx: Context, state: str = "") -> list[Alert]:
    """Alerts, newest first; state "" for all. InputError for a state that there is not."""
    if state not in ("", *STATES):
        raise InputError(f"state {state!r:.40}", f"use one of: {', '.join(STATES)}")
    query = select(alert).order_by(alert.c.opened_at.desc(), alert.c.id.desc()).limit(500)
    if state:
        query = query.where(alert.c.state == state)
    with ctx.store.read() as db:
        return [Alert.of_row(row) for row in db.execute(query)]


def acknowledge(ctx: Context, *, actor: str, id: int) -> Alert:  # noqa: A002 - the API's name
    """Mark an alert as acknowledged; it stays until its cause ends. AbsentError, ConflictError."""
    with ctx.store.write() as db:
        row = _row(db, id)
        if row.state == CLOSED:
            raise ConflictError(f"alert {id} is closed", "nothing to do", state=row.state)
        if row.state == OPEN:
            _set(db, ctx, id, state=ACKNOWLEDGED, acknowledged_by=actor)
            audit.record(db, ctx, actor, "alert.acknowledge", str(id), title=row.title)
        return Alert.of_row(_row(db, id))


def raise_alert(db: Connection, ctx: Context, draft: Draft, findings: int = 1) -> int:
    """Open an alert, or update the open one of the same cause; its id."""
    now = ctx.clock()
    current = _unresolved(db, draft.key)
    values = draft._asdict() | {"updated_at": now}
    if current is None:
        made = db.execute(
            alert.insert().values(**values, state=OPEN, findings=findings, opened_at=now)
        )
        ident = int(made.inserted_primary_key[0])  # type: ignore[index]
        changes.note(db, ctx, "alert", str(ident))
        return ident
    values["features"] = [*current.features, *(set(draft.features) - set(current.features))]
    values["detail"] = draft.detail or current.detail
    _set(db, ctx, current.id, **values, findings=current.findings + findings)
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
        detail = f"{current.detail} Closed: {why}."
        _set(db, ctx, current.id, state=CLOSED, closed_at=ctx.clock(), detail=detail)


def close_resolved(ctx: Context, which: ColumnElement[bool], why: Why) -> None:
    """Close unresolved alerts of `which` for which `why` returns a reason."""
    with ctx.store.read() as db:
        current = db.execute(select(alert).where(which, alert.c.state.in_(UNRESOLVED))).all()
        resolved = {row.key: reason for row in current if (reason := why(db, ctx, row))}
    if resolved:
        with ctx.store.write() as db:
            for key, reason in resolved.items():
                close(db, ctx, key, reason)


def _unresolved(db: Connection, key: str) -> Row[Any] | None:
    return db.execute(
        select(alert).where(alert.c.key == key, alert.c.state.in_(UNRESOLVED))
    ).first()


def _set(db: Connection, ctx: Context, ident: int, **values: Any) -> None:
    db.execute(update(alert).where(alert.c.id == ident).values(**values))
    changes.note(db, ctx, "alert", str(ident))


def _row(db: Connection, ident: int) -> Row[Any]:
    row = db.execute(select(alert).where(alert.c.id == ident)).first()
    if row is None:
        raise AbsentError("alert", ident, "list them: shoal alert list")
    return row
