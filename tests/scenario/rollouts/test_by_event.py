"""Rollouts of large fleets: what a step costs, and what happens between two of its transactions."""

import contextlib
import statistics
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import Connection, event, insert, select, update

from fakes import memory_folder
from fleet import MODEL, Fleet
from shoal import topics, wire
from shoal.controller.fleet import changed_devices
from shoal.controller.ingest.ingest import ingest
from shoal.controller.rollouts import (
    assignments,
    convergence,
    group_releases,
    groups,
    revert,
    rollouts,
    stage_orders,
    stepper,
)
from shoal.controller.rollouts.machine import State
from shoal.controller.rollouts.records import Selector, StagePlan
from shoal.controller.store import group_tables, rollout_tables, tables
from shoal.controller.store.io.database import Store

pytestmark = pytest.mark.scenario

ALL = [StagePlan(name="all", threshold_pct=50)]


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    with memory_folder() as folder:
        made = Fleet(folder)
        yield made
        made.ctx.store.close()


def add_devices(fleet: Fleet, many: int) -> list[str]:
    """Rows of devices that are online and serve release 1; nothing runs behind them."""
    names = [f"d-{i:05}" for i in range(many)]
    rows = [
        {
            "name": name, "site": f"s-{i % 40}", "labels": {}, "ring": "stable",
            "profile": "generic", "state": "enrolled", "enrolled_at": 1.0, "online": True,
            "seen_at": fleet.clock(),
            "releases": {MODEL: f"{MODEL}@1"}, "variants": {}, "facts": {"removes": True},
        }
        for i, name in enumerate(names)
    ]  # fmt: skip
    with fleet.ctx.store.write() as db:
        db.execute(insert(tables.device), rows)
    return names


def begun(fleet: Fleet, many: int) -> tuple[list[str], str]:
    """Devices that serve release 1, and a rollout of release 2 to all of them."""
    names = add_devices(fleet, many)
    fleet.release()
    return names, fleet.roll_out(fleet.release(), ALL).id


def report(fleet: Fleet, ident: str, names: list[str], state: str, **more: Any) -> None:
    """These devices report a state of their present attempt."""
    batch, release = [], fleet.rollout(ident).release
    for row in devices(fleet, ident):
        if row.device in names:
            message = wire.UpdateEvent(
                device=row.device, boot="b", seq=row.seq + 1, sent_s=fleet.clock(), model=MODEL,
                release=release, rollout=ident, attempt=row.attempt,
                state=state, **more,
            )  # fmt: skip
            batch.append((topics.up(row.device, "event"), wire.encode(message)))
    ingest(fleet.ctx, batch)


def devices(fleet: Fleet, ident: str) -> list[Any]:
    mine = rollout_tables.rollout_device
    with fleet.ctx.store.read() as db:
        return list(db.execute(select(mine).where(mine.c.rollout == ident).order_by(mine.c.device)))


def row_of(db: Connection, ident: str) -> Any:
    mine = rollout_tables.rollout
    return db.execute(select(mine).where(mine.c.id == ident)).one()


def states(fleet: Fleet, ident: str) -> Counter[str]:
    return Counter(row.state for row in devices(fleet, ident))


def ordered(fleet: Fleet, name: str) -> list[str]:
    with fleet.ctx.store.read() as db:
        return [order.release for order in assignments.orders_of(db, name)]


def order_all(fleet: Fleet, ident: str) -> None:
    while "WAITING" in states(fleet, ident):
        stepper.step_all(fleet.ctx)


@contextlib.contextmanager
def statements(fleet: Fleet) -> Iterator[list[str]]:
    """SQL that is executed meanwhile, transactions too."""
    seen: list[str] = []

    def note(_c: Any, _cursor: Any, statement: str, *_: Any) -> None:
        seen.append(statement)

    store = fleet.ctx.store
    assert isinstance(store, Store)
    event.listen(store._reader, "before_cursor_execute", note)
    yield seen
    event.remove(store._reader, "before_cursor_execute", note)


def test_a_step_with_nothing_to_do_reads_one_index_whatever_the_fleet(fleet: Fleet) -> None:
    _, ident = begun(fleet, 600)
    order_all(fleet, ident)
    stepper.step_all(fleet.ctx)
    with statements(fleet) as seen:
        stepper.step_all(fleet.ctx)
    assert [one.split()[0] for one in seen] == ["BEGIN", "SELECT"]
    with fleet.ctx.store.read() as db:
        plan = db.exec_driver_sql(f"EXPLAIN QUERY PLAN {seen[1]}", ("RUNNING",) * 6).all()
    assert "ix_rollout_state" in str(plan)


