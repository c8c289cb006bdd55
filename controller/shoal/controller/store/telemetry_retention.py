"""Retention: deletes telemetry and changes that are older than the settings say."""

from typing import Any

from sqlalchemy import Column, ColumnElement, Table, delete, exists, select, tuple_

from shoal.controller.host.context import Context
from shoal.controller.store.drift_tables import (
    baseline_change,
    drift_baseline,
    drift_point,
    drift_state,
    finding,
)
from shoal.controller.store.rollout_tables import gate_input, gate_look
from shoal.controller.store.tables import change, device_event
from shoal.controller.store.window_sums import DAY, HOUR
from shoal.controller.store.window_tables import received, window_subject, window_sum

CHANGES_S = 3_600.0
#: Rows deleted in one transaction, which holds the write lock.
BATCH = 500


def delete_expired(ctx: Context) -> None:
    """Delete telemetry past its retention, and changes that no console asks for any more.

    A stream of changes that reconnects later than CHANGES_S reloads everything.
    """
    now = ctx.clock()
    fleet = ctx.settings.fleet
    before = now - fleet.retention_days * 86_400
    ctx.store.windows.drop(before)
    _delete(ctx, received, received.c.last_at, before)
    _delete(ctx, window_subject, window_subject.c.start_at, before)
    for span, days in ((HOUR, fleet.hourly_days), (DAY, fleet.daily_days)):
        _delete(ctx, window_sum, window_sum.c.at, now - days * 86_400, window_sum.c.span == span)
    for table in (gate_look, gate_input):
        _delete(ctx, table, table.c.at, now - fleet.daily_days * 86_400)
    _delete(ctx, drift_point, drift_point.c.at, before)
    _delete(ctx, finding, finding.c.at, before)
    _delete(ctx, drift_state, drift_state.c.saved_at, before)
    _delete(ctx, drift_baseline, drift_baseline.c.updated_at, before, _without_state())
    _delete(ctx, baseline_change, baseline_change.c.asked_at, before)
    _delete(ctx, device_event, device_event.c.received_at, before)
    _delete(ctx, change, change.c.at, now - CHANGES_S)


def _without_state() -> ColumnElement[bool]:
    """Baselines whose state was deleted: their row may be old while they are in use."""
    key = ("scope", "subject", "model", "release")
    return ~exists().where(*(drift_state.c[n] == drift_baseline.c[n] for n in key))


def _delete(
    ctx: Context, table: Table, at: Column[Any], before: float, *wanted: ColumnElement[bool]
) -> None:
    """Delete rows older than `before`, some in each transaction: others write in between."""
    key = tuple_(*table.primary_key)
    oldest = select(*table.primary_key).where(at < before, *wanted).limit(BATCH)
    while True:
        with ctx.store.write() as db:
            deleted = db.execute(delete(table).where(key.in_(oldest))).rowcount
        if deleted < BATCH:
            return
