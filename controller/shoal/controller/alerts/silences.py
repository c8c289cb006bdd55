"""Maintenance silences: while one lasts, alerts that it matches begin snoozed."""

import secrets
from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, Row, delete, insert, select, update

from shoal.controller.access import audit
from shoal.controller.alerts.machine import OPEN, SNOOZED
from shoal.controller.alerts.records import SEVERITIES, Silence
from shoal.controller.host.context import Context
from shoal.controller.store.alert_tables import silence
from shoal.controller.store.tables import alert
from shoal.errors import AbsentError, InputError

LONGEST_S, MOST = 90 * 86_400.0, 500
COLUMNS = ("id", "begins_at", "ends_at", "reason", "created_at", "created_by")
#: What a silence selects alerts by.
FIELDS = ("site", "kind", "model", "severity")


def create(
    ctx: Context,
    *,
    actor: str,
    lasts_s: float,
    begins_at: float = 0.0,
    reason: str = "",
    **selected: str,
) -> Silence:
    """Silence alerts, the open ones that match too if it begins now.

    begins_at  Unix seconds; 0 for now
    selected   site, kind, model, severity, device; at least one. InputError
    """
    now = ctx.clock()
    begins_at = begins_at or now
    chosen = {name: text for name, text in selected.items() if text}
    if not chosen:
        raise InputError("a silence of everything", "choose a site, kind, model or device")
    if chosen.get("severity", "info") not in SEVERITIES:
        raise InputError(f"severity {chosen['severity']!r:.40}", f"one of: {', '.join(SEVERITIES)}")
    if not 0 < lasts_s <= LONGEST_S or not now - 60 <= begins_at <= now + LONGEST_S:
        raise InputError("time of a silence", f"up to {LONGEST_S / 86_400:.0f} days, from now on")
    made = Silence(
        id=secrets.token_hex(4), begins_at=begins_at, ends_at=begins_at + lasts_s,
        reason=reason[:500], created_at=now, created_by=actor, **chosen,
    )  # fmt: skip
    row = {name: getattr(made, name) for name in COLUMNS}
    with ctx.store.write() as db:
        if len(_unended(db, now)) >= MOST:
            raise InputError(f"{MOST} silences last already", "end one: shoal alert silence list")
        db.execute(insert(silence).values(**row, select=chosen))
        if begins_at <= now and "device" not in chosen:
            matching = [alert.c[name] == text for name, text in chosen.items()]
            db.execute(
                update(alert)
                .where(alert.c.state == OPEN, *matching)
                .values(
                    state=SNOOZED, snoozed_until=made.ends_at, silence=made.id, due_at=made.ends_at
                )
            )
        audit.record(db, ctx, actor, "silence.create", made.id, lasts_s=lasts_s, **chosen)
    return made


def list_silences(ctx: Context) -> list[Silence]:
    """Silences that have not ended, by their end."""
    with ctx.store.read() as db:
        return [_silence(row) for row in _unended(db, ctx.clock())]


def end(ctx: Context, *, actor: str, id: str) -> None:  # noqa: A002 - the API's name
    """End a silence now: what it snoozed is woken. AbsentError."""
    now = ctx.clock()
    with ctx.store.write() as db:
        if not db.execute(delete(silence).where(silence.c.id == id)).rowcount:
            raise AbsentError("silence", id, "list them: shoal alert silence list")
        woken = update(alert).where(alert.c.state == SNOOZED, alert.c.silence == id)
        db.execute(woken.values(snoozed_until=now, due_at=now))
        audit.record(db, ctx, actor, "silence.end", id)


def first_state(db: Connection, now: float, values: Mapping[str, Any]) -> dict[str, Any]:
    """Columns of a new alert: open, or snoozed by the matching silence that lasts longest."""
    active = [row for row in _unended(db, now) if row.begins_at <= now]
    for row in reversed(active):
        if "device" not in row.select and all(
            values.get(name) == text for name, text in row.select.items()
        ):
            return {"state": SNOOZED, "snoozed_until": row.ends_at, "silence": row.id}
    return {"state": OPEN, "snoozed_until": 0.0, "silence": ""}


def silenced_devices(db: Connection, now: float) -> dict[tuple[str, str], float]:
    """(device, kind or "" for every kind) -> end of a silence of this device that lasts now."""
    return {
        (row.select["device"], row.select.get("kind", "")): row.ends_at
        for row in _unended(db, now)
        if "device" in row.select and row.begins_at <= now
    }


def _unended(db: Connection, now: float) -> list[Row[Any]]:
    query = select(silence).where(silence.c.ends_at > now).order_by(silence.c.ends_at)
    return list(db.execute(query))


def _silence(row: Row[Any]) -> Silence:
    return Silence.of_row(row, **row.select)