def test_the_statements_of_an_event_do_not_grow_with_the_fleet(fleet: Fleet) -> None:
    counts = []
    for many in (60, 600):
        with memory_folder() as folder:
            one = Fleet(folder)
            names, ident = begun(one, many)
            order_all(one, ident)
            stepper.step_all(one.ctx)
            with statements(one) as seen:
                report(one, ident, names[:1], "DOWNLOADING")
                stepper.step_all(one.ctx)
            counts.append(len(seen))
            one.ctx.store.close()
    assert counts[0] == counts[1]


def test_a_large_fleet_is_ordered_and_finishes_and_holds_the_write_lock_briefly(
    fleet: Fleet, held_s: list[float]
) -> None:
    many = 1_500
    names = add_devices(fleet, many)
    fleet.release()
    release = fleet.release()
    held_s.clear()
    ident = fleet.roll_out(release, ALL).id
    order_all(fleet, ident)
    assert len(assignments.pending(fleet.ctx, 2 * many)) == many
    for first in range(0, many, 250):
        report(fleet, ident, names[first : first + 250], "SUCCEEDED")
    stepper.step_all(fleet.ctx)
    assert fleet.rollout(ident).state == "FINISHED"
    assert statistics.median(held_s) < 0.1, "seconds"


def test_its_gate_stops_a_large_rollout_while_devices_are_still_being_ordered(fleet: Fleet) -> None:
    names, ident = begun(fleet, 900)
    first = [row.device for row in devices(fleet, ident) if row.state == "ASSIGNED"]
    assert 0 < len(first) < len(names)
    report(fleet, ident, first[:5], "FAILED", cause="golden-mismatch")
    stepper.step_all(fleet.ctx)
    stopped = fleet.rollout(ident)
    assert stopped.state == "PAUSED"
    assert "golden-mismatch on d-00000, d-00001, d-00002 and 2 more" in stopped.reason
    assert states(fleet, ident)["WAITING"] > 0


def test_a_device_whose_orders_changed_meanwhile_is_ordered_with_both_changes(fleet: Fleet) -> None:
    _, ident = begun(fleet, 500)
    with fleet.ctx.store.read() as db:
        prepared = stage_orders.prepare(db, fleet.ctx, row_of(db, ident))
    changed = next(iter(prepared.changes))
    with fleet.ctx.store.write() as db:
        other = assignments.order_of(
            assignments.signed_release(db, f"{MODEL}@1"), rollout="u-1", attempt=1
        )
        order = assignments.Change(changed, "other", other)
        assignments.change(db, fleet.ctx, [order])
    with fleet.ctx.store.write() as db:
        stage_orders.store(db, fleet.ctx, ident, prepared)
    now = {row.device: row.state for row in devices(fleet, ident)}
    assert now[changed] == "WAITING"
    assert all(now[name] == "ASSIGNED" for name in prepared.changes if name != changed)
    order_all(fleet, ident)
    assert ordered(fleet, changed) == [f"{MODEL}@1", f"{MODEL}@2"]


def test_orders_of_a_rollout_that_was_paused_meanwhile_are_not_stored(fleet: Fleet) -> None:
    _, ident = begun(fleet, 500)
    with fleet.ctx.store.read() as db:
        prepared = stage_orders.prepare(db, fleet.ctx, row_of(db, ident))
    rollouts.pause(fleet.ctx, actor="ana", id=ident)
    before = states(fleet, ident)
    with fleet.ctx.store.write() as db:
        stage_orders.store(db, fleet.ctx, ident, prepared)
    assert states(fleet, ident) == before


def test_going_back_takes_several_steps_and_misses_no_device(fleet: Fleet) -> None:
    names, ident = begun(fleet, 900)
    order_all(fleet, ident)
    report(fleet, ident, names[:300], "SUCCEEDED")
    report(fleet, ident, names[300:800], "OBSERVING")
    rollouts.abort(fleet.ctx, actor="ana", id=ident, rollback=True)
    with fleet.ctx.store.read() as db:
        mine = rollout_tables.rollout
        reached = db.scalar(select(mine.c.cursor).where(mine.c.id == ident))
    assert "" < reached < names[-1]
    late = names[799]
    assert late > reached
    report(fleet, ident, [late], "SUCCEEDED")  # before its turn has come
    stepper.step_all(fleet.ctx)
    assert all(ordered(fleet, name) == [f"{MODEL}@1"] for name in names[:800])
    assert states(fleet, ident) == {"ASSIGNED": 800, "CANCELED": 100}
    report(fleet, ident, names, "SUCCEEDED")
    fleet.clock.now += 10
    stepper.step_all(fleet.ctx)
    assert states(fleet, ident) == {"CANCELED": 900}
    assert fleet.rollout(ident).state == "ROLLED_BACK"


