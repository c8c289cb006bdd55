"""The engine's own loop: threads, subprocesses, and what goes wrong in them."""

import threading
import time

import pytest

from fakes import Idle, memory_folder
from fleet import Fleet
from shoal import topics, wire
from shoal.controller.engine import Periodic
from shoal.controller.engine_jobs import build_engine
from shoal.controller.operations import operations
from shoal.controller.operations.io.runner import OperationRunner
from shoal.controller.store import tables, window_tables
from shoal.controller.store.telemetry_retention import delete_expired
from shoal.errors import LinkError, StorageError
from waiting import eventually

pytestmark = pytest.mark.scenario


@pytest.fixture
def fleet():
    with memory_folder() as folder:
        yield Fleet(folder)


def test_one_job_that_fails_stops_no_other(fleet, caplog):
    done = []
    jobs = [
        Periodic("broken", 1.0, lambda: 1 / 0),
        Periodic("full", 1.0, lambda: (_ for _ in ()).throw(StorageError("disk is full"))),
        Periodic("fine", 1.0, lambda: done.append(1)),
    ]
    fleet.engine.jobs = jobs
    for _ in range(3):
        fleet.engine.work()
        fleet.clock.now += 1
    assert len(done) == 3
    assert "broken" in caplog.text
    assert "disk is full" in caplog.text


def test_a_job_rests_until_somebody_writes_or_time_makes_it_due(fleet):
    ran = []

    def job():
        ran.append(fleet.clock.now)
        return fleet.clock.now + 4  # something is due then, whoever writes

    fleet.engine.jobs = [
        Periodic("exact", 1.0, job, quiet_s=60.0),
        Periodic("quiet", 1.0, lambda: ran.append("quiet"), quiet_s=3.0),
    ]
    began = fleet.clock.now

    def pass_s(seconds):
        ran.clear()
        for _ in range(seconds):
            fleet.clock.now += 1
            fleet.engine.work()
        return [one if one == "quiet" else one - began for one in ran]

    fleet.engine.work()
    assert pass_s(5) == ["quiet", 4.0]
    fleet.station("cam-1")  # enrolled by another thread or process
    assert pass_s(2) == [6.0, "quiet"]
    fleet.engine._on_connection(True)  # what could not be sent can be
    assert pass_s(1) == [8.0, "quiet"]


def test_a_job_that_failed_does_not_rest(fleet):
    tries = []

    def job():
        tries.append(1)
        raise StorageError("disk is full")

    fleet.engine.jobs = [Periodic("full", 1.0, job, quiet_s=60.0)]
    for _ in range(3):
        fleet.engine.work()
        fleet.clock.now += 1
    assert len(tries) == 3


def test_a_thread_that_ends_by_an_error_ends_the_engine_with_it(fleet, monkeypatch):
    fleet.engine._link.stop()
    engine = build_engine(fleet.ctx, threading.Event(), Idle(), link=fleet._link)

    def broken(timeout_s=0.0):
        raise MemoryError("no memory for a batch")

    monkeypatch.setattr(engine, "drain", broken)
    with pytest.raises(MemoryError, match="a batch"):
        engine.run()


def test_its_threads_take_messages_and_move_a_rollout_in_real_time(fleet):
    """Real threads and real seconds: only the broker is a stand-in."""
    fleet.station("cam-1", ring="canary")
    fleet.run(1)
    fleet.engine._link.stop()
    stopping = threading.Event()
    engine = build_engine(fleet.ctx, stopping, Idle(), link=fleet._link)
    fleet.engine = engine
    running = threading.Thread(target=engine.run)
    running.start()
    one = fleet.roll_out(fleet.release())
    began = time.monotonic()
    try:
        eventually(lambda: live(fleet) and fleet.rollout(one.id).state == "FINISHED", within_s=30.0)
        took = time.monotonic() - began
    finally:
        stopping.set()
        running.join(20)
    assert not running.is_alive()
    assert took < 15
    acks = [p for t, p in fleet.broker.log if t == topics.down("cam-1", "ack")]
    assert acks
    assert isinstance(wire.decode_down("ack", acks[0]), wire.Ack)


def live(fleet):
    fleet.clock.now += 0.5
    for station in fleet.stations.values():
        station.step()
    fleet.broker.pump()
    return True


def enqueue(fleet):
    return operations.enqueue(
        fleet.ctx, actor="ana", kind="train", subject="lot-codes", params={"trigger": "manual"}
    )


def test_an_operation_that_crashes_is_reported_with_the_end_of_its_log(fleet):
    asked, work = enqueue(fleet), OperationRunner(fleet.ctx)  # the folder has no controller.toml

    def ended():
        work.step()
        return operations.get_operation(fleet.ctx, asked.id).state == operations.FAILED

    eventually(ended, within_s=60.0)
    error = operations.get_operation(fleet.ctx, asked.id).error
    assert "ended with 1" in error
    assert "shoal-controller init" in error


def test_an_operation_interrupted_by_a_controller_stop_is_reported(fleet):
    asked = enqueue(fleet)
    operations.claim_next(fleet.ctx)
    OperationRunner(fleet.ctx).step()
    ended = operations.get_operation(fleet.ctx, asked.id)
    assert ended.state == operations.FAILED
    assert "start it again" in ended.error


def test_every_device_finds_the_pace_and_the_timestamp_on_the_broker(fleet):
    fleet.run(1)
    budget = wire.decode_down("budget", fleet.broker.retained[topics.BUDGET])
    assert budget.window_s == fleet.window_s
    stamp = wire.decode_down("timestamp", fleet.broker.retained[topics.TIMESTAMP])
    fleet.clock.now += 86_400
    fleet.run(1)
    again = wire.decode_down("timestamp", fleet.broker.retained[topics.TIMESTAMP])
    assert again.signed != stamp.signed


def test_acks_that_the_link_is_too_busy_for_are_sent_as_soon_as_it_takes_them(fleet, monkeypatch):
    names = [f"cam-{i}" for i in range(5)]
    for name in names:
        fleet.station(name, start=False)
        fault = wire.FaultEvent(
            device=name, boot="b1", seq=1, sent_s=fleet.clock(), cause="dust", detail="on the lens"
        )
        fleet.publish_as(name, fault)
    fleet.broker.pump()
    room, real = [2], fleet.engine._link.publish

    def publish(topic, payload, *, retain=False):
        if room[0] == 0:
            raise LinkError("broker has not acknowledged 1000 messages", "send more slowly")
        room[0] -= 1
        real(topic, payload, retain=retain)

    monkeypatch.setattr(fleet.engine._link, "publish", publish)
    assert fleet.engine.drain() == 5
    assert acked_devices(fleet) == names[:2]
    room[0] = 10
    assert fleet.engine.drain() == 0
    assert acked_devices(fleet) == names


def acked_devices(fleet):
    return [topic.split("/")[2] for topic, _ in fleet.broker.log if topic.endswith("/down/ack")]


def test_telemetry_past_its_retention_is_dropped(fleet):
    fleet.station("cam-1", ring="canary")
    fleet.run(1)
    one = fleet.roll_out(fleet.release())
    fleet.run(60, lambda: fleet.rollout(one.id).state == "FINISHED")
    fleet.run(30)
    assert fleet.windows()
    fleet.clock.now += 91 * 86_400
    delete_expired(fleet.ctx)
    for table in (tables.device_event, tables.change, window_tables.received):
        assert fleet.rows_of(table) == []
    assert fleet.windows() == []
    assert not list(fleet.ctx.store.windows.folder.iterdir())
