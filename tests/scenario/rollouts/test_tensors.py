"""A release of tensors in a fleet: who is ordered it, and what its windows are used for."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

import tensor_releases
from fleet import Fleet
from shoal import topics, wire
from shoal.controller.ingest.ingest import ingest
from shoal.controller.monitoring import drift_history, drift_monitor, performance, window_validation
from shoal.controller.rollouts import assignments, rollouts, stepper
from shoal.controller.rollouts.records import RolloutPlan, StagePlan
from shoal.controller.store import drift_tables, tables

MODEL = tensor_releases.MODEL
READS = {"new": [1, 2], "old": None, "odd": 7, "first": [1]}


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    made = Fleet(tmp_path, baseline_windows=3)
    for name, schemas in READS.items():
        made.station(name, start=False)
        facts = {"cores": 4} if schemas is None else {"schemas": schemas}
        with made.ctx.store.write() as db:
            mine = tables.device.c.name == name
            db.execute(update(tables.device).where(mine).values(facts=facts))
    yield made
    made.ctx.store.close()


def roll_out(fleet: Fleet, ref: str) -> dict[str, Any]:
    """What became of each device once the rollout has taken a step."""
    plan = RolloutPlan(release=ref, stages=[StagePlan(name="all")])
    ident = rollouts.start(fleet.ctx, actor="ana", plan=plan).id
    stepper.step_all(fleet.ctx)
    found, _ = rollouts.rollout_devices(fleet.ctx, ident)
    return {one.device: one for one in found}


def test_only_agents_that_read_its_manifest_are_sent_it_and_the_others_are_skipped_with_a_reason(
    fleet: Fleet,
) -> None:
    ref = tensor_releases.released(fleet.ctx)
    found = roll_out(fleet, ref)
    assert {name: one.state for name, one in found.items()} == {
        "new": "ASSIGNED", "old": "SKIPPED", "odd": "SKIPPED", "first": "SKIPPED",
    }  # fmt: skip
    assert found["old"].cause == "outdated-agent"
    assert found["old"].detail == "its agent reads no manifest of schema 2: update the agent"
    with fleet.ctx.store.read() as db:
        orders = {name: assignments.orders_of(db, name) for name in READS}
    assert {name for name, mine in orders.items() if mine} == {"new"}


def test_a_release_of_rows_is_for_every_agent(fleet: Fleet) -> None:
    found = roll_out(fleet, fleet.release())
    assert {one.state for one in found.values()} == {"ASSIGNED"}


def report(fleet: Fleet, ref: str, seq: int) -> tuple[str, bytes]:
    """A window of a device that serves tensors: counts and latency, no sketches."""
    with fleet.ctx.store.read() as db:
        known = window_validation.references_of(db, ref)
    message = wire.WindowReport(
        device="new", boot="b1", seq=seq, sent_s=fleet.clock(), model=MODEL, release=ref,
        reference=known.id, window_start_s=fleet.clock(), window_s=10.0, rows=50, errors=1,
        latency=[0, 3, 2],
    )  # fmt: skip
    return topics.up("new", "window"), wire.encode(message)


def test_its_windows_count_in_performance_and_are_not_tested_for_drift(fleet: Fleet) -> None:
    ref = tensor_releases.released(fleet.ctx)
    cache = drift_monitor.DriftMemory(64)
    for seq in range(1, 12):
        fleet.clock.now += 10
        acks = ingest(fleet.ctx, [report(fleet, ref, seq)])
        assert [ack.seqs for ack in acks["new"]] == [[seq]]
        drift_monitor.evaluate_all(fleet.ctx, cache)
    [found] = performance.performance(fleet.ctx, model=MODEL)
    assert (found.rows, found.errors, found.accuracy) == (550, 11, None)
    assert found.p50_us is not None
    drift = drift_history.drift_map(fleet.ctx, MODEL, "device", "new")
    assert (drift.features, drift.cells) == ([], [])
    assert fleet.rows_of(drift_tables.drift_state) == fleet.rows_of(drift_tables.finding) == []
