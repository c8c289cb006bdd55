"""Alerts: raised once for one cause, gathered while it lasts, closed when it is gone."""

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
STANDING = (OPEN, ACKNOWLEDGED)
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
        return [_record(row) for row in db.execute(query)]


def acknowledge(ctx: Context, *, actor: str, id: int) -> Alert:  # noqa: A002 - the API's word
    """Somebody looks after it: it stays until its cause is gone. AbsentError, ConflictError."""
    with ctx.store.write() as db:
        row = _row(db, id)
        if row.state == CLOSED:
            raise ConflictError(f"alert {id} is closed", "nothing to do", state=row.state)
        if row.state == OPEN:
            _set(db, ctx, id, state=ACKNOWLEDGED, acknowledged_by=actor)
            audit.record(db, ctx, actor, "alert.acknowledge", str(id), title=row.title)
        return _record(_row(db, id))


def raise_alert(db: Connection, ctx: Context, draft: Draft, findings: int = 1) -> int:
    """Open an alert, or add to the one that stands for the same cause; its id."""
    now = ctx.clock()
    standing = _standing(db, draft.key)
    said = draft._asdict() | {"updated_at": now}
    if standing is None:
        made = db.execute(
            alert.insert().values(**said, state=OPEN, findings=findings, opened_at=now)
        )
        ident = int(made.inserted_primary_key[0])  # type: ignore[index]
        changes.note(db, ctx, "alert", str(ident))
        return ident
    said["features"] = [*standing.features, *(set(draft.features) - set(standing.features))]
    said["detail"] = draft.detail or standing.detail
    _set(db, ctx, standing.id, **said, findings=standing.findings + findings)
    return int(standing.id)


def update_open(db: Connection, ctx: Context, draft: Draft) -> None:
    """Of the alert that stands for this cause, what is so now. Nothing where none stands."""
    if _standing(db, draft.key) is not None:
        raise_alert(db, ctx, draft, findings=0)


def touch(db: Connection, ctx: Context, key: str, every_s: float) -> None:
    """The cause still lasts: no calm for the alert, said at most every `every_s`."""
    standing = _standing(db, key)
    if standing is not None and standing.updated_at < ctx.clock() - every_s:
        db.execute(update(alert).where(alert.c.id == standing.id).values(updated_at=ctx.clock()))


def close(db: Connection, ctx: Context, key: str, why: str) -> None:
    """The cause is gone. Nothing happens when no such alert stands."""
    standing = _standing(db, key)
    if standing is not None:
        detail = f"{standing.detail} Closed: {why}."
        _set(db, ctx, standing.id, state=CLOSED, closed_at=ctx.clock(), detail=detail)


def close_resolved(ctx: Context, which: ColumnElement[bool], why: Why) -> None:
    """Close the standing alerts of `which` for which `why` gives a reason."""
    with ctx.store.read() as db:
        standing = db.execute(select(alert).where(which, alert.c.state.in_(STANDING))).all()
        resolved = {row.key: reason for row in standing if (reason := why(db, ctx, row))}
    if resolved:
        with ctx.store.write() as db:
            for key, reason in resolved.items():
                close(db, ctx, key, reason)


def _standing(db: Connection, key: str) -> Row[Any] | None:
    return db.execute(select(alert).where(alert.c.key == key, alert.c.state.in_(STANDING))).first()


def _set(db: Connection, ctx: Context, ident: int, **values: Any) -> None:
    db.execute(update(alert).where(alert.c.id == ident).values(**values))
    changes.note(db, ctx, "alert", str(ident))


def _row(db: Connection, ident: int) -> Row[Any]:
    row = db.execute(select(alert).where(alert.c.id == ident)).first()
    if row is None:
        raise AbsentError("alert", ident, "list them: shoal alert list")
    return row


def _record(row: Row[Any]) -> Alert:
    return Alert(**{name: getattr(row, name) for name in Alert.__struct_fields__})
