"""Rollouts from the plan to the slot, with the real agents."""

import msgspec
import pytest

from fakes import memory_folder
from fleet import CANARY_THEN_REST, MODEL, Fleet
from shoal import wire
from shoal.controller.alerts import alerts
from shoal.controller.fleet import enrolment
from shoal.controller.host.settings import Rollouts
from shoal.controller.releases import releases
from shoal.controller.rollouts import device_states, release_files, rollouts
from shoal.controller.rollouts.records import Selector, StagePlan
from shoal.controller.store import rollout_tables, tables
from shoal.errors import ConflictError, DeniedError, InputError

pytestmark = pytest.mark.scenario


@pytest.fixture
def fleet():
    with memory_folder() as folder:
        fleet = Fleet(folder)
        fleet.station("cam-1", site="north", ring="canary")
        fleet.station("cam-2", site="south", ring="canary")
        for i in range(3, 6):
            fleet.station(f"cam-{i}", site="north" if i % 2 else "south")
        fleet.run(1)
        yield fleet


def finished(fleet, ident, state="FINISHED"):
    return lambda: fleet.rollout(ident).state == state


def test_canaries_go_first_and_the_rest_only_after_they_served_well(fleet):
    one = fleet.roll_out(fleet.release())
    seen = []
    while fleet.rollout(one.id).state == "RUNNING":
        fleet.run(1)
        seen.append((fleet.rollout(one.id).stages[0].state, set(fleet.serving().values())))
    first = [serving for canary, serving in seen if canary != "SUCCESSFUL"]
    assert first
    assert all(fleet.states(one.id)[f"cam-{i}"] == "SUCCEEDED" for i in range(1, 6))
    assert fleet.rollout(one.id).state == "FINISHED"
    assert set(fleet.serving().values()) == {f"{MODEL}@1"}
    stages = fleet.rollout(one.id).stages
    assert stages[0].finished_at <= stages[1].started_at
    assert (stages[1].succeeded, stages[1].devices) == (3, 3)
    devices = {row.name: row.releases for row in fleet.rows_of(tables.device)}
    assert all(serves == {MODEL: f"{MODEL}@1"} for serves in devices.values())


def test_a_release_that_fails_on_a_canary_goes_no_further_and_has_a_reason(fleet):
    good = fleet.roll_out(fleet.release())
    fleet.run(60, finished(fleet, good.id))
    bad = fleet.roll_out(fleet.release(wrong_on=["cam-2"]))
    fleet.run(60, finished(fleet, bad.id, "PAUSED"))
    fleet.run(60)
    current = fleet.rollout(bad.id)
    assert current.stages[0].state == "FAILED"
    assert current.stages[1].state == "SCHEDULED"
    for fact in ("cam-2", "golden-mismatch", "golden outputs differ by up to 0.31", "canary"):
        assert fact in current.reason
    assert fleet.serving() == {
        "cam-1": f"{MODEL}@2", "cam-2": f"{MODEL}@1", "cam-3": f"{MODEL}@1", "cam-4": f"{MODEL}@1",
        "cam-5": f"{MODEL}@1",
    }  # fmt: skip
    [(cause, number, example)] = rollouts.failures(fleet.ctx, bad.id)
    assert (cause, number) == ("golden-mismatch", 1)
    assert example.startswith("cam-2: ")
    [alert] = alerts.list_alerts(fleet.ctx, "open")
    assert (alert.kind, alert.severity) == ("rollout", "critical")
    assert f"shoal rollout abort {bad.id} --rollback" in alert.next_step
    error = next(row.error for row in fleet.rows_of(tables.device) if row.name == "cam-2")
    assert "golden-mismatch" in error


def test_a_release_too_slow_for_one_device_pauses_the_same_way(fleet):
    one = fleet.roll_out(fleet.release(slow_on=["cam-1"]))
    fleet.run(60, finished(fleet, one.id, "PAUSED"))
    assert "too-slow on cam-1" in fleet.rollout(one.id).reason
    assert {fleet.serving()[f"cam-{i}"] for i in (3, 4, 5)} == {""}