def test_an_older_rollout_that_still_withdraws_leaves_the_orders_of_a_newer_one(
    fleet: Fleet,
) -> None:
    names, ident = begun(fleet, 500)
    order_all(fleet, ident)
    rollouts.pause(fleet.ctx, actor="ana", id=ident)
    with fleet.ctx.store.write() as db:
        stepper.move(db, fleet.ctx, ident, stepper.Event.ABORTED)
    third = fleet.release()
    with fleet.ctx.store.read() as db:
        withdrawals = revert.prepare(db, fleet.ctx, row_of(db, ident))
        newer = assignments.signed_release(db, third)
    assert withdrawals is not None
    newest = assignments.order_of(newer, rollout="r-newer", attempt=1)
    with fleet.ctx.store.write() as db:
        both = [assignments.Change(name, MODEL, newest) for name in (names[0], names[-1])]
        assignments.change(db, fleet.ctx, both)
    with fleet.ctx.store.write() as db:
        revert.store(db, fleet.ctx, ident, withdrawals)
    while fleet.rollout(ident).state == "STOPPING":
        stepper.step_all(fleet.ctx)
        fleet.clock.now += 10
    assert ordered(fleet, names[0]) == ordered(fleet, names[-1]) == [f"{MODEL}@3"]
    assert ordered(fleet, names[1]) == ordered(fleet, names[-2]) == [f"{MODEL}@1"]


def test_a_rollout_that_was_interrupted_while_it_was_made_ends_and_another_can_start(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_devices(fleet, 10)
    release = fleet.release()

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(rollouts, "_add_devices", interrupted)
        with pytest.raises(KeyboardInterrupt):
            fleet.roll_out(release, ALL)
    fleet.clock.now += 2 * rollouts.CREATED_S
    stepper.step_all(fleet.ctx)
    [one] = rollouts.list_rollouts(fleet.ctx)
    assert one.state == State.STOPPED
    assert "start again" in one.reason
    assert fleet.rollout(fleet.roll_out(release, ALL).id).state == "RUNNING"


def test_an_event_that_arrives_late_does_not_undo_a_later_one(fleet: Fleet) -> None:
    names, ident = begun(fleet, 1)
    report(fleet, ident, names, "DOWNLOADING")
    report(fleet, ident, names, "PROBING")
    message = wire.UpdateEvent(
        device=names[0], boot="b", seq=1, sent_s=fleet.clock(), model=MODEL, release=f"{MODEL}@2",
        rollout=ident, attempt=1, state="DOWNLOADING",
    )  # fmt: skip
    with fleet.ctx.store.write() as db:  # as if the first of its messages had been lost until now
        db.execute(tables.device_event.delete().where(tables.device_event.c.seq == 1))
    ingest(fleet.ctx, [(topics.up(names[0], "event"), wire.encode(message))])
    assert states(fleet, ident) == {"PROBING": 1}


def test_a_failing_rollout_waits_with_its_next_step_and_stops_no_other(
    fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    _, ident = begun(fleet, 3)
    with fleet.ctx.store.write() as db:
        db.execute(update(tables.release).values(state="validated"))
    stepper.step_all(fleet.ctx)
    report(fleet, ident, ["d-00000"], "DOWNLOADING")
    stepper.step_all(fleet.ctx)
    stepper.step_all(fleet.ctx)
    assert caplog.text.count("cannot advance") == 1


def test_ten_thousand_devices_of_a_group_that_moved_are_looked_at_in_short_transactions(
    fleet: Fleet, held_s: list[float]
) -> None:
    first = fleet.station("cam-1")
    ident = fleet.roll_out(fleet.release(), ALL).id
    fleet.run(60, lambda: fleet.rollout(ident).state == State.FINISHED)
    fleet.run(5, lambda: first.serves == f"{MODEL}@1")
    first.crash()
    names = add_devices(fleet, 10_000)
    with fleet.ctx.store.write() as db:
        lost = tables.device.c.name.in_(names[:100])
        db.execute(update(tables.device).where(lost).values(releases={}))
        group_releases.sweep(db, [Selector()])
    held_s.clear()
    began = time.thread_time()
    while fleet.rows_of(group_tables.device_sweep):
        convergence.step_all(fleet.ctx)
    assert (time.thread_time() - began) / len(names) < 0.001, "seconds a device"
    assert max(held_s) < 0.1
    assert groups.get_group(fleet.ctx, "fleet").releases[0].deviating == 100
    assert {n for n in names[:100] if ordered(fleet, n) == [f"{MODEL}@1"]} == {*names[:100]}
    assert ordered(fleet, names[100]) == []
    convergence.step_all(fleet.ctx)
    with statements(fleet) as seen:
        convergence.step_all(fleet.ctx)
    assert [one for one in seen if " device \n" in one or "rollout_device" in one] == []
    read = [one for one in seen if one.startswith("SELECT")]
    assert len(read) == 4, "heads of three queues, and when the next is due"
    with fleet.ctx.store.write() as db:
        changed_devices.add(db, [names[200]], changed_devices.ONLINE)
    with statements(fleet) as seen:
        convergence.step_all(fleet.ctx)
    assert len(seen) < 40, "one device costs the same in a fleet of any size"
