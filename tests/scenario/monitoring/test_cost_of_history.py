"""What monitoring costs does not grow with the history that is kept."""

from collections.abc import Callable
from typing import Any

import pytest

from fakes import memory_folder
from fleet import Fleet
from shoal.controller.host.windows import NewWindow, StoredWindow
from shoal.controller.monitoring import drift_monitor
from shoal.controller.store import drift_tables, stored_values
from shoal.controller.store.io.database import Store
from shoal.controller.store.io.window_files import WindowFiles

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
        fleet.run(300, lambda: len(fleet.watched()) == 5)
        yield fleet


def add_history(fleet: Fleet, windows: int) -> None:
    """More windows of every device, copies of its last one, that the monitor has seen."""
    last = {one.device: NewWindow(*one[1:]) for one in fleet.windows()}
    copies = [
        one._replace(boot="old", seq=i + 1, start_at=one.start_at - 1e6 + i)
        for one in last.values()
        for i in range(windows)
    ]
    with fleet.ctx.store.write() as db:
        fleet.ctx.store.windows.add(db, copies)
        stored_values.write(
            db, drift_monitor._POSITION, fleet.ctx.store.windows.last() + len(copies)
        )


def windows_read(fleet: Fleet, call: Callable[[], object]) -> int:
    """Windows that a call reads."""
    store = fleet.ctx.store
    assert isinstance(store, Store)
    files, counted = store.windows, [0]

    class Counted(WindowFiles):
        def of(self, **wanted: Any) -> list[StoredWindow]:
            found = files.of(**wanted)
            counted[0] += len(found)
            return found

    store.windows = Counted(files.folder, store.read, store.write)
    call()
    store.windows = files
    return counted[0]


def test_a_look_at_new_windows_costs_the_same_after_a_long_history(fleet: Fleet) -> None:
    cache = drift_monitor.DriftMemory(64)
    drift_monitor.evaluate_all(fleet.ctx, cache)

    def look() -> int:
        fleet.engine.jobs = [job for job in fleet.engine.jobs if job.name != "drift"]
        fleet.run(3 * fleet.window_s)
        points = len(fleet.rows_of(drift_tables.drift_point))
        taken = windows_read(fleet, lambda: drift_monitor.evaluate_all(fleet.ctx, cache))
        assert len(fleet.rows_of(drift_tables.drift_point)) > points, "windows were tested"
        return taken

    before = look()
    add_history(fleet, 3_000)
    cache.position = None  # as after a restart
    assert look() <= 1.5 * before