def test_aborting_with_rollback_gives_every_device_back_what_it_had(fleet):
    good = fleet.roll_out(fleet.release())
    fleet.run(60, finished(fleet, good.id))
    bad = fleet.roll_out(fleet.release(wrong_on=["cam-2"]))
    fleet.run(60, finished(fleet, bad.id, "PAUSED"))
    rollouts.abort(fleet.ctx, actor="ana", id=bad.id, rollback=True)
    fleet.run(60, finished(fleet, bad.id, "ROLLED_BACK"))
    assert set(fleet.serving().values()) == {f"{MODEL}@1"}
    found, _ = rollouts.rollout_devices(fleet.ctx, bad.id)
    back = next(one for one in found if one.device == "cam-1")
    assert (back.state, back.cause, back.detail) == ("CANCELED", "rollback", f"back on {MODEL}@1")
    assert alerts.list_alerts(fleet.ctx, "open") == []


@pytest.mark.parametrize("on_failure", ["stop", "rollback"])
def test_a_failed_gate_can_end_the_rollout_by_itself(fleet, on_failure):
    good = fleet.roll_out(fleet.release())
    fleet.run(60, finished(fleet, good.id))
    bad = fleet.roll_out(fleet.release(wrong_on=["cam-2"]), on_failure=on_failure)
    ended = {"stop": "STOPPED", "rollback": "ROLLED_BACK"}[on_failure]
    fleet.run(90, finished(fleet, bad.id, ended))
    assert "cam-2" in fleet.rollout(bad.id).reason
    assert fleet.serving()["cam-1"] == f"{MODEL}@{2 if on_failure == 'stop' else 1}"


def test_aborting_cancels_updates_that_are_before_the_swap(fleet):
    fleet.artifacts_down = True
    one = fleet.roll_out(fleet.release())
    fleet.run(5)
    assert fleet.states(one.id)["cam-1"] == "QUEUED"
    rollouts.abort(fleet.ctx, actor="ana", id=one.id)
    fleet.run(2)  # who has not heard of it when the files are there again may be done first
    fleet.artifacts_down = False
    fleet.run(60, finished(fleet, one.id, "STOPPED"))
    fleet.run(60)
    assert set(fleet.states(one.id).values()) == {"CANCELED"}
    assert set(fleet.serving().values()) == {""}
    with pytest.raises(ConflictError, match="STOPPED"):
        rollouts.resume(fleet.ctx, actor="ana", id=one.id)


def test_a_candidate_stops_before_stable_devices_until_it_is_signed(fleet):
    ref = fleet.release(sign="candidate")
    one = fleet.roll_out(ref)
    fleet.run(60, finished(fleet, one.id, "PAUSED"))
    assert f"shoal release publish {ref}" in fleet.rollout(one.id).reason
    assert [fleet.serving()[f"cam-{i}"] for i in range(1, 6)] == [ref, ref, "", "", ""]
    releases.publish(fleet.ctx, actor="ben", ref=ref)
    rollouts.resume(fleet.ctx, actor="ben", id=one.id)
    fleet.run(60, finished(fleet, one.id))
    assert set(fleet.serving().values()) == {ref}


def test_a_candidate_in_a_mixed_stage_is_given_to_its_canaries_only(fleet):
    one = fleet.roll_out(fleet.release(sign="candidate"), [StagePlan(name="all")])
    fleet.run(60, finished(fleet, one.id, "PAUSED"))
    fleet.run(30)
    assert [bool(fleet.serving()[f"cam-{i}"]) for i in range(1, 6)] == [1, 1, 0, 0, 0]


