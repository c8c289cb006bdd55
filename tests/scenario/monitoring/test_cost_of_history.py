"""What monitoring and retention cost does not grow with the history that is kept."""

import sqlite3
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import event, func, insert, select

from fakes import memory_folder
from fleet import Fleet
from shoal.controller.monitoring import drift_monitor
from shoal.controller.store import tables
from shoal.controller.store.io.database import Store
from shoal.controller.store.telemetry_retention import BATCH, delete_expired

pytestmark = pytest.mark.scenario


@pytest.fixture
def fleet():
    with memory_folder() as folder:
        fleet = Fleet(folder)
        for name, site in {"cam-1": "north", "cam-2": "north", "cam-3": "south"}.items():
            fleet.station(name, site=site, ring="canary" if name == "cam-1" else "stable")
        fleet.run(1)
        one = fleet.roll_out(fleet.release())
        fleet.run(60, lambda: fleet.rollout(one.id).state == "FINISHED")
        fleet.run(300, lambda: len(fleet.rows_of(tables.baseline)) == 5)
        yield fleet


def add_history(fleet: Fleet, windows: int) -> None:
    """Older windows of every device, copies of its last one."""
    with fleet.ctx.store.write() as db:
        newest: dict[str, dict[str, Any]] = {}
        for row in db.execute(select(tables.window).order_by(tables.window.c.received_at)):
            newest[row.device] = dict(row._mapping)
        first = min(fleet.clock.now, *(one["received_at"] for one in newest.values())) - 1e6
        db.execute(
            insert(tables.window),
            [
                one | {"boot": "old", "seq": i + 1, "start_at": first + i, "received_at": first + i}
                for one in newest.values()
                for i in range(windows)
            ],
        )


def steps(fleet: Fleet, call: Callable[[], object]) -> int:
    """Instructions of SQLite's machine that a call takes, in tens."""
    counted = [0]

    def count() -> int:
        counted[0] += 1
        return 0

    def watch(connection: sqlite3.Connection, *_: Any) -> None:
        connection.set_progress_handler(count, 10)

    store = fleet.ctx.store
    assert isinstance(store, Store)
    store.close()
    event.listen(store._reader, "connect", watch)
    call()
    event.remove(store._reader, "connect", watch)
    store.close()
    return counted[0]


def test_a_look_at_new_windows_costs_the_same_after_a_long_history(fleet: Fleet) -> None:
    cache = drift_monitor.DriftCache()
    drift_monitor.evaluate_all(fleet.ctx, cache)

    def look() -> int:
        fleet.engine.jobs = [job for job in fleet.engine.jobs if job.name != "drift"]
        fleet.run(3 * fleet.window_s)
        points = len(fleet.rows_of(tables.drift_point))
        taken = steps(fleet, lambda: drift_monitor.evaluate_all(fleet.ctx, cache))
        assert len(fleet.rows_of(tables.drift_point)) > points, "windows were tested"
        return taken

    before = look()
    add_history(fleet, 3_000)
    assert look() < 1.5 * before


def test_retention_deletes_in_batches_and_keeps_what_is_young(fleet: Fleet) -> None:
    young = len(fleet.rows_of(tables.window))
    add_history(fleet, BATCH)
    fleet.clock.now += (fleet.ctx.settings.fleet.retention_days - 1) * 86_400
    writes = []
    store = fleet.ctx.store
    assert isinstance(store, Store)

    def note(_c: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith("DELETE FROM window"):
            writes.append(statement)

    event.listen(store._reader, "before_cursor_execute", note)
    delete_expired(fleet.ctx)
    event.remove(store._reader, "before_cursor_execute", note)
    with fleet.ctx.store.read() as db:
        assert db.scalar(select(func.count()).select_from(tables.window)) == young
    assert len(writes) == 4
