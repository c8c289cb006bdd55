"""Rollouts with behaviour gates: stopped, let through, or paused with what is missing."""

import msgspec
import pytest
from click.testing import CliRunner

from fakes import memory_folder
from fleet import MODEL, Fleet
from shoal.controller.__main__ import main
from shoal.controller.rollouts import replay, rollouts
from shoal.controller.rollouts.behaviour_records import METRICS, BehaviourGate
from shoal.controller.store.rollout_tables import gate_look
from shoal.errors import ConflictError
from stored_windows import keep, new_window

pytestmark = pytest.mark.scenario
HOUR = 3_600.0
GATES = [BehaviourGate(metric=name) for name in METRICS]
CANARIES, OTHERS = ("cam-1", "cam-2"), ("cam-3", "cam-4", "cam-5")


@pytest.fixture
def fleet():
    """Five devices that serve release 1, and have for three days."""
    with memory_folder() as folder:
        fleet = Fleet(folder)
        for name in (*CANARIES, *OTHERS):
            fleet.station(name, ring="canary" if name in CANARIES else "stable")
        fleet.run(1)
        first = fleet.roll_out(fleet.release())
        fleet.run(60, lambda: fleet.rollout(first.id).state == "FINISHED")
        start = fleet.clock() // HOUR * HOUR
        past = [
            an_hours_window(name, 1, start - (hour + 1) * HOUR)
            for hour in range(24)
            for name in (*CANARIES, *OTHERS)
        ]
        keep(fleet.ctx.store, *past)
        yield fleet


def an_hours_window(device, version, at, *, errors=100, slow=500, wrong=80, rows=10_000):
    return new_window(
        device, int(at), boot="past", model=MODEL, release=f"{MODEL}@{version}", start_at=at + 1,
        window_s=HOUR, received_at=at + HOUR, rows=rows, errors=errors, labelled=1_000,
        correct=1_000 - wrong, latency=[*[0] * 30, rows - slow, *[0] * 6, slow],
    )  # fmt: skip


def begin(fleet, **plan):
    """Start release 2, and have the canaries installed it."""
    one = fleet.roll_out(fleet.release(), **({"gates": GATES} | plan))
    fleet.run(60, lambda: fleet.rollout(one.id).stages[0].state == "ANALYSING")
    return one.id


def pass_hours(fleet, ident, hours, *, canaries=None):
    """Everybody sends a window an hour, until the stage is judged. canaries: None if silent."""
    for _ in range(hours):
        at = fleet.clock() // HOUR * HOUR
        some = [an_hours_window(name, 1, at) for name in OTHERS]
        if canaries is not None:
            some += [an_hours_window(name, 2, at, **canaries) for name in CANARIES]
        keep(fleet.ctx.store, *some)
        fleet.clock.now += HOUR
        fleet.run(2)
        if fleet.rollout(ident).stages[0].state != "ANALYSING":
            return


def test_a_release_that_installs_well_and_does_worse_is_stopped_at_the_canaries(fleet, tmp_path):
    ident = begin(fleet, on_failure="rollback")
    pass_hours(fleet, ident, 6, canaries={"slow": 2_000})
    found = fleet.rollout(ident)
    assert found.stages[0].state == "FAILED"
    assert "slow calls are 4.0" in found.stages[0].verdict
    assert "on 2 devices" in found.stages[0].verdict
    fleet.run(60, lambda: fleet.rollout(ident).state == "ROLLED_BACK")
    assert set(fleet.serving().values()) == {f"{MODEL}@1"}
    [newest], page = rollouts.evidence(fleet.ctx, ident, stage="canary", limit=1)
    assert newest.outcome == "FAILED"
    states = {one.metric: one.state for one in newest.metrics}
    assert states["latency"] == "WORSE"
    assert states["errors"] != "WORSE"
    assert newest.metrics[0].control.past_pct == pytest.approx(1.0, abs=0.1)
    older, _ = rollouts.evidence(fleet.ctx, ident, cursor=page.next)
    assert len(older) == len(fleet.rows_of(gate_look)) - 1
    check_receipts(fleet, ident, tmp_path / "receipts.json")


def check_receipts(fleet, ident, file):
    """Its verdicts come out the same without the controller; other gates change what it does."""
    export = replay.receipts(fleet.ctx, ident)
    file.write_bytes(msgspec.json.encode(export))
    run = CliRunner().invoke(main, ["replay", str(file)])
    assert (run.exit_code, "every verdict comes out the same" in run.output) == (0, True)
    first = export.looks[-1].receipt.hours[0]
    changed = msgspec.json.decode(export.inputs[first])
    changed["counts"]["latency"]["events"] = [0] * 5
    export.inputs[first] = msgspec.json.encode(changed).decode()
    file.write_bytes(msgspec.json.encode(export))
    run = CliRunner().invoke(main, ["replay", str(file)])
    assert run.exit_code == 1
    assert "of stage canary has changed: its SHA-256 is not" in run.output
    assert "the verdict is FAILED" in run.output
    same = replay.replay(fleet.ctx, ident, [BehaviourGate(metric="latency")])
    assert (same.outcome, same.stage, same.devices, same.of) == ("FAILED", "canary", 2, 2)
    other = replay.replay(fleet.ctx, ident, [BehaviourGate(metric="latency", tolerance=9.0)])
    assert other.outcome != "FAILED"
    with pytest.raises(ConflictError):
        replay.replay(fleet.ctx, rollouts.list_rollouts(fleet.ctx)[-1].id, GATES)


def test_a_release_that_is_no_worse_goes_on_once_that_is_shown(fleet):
    ident = begin(fleet)
    assert fleet.rollout(ident).state == "RUNNING"
    pass_hours(fleet, ident, 12, canaries={})
    fleet.run(60, lambda: fleet.rollout(ident).state == "FINISHED")
    first, last = fleet.rollout(ident).stages
    assert "errors no worse" in first.verdict
    assert "no device is left on another release" in last.verdict


def test_too_few_rows_are_no_success_and_a_person_may_accept_that(fleet):
    ident = begin(fleet, analyse_s=2 * HOUR)
    pass_hours(fleet, ident, 4)
    found = fleet.rollout(ident)
    assert (found.state, found.stages[0].state) == ("PAUSED", "PAUSED")
    assert "h more of such traffic decide, or more canaries" in found.reason
    rollouts.resume(fleet.ctx, actor="ana", id=ident)
    assert fleet.rollout(ident).stages[0].state == "SUCCESSFUL"


def test_a_stage_that_failed_begins_its_evidence_anew_when_it_is_resumed(fleet):
    ident = begin(fleet)
    pass_hours(fleet, ident, 3, canaries={"errors": 1_000})
    assert fleet.rollout(ident).state == "PAUSED"
    rollouts.resume(fleet.ctx, actor="ana", id=ident)
    fleet.run(8)
    stage = fleet.rollout(ident).stages[0]
    assert stage.state == "ANALYSING"
    [seen], _ = rollouts.evidence(fleet.ctx, ident, limit=1)
    assert seen.at >= stage.started_at
    assert seen.metrics[0].canary.past_pct == pytest.approx(1.0, abs=0.1)