def test_a_board_that_cannot_carry_the_release_is_passed_over_with_the_reason(fleet):
    fleet.station("old-pi", profile="rpi3-armv7", ring="canary")
    fleet.station("tiny", profile="rpi4", ring="canary")
    fleet.run(1)
    one = fleet.roll_out(fleet.release(refused={"rpi4": "int8 loses 4 %"}))
    fleet.run(60, finished(fleet, one.id))
    found = {d.device: d for d in rollouts.rollout_devices(fleet.ctx, one.id, state="SKIPPED")[0]}
    assert set(found) == {"old-pi", "tiny"}
    assert "int8 loses 4 %" in found["tiny"].detail
    assert {d.cause for d in found.values()} == {"unsupported-profile"}
    assert fleet.rollout(one.id).stages[0].failed == 0


def test_without_a_canary_the_release_is_unproven_and_a_person_decides(fleet):
    stages = [StagePlan(name="canary", select=Selector(ring="canary", site="east"))]
    one = fleet.roll_out(fleet.release(), [*stages, StagePlan(name="rest")])
    assert (one.state, one.stages[0].devices) == ("PAUSED", 0)
    assert "no device fits" in one.reason
    rollouts.resume(fleet.ctx, actor="ana", id=one.id)
    fleet.run(60, finished(fleet, one.id))


def test_pausing_stops_new_orders_and_resuming_goes_on(fleet):
    one = fleet.roll_out(fleet.release())
    fleet.run(2)
    rollouts.pause(fleet.ctx, actor="ana", id=one.id)
    fleet.run(60)
    assert fleet.rollout(one.id).reason == "paused by ana"
    with pytest.raises(ConflictError, match="PAUSED: it cannot be paused"):
        rollouts.pause(fleet.ctx, actor="ana", id=one.id)
    assert [bool(fleet.serving()[f"cam-{i}"]) for i in range(1, 6)] == [1, 1, 0, 0, 0]
    rollouts.resume(fleet.ctx, actor="ana", id=one.id)
    fleet.run(60, finished(fleet, one.id))


def test_resuming_after_a_failure_tries_the_failed_devices_again(fleet):
    one = fleet.roll_out(fleet.release(wrong_on=["cam-2"]))
    fleet.run(60, finished(fleet, one.id, "PAUSED"))
    rollouts.resume(fleet.ctx, actor="ana", id=one.id)
    fleet.run(60, finished(fleet, one.id, "PAUSED"))
    found, _ = rollouts.rollout_devices(fleet.ctx, one.id)
    assert {d.device: d.attempt for d in found}["cam-2"] == 2
    assert {d.device: d.attempt for d in found}["cam-1"] == 1


def test_a_failed_attempt_is_retried_as_often_as_the_plan_allows(fleet):
    one = fleet.roll_out(fleet.release(wrong_on=["cam-2"]), max_attempts=3)
    fleet.run(90, finished(fleet, one.id, "PAUSED"))
    attempts = [e.attempt for e in fleet.rows_of(tables.device_event) if e.state == "FAILED"]
    assert attempts == [1, 2, 3]


def test_a_device_that_is_switched_off_delays_no_other_and_catches_up_later(fleet):
    fleet.stations["cam-4"].crash()
    fleet.run(2)
    one = fleet.roll_out(fleet.release())
    fleet.run(60, finished(fleet, one.id))
    stage = fleet.rollout(one.id).stages[1]
    assert (stage.succeeded, stage.unseen) == (2, 1)
    assert "1 not seen yet" in stage.verdict
    fleet.stations["cam-4"].start()
    fleet.run(30)
    assert fleet.states(one.id)["cam-4"] == "SUCCEEDED"
    stage = fleet.rollout(one.id).stages[1]
    assert (stage.succeeded, stage.unseen) == (3, 0)


