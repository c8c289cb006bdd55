"""What the engine measures: true, written for the web process, and never in the way."""

import threading

import pytest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import insert

from fakes import Idle, memory_folder
from fleet import Fleet
from shoal.controller.engine import Periodic
from shoal.controller.engine_jobs import build_engine
from shoal.controller.engine_metrics import StoredMetrics
from shoal.controller.host.io.metrics_file import read_metrics
from shoal.controller.store import tables
from shoal.errors import StorageError
from waiting import eventually

pytestmark = pytest.mark.scenario


@pytest.fixture
def fleet():
    with memory_folder() as folder:
        yield Fleet(folder)


def samples(fleet):
    """(name, labels) -> value, of what the web process reads."""
    fleet.engine.write_metrics()
    text = read_metrics(fleet.ctx.folder)
    return {
        (one.name, *one.labels.values()): one.value
        for family in text_string_to_metric_families(text)
        for one in family.samples
    }


def test_messages_jobs_and_the_link_are_counted(fleet):
    fleet.station("cam-1", ring="canary")
    fleet.run(30)
    found = samples(fleet)
    assert found["shoal_ingest_messages_total",] >= 3
    assert found["shoal_ingest_batch_seconds_count",] >= 1
    assert found["shoal_broker_connected",] == 1
    assert found["shoal_ingest_queue_messages",] == 0
    assert 2 <= found["shoal_job_seconds_count", "rollouts"] < 30, "it rests between"
    assert found["shoal_job_success_timestamp_seconds", "rollouts"] == pytest.approx(
        fleet.clock(), abs=1
    )
    assert found["shoal_engine_timestamp_seconds",] == fleet.clock()


def test_a_job_that_fails_is_counted_and_does_not_look_fresh(fleet):
    fleet.engine.jobs = [
        Periodic("broken", 1.0, lambda: 1 / 0),
        Periodic("full", 1.0, lambda: (_ for _ in ()).throw(StorageError("disk is full"))),
    ]
    for _ in range(3):
        fleet.engine.work()
        fleet.clock.now += 1
    found = samples(fleet)
    assert found["shoal_job_failures_total", "broken"] == 3
    assert found["shoal_job_failures_total", "full"] == 3
    assert ("shoal_job_success_timestamp_seconds", "broken") not in found


def test_the_database_keys_and_disk_are_measured(fleet):
    fleet.station("cam-1", ring="canary")
    fleet.run(1)
    fleet.release()
    with fleet.ctx.store.write() as db:
        for severity, state in (
            ("warning", "open"),
            ("warning", "acknowledged"),
            ("info", "closed"),
        ):
            columns = {
                c.name: 0 if c.type.python_type in (int, float) else "" for c in tables.alert.c
            }
            row = columns | {"severity": severity, "state": state, "features": []}
            del row["id"]
            db.execute(insert(tables.alert).values(**row))
    stored = StoredMetrics(fleet.engine._metrics)
    stored.measure(fleet.ctx)
    found = samples(fleet)
    assert found["shoal_metrics_unread",] == 0
    assert found["shoal_fleet_devices", "online", "enrolled"] == 1
    assert found["shoal_alerts", "warning"] == 2
    assert ("shoal_alerts", "info") not in found
    assert found["shoal_orders_waiting",] == 0
    day = 86_400
    until = {name: value - fleet.clock() for (kind, *rest), value in found.items()
             if kind == "shoal_metadata_expiry_timestamp_seconds" for name in rest}  # fmt: skip
    assert until["timestamp"] == pytest.approx(day, rel=0.01)
    assert {"root", "director-root", "snapshot", "releases"} <= set(until)
    assert found["shoal_disk_free_bytes",] > 0
    assert found["shoal_database_bytes", "controller.db"] > 10_000


def test_what_cannot_be_read_is_said_and_the_rest_is_measured(fleet, monkeypatch):
    monkeypatch.setattr(
        fleet.ctx.signer, "expiries", lambda: (_ for _ in ()).throw(StorageError("damaged"))
    )
    StoredMetrics(fleet.engine._metrics).measure(fleet.ctx)
    found = samples(fleet)
    assert found["shoal_metrics_unread",] == 1
    assert found["shoal_database_bytes", "controller.db"] > 10_000


def test_a_running_engine_writes_its_file_at_once(fleet):
    fleet.engine._link.stop()
    stopping = threading.Event()
    engine = build_engine(fleet.ctx, stopping, Idle(), link=fleet._link)
    running = threading.Thread(target=engine.run)
    running.start()
    try:
        eventually(lambda: "shoal_fleet_devices" in read_metrics(fleet.ctx.folder), within_s=30.0)
    finally:
        stopping.set()
        running.join(20)
    assert not running.is_alive()
