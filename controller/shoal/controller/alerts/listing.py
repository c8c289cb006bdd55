"""Alerts as people read them: pages, filters, counts, history and members, all in SQL."""

from collections import Counter

from sqlalchemy import ColumnElement, case, func, select, tuple_

from shoal.controller.alerts.machine import STATES, UNRESOLVED
from shoal.controller.alerts.records import (  # fmt: skip
    SEVERITIES,
    STANDING,
    Alert,
    AlertEvent,
    Counts,
    Member,
)
from shoal.controller.host.context import Context
from shoal.controller.store import cursors
from shoal.controller.store.alert_tables import alert_event, alert_member
from shoal.controller.store.paging import Orders, has_text, page_of
from shoal.controller.store.records import Page
from shoal.controller.store.tables import alert
from shoal.errors import AbsentError, InputError

_STATE = case({name: i for i, name in enumerate(STATES)}, value=alert.c.state, else_=0).label(
    "state_rank"
)
_RANKS = {name: i for i, name in enumerate(SEVERITIES)}
_SEVERITY = case(
    (alert.c.state != "open", 0), else_=case(_RANKS, value=alert.c.severity, else_=1)
).label("severity_rank")
_AGE = (-alert.c.opened_at).label("age")
_ORDERS: Orders = {
    "opened": (alert.c.opened_at, alert.c.id),
    "urgency": (_STATE, _SEVERITY, _AGE, alert.c.id),
}


def page(
    ctx: Context,
    *,
    state: str = "",
    severity: str = "",
    kind: str = "",
    site: str = "",
    model: str = "",
    assigned: str = "",
    q: str = "",
    sort: str = "-opened",
    cursor: str = "",
    limit: int = 50,
) -> tuple[list[Alert], Page]:
    """Alerts that match every given filter, newest first.

    state  one of machine.STATES, or "unresolved" for all but the closed ones
    q      part of the title or detail
    sort   "opened"; "urgency": open ones first, the critical ones of these first, then the newest
    Raises InputError for an invalid state, severity, order, limit or cursor.
    """
    exact = {"kind": kind, "site": site, "model": model, "assigned_to": assigned}
    wanted = [alert.c[name] == value for name, value in exact.items() if value]
    wanted += _state(state) + _severity(severity)
    wanted += has_text(q, alert.c.title, alert.c.detail)
    query = select(alert, _STATE, _SEVERITY, _AGE).where(*wanted)
    with ctx.store.read() as db:
        rows, made = page_of(db, query, _ORDERS, sort=sort, cursor=cursor, limit=limit)
    return [Alert.of_row(row) for row in rows], made


def counts(ctx: Context) -> Counts:
    """Alerts that are not closed by state, and those of them that are not snoozed by the rest."""
    columns = (alert.c.state, alert.c.severity, alert.c.kind)
    query = select(*columns, func.count()).where(alert.c.state.in_(UNRESOLVED))
    states: Counter[str] = Counter()
    severities: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    with ctx.store.read() as db:
        for state, severity, kind, number in db.execute(query.group_by(*columns)):
            states[state] += number
            if state != "snoozed":
                severities[severity] += number
                kinds[kind] += number
    return Counts(state=dict(states), severity=dict(severities), kind=dict(kinds))


def get_alert(ctx: Context, ident: int) -> Alert:
    """One alert; AbsentError."""
    with ctx.store.read() as db:
        row = db.execute(select(alert).where(alert.c.id == ident)).first()
    if row is None:
        raise AbsentError("alert", ident, "list them: shoal alert list")
    return Alert.of_row(row)


def history(ctx: Context, ident: int) -> list[AlertEvent]:
    """What happened to an alert, newest first, 500 lines at most. AbsentError."""
    get_alert(ctx, ident)
    query = select(alert_event).where(alert_event.c.alert == ident)
    with ctx.store.read() as db:
        rows = db.execute(query.order_by(alert_event.c.id.desc()).limit(cursors.MAX_LIMIT))
        return [AlertEvent.of_row(row) for row in rows]


def members(
    ctx: Context, ident: int, cursor: str = "", limit: int = 50
) -> tuple[list[Member], Page]:
    """Devices that an alert stands for now, those first that stand longest. AbsentError."""
    limit = cursors.bounded(limit)
    total = get_alert(ctx, ident).members
    order = (alert_member.c.since_at, alert_member.c.device, alert_member.c.kind)
    key = select(alert.c.key).where(alert.c.id == ident).scalar_subquery()
    query = select(alert_member).where(
        alert_member.c.alert_key == key, alert_member.c.state == STANDING
    )
    if cursor:
        query = query.where(tuple_(*order) > tuple_(*cursors.decode(cursor, float, str, str)))
    with ctx.store.read() as db:
        rows = db.execute(query.order_by(*order).limit(limit + 1)).all()
    last = rows[limit - 1] if len(rows) > limit else None
    more = cursors.encode(last.since_at, last.device, last.kind) if last else ""
    return [Member.of_row(row) for row in rows[:limit]], Page(next=more, total=total)


def _state(state: str) -> list[ColumnElement[bool]]:
    if state == "unresolved":
        return [alert.c.state.in_(UNRESOLVED)]
    if state and state not in STATES:
        raise InputError(f"state {state!r:.40}", f"use one of: unresolved, {', '.join(STATES)}")
    return [alert.c.state == state] if state else []


def _severity(severity: str) -> list[ColumnElement[bool]]:
    if severity and severity not in SEVERITIES:
        raise InputError(f"severity {severity!r:.40}", f"use one of: {', '.join(SEVERITIES)}")
    return [alert.c.severity == severity] if severity else []