def test_a_stage_without_reports_is_inconclusive_and_waits_for_a_person(fleet):
    for name in ("cam-1", "cam-2"):
        fleet.stations[name].crash()
    fleet.run(2)
    one = fleet.roll_out(fleet.release(), deadline_s=120.0)
    fleet.run(200, finished(fleet, one.id, "PAUSED"))
    current = fleet.rollout(one.id)
    assert current.stages[0].state == "PAUSED"
    assert "cam-1, cam-2" in current.reason
    rollouts.resume(fleet.ctx, actor="ana", id=one.id)
    fleet.run(60, finished(fleet, one.id))


def test_a_device_that_never_finishes_is_timed_out_and_the_gates_reason_counts_it(fleet):
    fleet.artifacts_down = True
    one = fleet.roll_out(fleet.release(), deadline_s=60.0)
    fleet.run(150, finished(fleet, one.id, "PAUSED"))
    assert "deadline on cam-1, cam-2" in fleet.rollout(one.id).reason


def test_a_device_that_enrols_meanwhile_joins_the_last_stage(fleet):
    one = fleet.roll_out(fleet.release())
    fleet.run(1)
    fleet.station("late", site="east")
    fleet.run(60, finished(fleet, one.id))
    assert fleet.serving()["late"] == f"{MODEL}@1"


def test_a_decommissioned_device_is_out_of_the_rollout_and_of_ingest(fleet):
    one = fleet.roll_out(fleet.release())
    fleet.run(2)
    enrolment.decommission(fleet.ctx, actor="ana", device="cam-4")
    fleet.run(60, finished(fleet, one.id))
    assert fleet.serving()["cam-4"] == ""
    assert fleet.states(one.id)["cam-4"] == "SKIPPED"


def test_the_controller_may_be_away_in_the_middle_of_it(fleet):
    one = fleet.roll_out(fleet.release())
    fleet.run(2)
    with fleet.controller_down():
        fleet.run(40)
    fleet.run(60, finished(fleet, one.id))
    events = [
        (e.device, e.state) for e in fleet.rows_of(tables.device_event) if e.rollout == one.id
    ]
    assert len(events) == len(set(events))


def test_messages_that_come_twice_and_out_of_order_make_the_same_rollout(fleet):
    def spoil(batch):
        twice = [message for message in batch for _ in range(2)]
        return twice[::-1] if len({topic for topic, _ in batch}) == 1 else twice

    fleet.broker.spoil = spoil
    one = fleet.roll_out(fleet.release())
    fleet.run(90, finished(fleet, one.id))
    fleet.run(30)
    assert set(fleet.states(one.id).values()) == {"SUCCEEDED"}
    events = fleet.rows_of(tables.device_event)
    assert len({(e.device, e.boot, e.seq) for e in events}) == len(events)


def test_a_newer_rollout_supersedes_one_that_stands_still_and_waits_for_one_that_moves(fleet):
    bad = fleet.roll_out(fleet.release(wrong_on=["cam-2"]))
    with pytest.raises(ConflictError, match=bad.id):
        fleet.roll_out(fleet.release())
    fleet.run(60, finished(fleet, bad.id, "PAUSED"))
    new = fleet.roll_out(f"{MODEL}@2")
    assert fleet.rollout(bad.id).state == "STOPPING"
    fleet.run(60, finished(fleet, new.id))
    assert fleet.rollout(bad.id).state == "STOPPED"
    assert new.id in fleet.rollout(bad.id).reason
    assert set(fleet.serving().values()) == {f"{MODEL}@2"}


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"stages": []}, "needs stages"),
        ({"stages": [StagePlan(name="a"), StagePlan(name="a")]}, "its own name"),
        ({"on_failure": "shrug"}, "pause, stop, rollback"),
        ({"deadline_s": 0.0}, "deadline_s"),
        ({"stages": [StagePlan(name="a", select=Selector(site="moon"))]}, "no device fits"),
        ({"stages": [StagePlan(name="a", select=Selector(percent=0))]}, "percent"),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused(fleet, change, error):
    plan = {"stages": CANARY_THEN_REST} | change
    with pytest.raises(InputError, match=error):
        fleet.roll_out(fleet.release(), **plan)
    assert rollouts.list_rollouts(fleet.ctx) == []


def test_an_unsigned_release_is_not_rolled_out(fleet):
    ref = fleet.release(sign="")
    with pytest.raises(ConflictError, match=f"shoal release publish {ref}"):
        fleet.roll_out(ref)


def test_orders_are_renewed_before_they_expire_and_start_nothing_anew(fleet):
    one = fleet.roll_out(fleet.release())
    fleet.run(60, finished(fleet, one.id))
    before = {row.device: row.version for row in fleet.rows_of(rollout_tables.assignment)}
    fleet.clock.now += 4 * 86_400
    fleet.run(3)
    after = {row.device: row.version for row in fleet.rows_of(rollout_tables.assignment)}
    assert all(after[name] == version + 1 for name, version in before.items())
    assert len([e for e in fleet.rows_of(tables.device_event) if e.state == "SUCCEEDED"]) == 5


def test_a_database_restored_from_a_backup_never_sends_what_a_device_has_seen(fleet):
    one = fleet.roll_out(fleet.release())
    fleet.run(60, finished(fleet, one.id))
    with fleet.ctx.store.write() as db:
        db.execute(rollout_tables.assignment.update().values(version=0, sent_version=0))
    for station in fleet.stations.values():
        station.crash()
        station.start()
    fleet.run(5)
    again = fleet.roll_out(fleet.release())
    fleet.run(60, finished(fleet, again.id))
    assert set(fleet.serving().values()) == {f"{MODEL}@2"}


def test_records_are_plain_enough_for_json(fleet):
    one = fleet.roll_out(fleet.release())
    fleet.run(10)
    for record in (fleet.rollout(one.id), *rollouts.rollout_devices(fleet.ctx, one.id)[0]):
        assert msgspec.json.decode(msgspec.json.encode(record))


def test_an_assignment_has_the_url_of_the_delta_from_the_installed_release(fleet, monkeypatch):
    monkeypatch.setattr(release_files, "DELTA_FROM", 1)
    one = fleet.roll_out(fleet.release())
    fleet.run(60, finished(fleet, one.id))
    two = fleet.roll_out(fleet.release())
    fleet.run(60, finished(fleet, two.id))
    assert set(fleet.serving().values()) == {f"{MODEL}@2"}
    row = next(r for r in fleet.rows_of(rollout_tables.assignment) if r.device == "cam-1")
    urls = wire.decode_down("assignment", bytes(row.message)).urls
    pairs = {key: url for key, url in urls.items() if ">" in key}
    assert pairs
    for key, url in pairs.items():
        old, new = key.split(">")
        assert new in urls
        assert old not in urls
        assert f"/blobs/{old}-{new}?" in url


def test_a_release_that_answers_otherwise_than_before_stops_at_the_canaries(fleet):
    one = fleet.roll_out(fleet.release())
    fleet.run(60, finished(fleet, one.id))
    fleet.run(20)
    stages = [
        StagePlan(name="canary", select=Selector(ring="canary"), max_disagree_pct=5.0),
        StagePlan(name="rest", max_disagree_pct=5.0),
    ]
    other = fleet.release(weights=(1, 1, -1))
    two = fleet.roll_out(other, stages, on_failure="rollback")
    fleet.run(60, lambda: fleet.rollout(two.id).state == "ROLLED_BACK")
    current = fleet.rollout(two.id)
    assert "recent inputs otherwise than the serving release (gate 5 %)" in current.reason
    assert 0.1 < current.stages[0].disagree < 0.6
    assert current.stages[0].compared > 20
    assert current.stages[1].compared == 0
    fleet.run(20)
    assert set(fleet.serving().values()) == {f"{MODEL}@1"}


def test_resuming_accepts_the_shadow_disagreement(fleet):
    one = fleet.roll_out(fleet.release())
    fleet.run(60, finished(fleet, one.id))
    fleet.run(20)
    stages = [StagePlan(name="canary", select=Selector(ring="canary"), max_disagree_pct=5.0)]
    two = fleet.roll_out(fleet.release(weights=(1, 1, -1)), stages)
    fleet.run(60, lambda: fleet.rollout(two.id).state == "PAUSED")
    devices, _ = rollouts.rollout_devices(fleet.ctx, two.id)
    assert all(one.facts["compared"] > 0 for one in devices)
    rollouts.resume(fleet.ctx, actor="ana", id=two.id)
    fleet.run(60, finished(fleet, two.id))
    assert fleet.rollout(two.id).stages[0].accepted_pct > 5


def test_what_the_shadow_probe_found_is_there_when_the_update_is_long_over(fleet):
    one = fleet.roll_out(fleet.release())
    fleet.run(60, finished(fleet, one.id))
    assert all(stage.compared == 0 for stage in fleet.rollout(one.id).stages), "nothing served yet"
    two = fleet.roll_out(fleet.release(weights=(1, 1, 1.2)))
    fleet.run(60, finished(fleet, two.id))
    devices, _ = rollouts.rollout_devices(fleet.ctx, two.id)
    assert all(0 <= one.facts["disagree"] < 0.2 and one.facts["compared"] for one in devices)
    assert all(stage.compared for stage in fleet.rollout(two.id).stages)


@pytest.mark.parametrize("most", [1, 2])
def test_no_more_devices_are_at_it_at_once_than_the_plan_allows(fleet, most):
    one = fleet.roll_out(fleet.release(), max_concurrent=most)
    at_once = []

    def looked():
        states = fleet.states(one.id).values()
        idle = {"WAITING", *device_states.ENDED}
        at_once.append(sum(state not in idle for state in states))
        return fleet.rollout(one.id).state == "FINISHED"

    fleet.run(200, looked)
    assert max(at_once) == most
    assert set(fleet.serving().values()) == {f"{MODEL}@1"}


def test_a_device_that_is_away_does_not_take_the_place_of_one_that_is_there(fleet):
    fleet.stations["cam-4"].crash()
    fleet.run(5)
    one = fleet.roll_out(fleet.release(), max_concurrent=1, deadline_s=3_600.0)
    fleet.run(200, lambda: list(fleet.states(one.id).values()).count("SUCCEEDED") == 4)


def careful(fleet):
    settings = msgspec.structs.replace(fleet.ctx.settings, rollouts=Rollouts(approval="stable"))
    fleet.ctx = fleet.ctx._replace(settings=settings)
    return fleet


def test_a_rollout_to_stable_devices_waits_for_another_user_where_approval_is_required(fleet):
    ref = careful(fleet).release()
    one = fleet.roll_out(ref)
    assert one.state == "WAITING_FOR_APPROVAL"
    assert "an approver other than ana has to approve" in one.reason
    fleet.run(10)
    assert set(fleet.states(one.id).values()) == {"WAITING"}
    with pytest.raises(DeniedError, match="another user"):
        rollouts.approve(fleet.ctx, actor="ana", id=one.id)
    approved = rollouts.approve(fleet.ctx, actor="bo", id=one.id)
    assert (approved.state, approved.reason) == ("RUNNING", "")
    with pytest.raises(ConflictError):
        rollouts.approve(fleet.ctx, actor="bo", id=one.id)
    fleet.run(60, finished(fleet, one.id))


def test_canaries_alone_need_nobodys_approval_and_a_rollout_that_waits_can_be_aborted(fleet):
    ref = careful(fleet).release()
    canaries = [StagePlan(name="canary", select=Selector(ring="canary"))]
    one = fleet.roll_out(ref, canaries)
    fleet.run(60, finished(fleet, one.id))
    two = fleet.roll_out(ref)
    assert rollouts.abort(fleet.ctx, actor="ana", id=two.id).state == "STOPPED"
    fleet.run(5)
    assert "cam-4" not in {k for k, v in fleet.serving().items() if v}
