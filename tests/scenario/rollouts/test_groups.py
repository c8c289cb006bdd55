"""Groups: who missed a rollout, joins later or was replaced gets what the fleet runs, by itself."""

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import update

from fakes import memory_folder
from fleet import MODEL, Fleet, Station
from shoal.controller.fleet import changed_devices, enrolment
from shoal.controller.rollouts import groups, overrides, rollouts, undeployments
from shoal.controller.rollouts.group_records import Deviation
from shoal.controller.rollouts.records import Selector, StagePlan
from shoal.controller.store import group_tables, tables
from shoal.errors import ConflictError

pytestmark = pytest.mark.scenario

ALL = [StagePlan(name="all", threshold_pct=50)]
ONE, TWO, THREE = (f"{MODEL}@{n}" for n in (1, 2, 3))


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    with memory_folder() as folder:
        made = Fleet(folder)
        for name in ("cam-1", "cam-2"):
            made.station(name)
        made.release()
        done(made, made.roll_out(ONE, ALL).id)
        yield made
        made.ctx.store.close()


def done(fleet: Fleet, ident: str, state: str = "FINISHED") -> None:
    fleet.run(120, lambda: fleet.rollout(ident).state == state)


def joins(fleet: Fleet, name: str, **more: Any) -> Station:
    """A device enrols and is switched on."""
    made = fleet.station(name, **more)
    with fleet.ctx.store.write() as db:
        changed_devices.add(db, [name], changed_devices.ENROLLED)
    return made


def deviating(fleet: Fleet, **which: str) -> dict[str, Deviation]:
    return {one.device: one for one in groups.deviations(fleet.ctx, **which)[0]}


def runs(fleet: Fleet, group: str = "fleet") -> str:
    return next((one.release for one in groups.get_group(fleet.ctx, group).releases), "")


def alerts(fleet: Fleet) -> list[Any]:
    return [one for one in fleet.rows_of(tables.alert) if one.state != "closed"]


def test_the_fleet_keeps_what_a_finished_rollout_gave_it(fleet: Fleet) -> None:
    assert runs(fleet) == ONE
    fleet.run(5)
    assert deviating(fleet) == {}
    assert fleet.rows_of(group_tables.changed_device) == []
    assert fleet.rows_of(group_tables.device_sweep) == []


def test_a_device_that_was_away_past_the_deadline_gets_the_release_when_it_returns(
    fleet: Fleet,
) -> None:
    fleet.stations["cam-2"].crash()
    fleet.run(5)
    one = fleet.roll_out(fleet.release(), ALL, deadline_s=60.0)
    fleet.run(400, lambda: fleet.rollout(one.id).state == "FINISHED")
    fleet.run(100)
    assert deviating(fleet)["cam-2"].state == "AWAY"
    verdict = fleet.rollout(one.id).stages[0].verdict
    fleet.stations["cam-2"].start()
    fleet.run(60, lambda: fleet.serving()["cam-2"] == TWO)
    fleet.run(10)
    found = fleet.rollout(one.id)
    assert (found.state, found.stages[0].verdict) == ("FINISHED", verdict)
    fleet.run(10, lambda: deviating(fleet) == {})


def test_a_device_that_joins_later_gets_what_its_group_runs(fleet: Fleet) -> None:
    joins(fleet, "cam-3")
    fleet.run(60, lambda: fleet.serving()["cam-3"] == ONE)
    moved_by = fleet.rows_of(group_tables.group_release)[0].rollout
    fleet.run(30, lambda: fleet.states(moved_by)["cam-3"] == "SUCCEEDED")
    found = fleet.rollout(moved_by).trailing
    assert found is not None
    assert (found.devices, found.succeeded) == (1, 1)


def test_of_nested_groups_the_narrowest_decides(fleet: Fleet) -> None:
    fleet.release()
    here = [StagePlan(name="here", select=Selector(site="south"))]
    joins(fleet, "press-1", site="south")
    fleet.run(60, lambda: fleet.serving()["press-1"] == ONE)
    done(fleet, fleet.roll_out(TWO, here).id)
    joins(fleet, "press-2", site="south")
    joins(fleet, "cam-3")
    fleet.run(60, lambda: fleet.serving()["press-2"] == TWO)
    fleet.run(60, lambda: fleet.serving()["cam-3"] == ONE)
    assert (runs(fleet), runs(fleet, "site=south")) == (ONE, TWO)
    done(fleet, fleet.roll_out(fleet.release(), ALL).id)
    assert (runs(fleet), runs(fleet, "site=south")) == (THREE, THREE), "the wider one took it along"


def test_a_device_that_replaces_another_gets_the_release_again(fleet: Fleet) -> None:
    fleet.stations.pop("cam-2").crash()
    enrolment.decommission(fleet.ctx, actor="ana", device="cam-2")
    fleet.run(5)
    with fleet.ctx.store.write() as db:
        of = tables.device.c.name == "cam-2"
        values = {"state": "enrolled", "enrolled_at": fleet.clock(), "releases": {}}
        db.execute(update(tables.device).where(of).values(**values))
        changed_devices.add(db, ["cam-2"], changed_devices.ENROLLED)
    again = Station.__new__(Station)
    fleet.folder = fleet.folder / "new"
    again.__init__(fleet, "cam-2", "north", "stable", "generic")  # type: ignore[misc]
    fleet.stations["cam-2"] = again
    again.start()
    fleet.run(60, lambda: fleet.serving()["cam-2"] == ONE)
    fleet.run(30, lambda: deviating(fleet) == {})


def test_a_pinned_device_is_left_out_and_converges_once_it_is_unpinned(fleet: Fleet) -> None:
    overrides.pin(fleet.ctx, actor="ana", device="cam-2", release=ONE, reason="validated here")
    one = fleet.roll_out(fleet.release(), ALL)
    done(fleet, one.id)
    assert fleet.states(one.id) == {"cam-1": "SUCCEEDED", "cam-2": "SKIPPED"}
    fleet.run(5)
    assert fleet.serving()["cam-2"] == ONE
    assert deviating(fleet)["cam-2"].state == "PINNED"
    overrides.unpin(fleet.ctx, actor="ana", device="cam-2", model=MODEL)
    fleet.run(60, lambda: fleet.serving()["cam-2"] == TWO)


def test_a_pin_puts_a_device_onto_a_release_that_no_group_runs(fleet: Fleet) -> None:
    fleet.release()
    overrides.pin(fleet.ctx, actor="ana", device="cam-2", release=TWO)
    fleet.run(60, lambda: fleet.serving()["cam-2"] == TWO)
    assert fleet.serving()["cam-1"] == ONE
    state = groups.desired_state(fleet.ctx, "cam-2").releases[0]
    assert (state.want, state.by) == (TWO, "pin")


@pytest.mark.parametrize("kind", ["hold", "exclude"])
def test_a_device_that_is_held_or_excluded_keeps_what_it_runs(fleet: Fleet, kind: str) -> None:
    if kind == "hold":
        overrides.hold(fleet.ctx, actor="ana", device="cam-2", reason="audit")
    else:
        overrides.exclude(fleet.ctx, actor="ana", device="cam-2", model=MODEL, reason="audit")
    done(fleet, fleet.roll_out(fleet.release(), ALL).id)
    fleet.run(20)
    assert fleet.serving()["cam-2"] == ONE
    found = deviating(fleet)["cam-2"]
    assert found.state == {"hold": "HELD", "exclude": "EXCLUDED"}[kind]
    assert "audit" in found.why
    if kind == "hold":
        overrides.release_hold(fleet.ctx, actor="ana", device="cam-2")
    else:
        overrides.include(fleet.ctx, actor="ana", device="cam-2", model=MODEL)
    fleet.run(60, lambda: fleet.serving()["cam-2"] == TWO)


def test_a_rolled_back_rollout_leaves_the_groups_what_they_ran(fleet: Fleet) -> None:
    canary_first = [StagePlan(name="canary", select=Selector(ring="canary")), *ALL]
    joins(fleet, "cam-0", ring="canary")
    fleet.run(60, lambda: fleet.serving()["cam-0"] == ONE)
    one = fleet.roll_out(fleet.release(wrong_on=["cam-1", "cam-2"]), canary_first)
    fleet.run(120, lambda: fleet.rollout(one.id).state == "PAUSED")
    assert runs(fleet, "ring=canary") == TWO, "moved stage by stage"
    rollouts.abort(fleet.ctx, actor="ana", id=one.id, rollback=True)
    done(fleet, one.id, "ROLLED_BACK")
    assert (runs(fleet), runs(fleet, "ring=canary")) == (ONE, "")
    joins(fleet, "cam-9", ring="canary")
    fleet.run(60, lambda: {*fleet.serving().values()} == {ONE})


def test_a_stopped_rollout_leaves_its_devices_what_they_have(fleet: Fleet) -> None:
    half = [StagePlan(name="half", select=Selector(percent=50)), StagePlan(name="rest")]
    bad = fleet.release(wrong_on=["cam-1", "cam-2"])
    assert bad == TWO
    good = fleet.release()
    one = fleet.roll_out(good, half)
    fleet.run(60, lambda: THREE in fleet.serving().values())
    rollouts.pause(fleet.ctx, actor="ana", id=one.id)
    rollouts.abort(fleet.ctx, actor="ana", id=one.id)
    done(fleet, one.id, "STOPPED")
    fleet.run(30)
    assert runs(fleet) == ONE
    kept = [name for name, release in fleet.serving().items() if release == THREE]
    assert kept
    assert all(deviating(fleet)[name].state == "KEPT" for name in kept)


def test_what_was_undeployed_is_not_given_to_who_joins(fleet: Fleet) -> None:
    undeployments.start(fleet.ctx, actor="ana", model=MODEL, all=True)
    fleet.run(60, lambda: {*fleet.serving().values()} == {""})
    joins(fleet, "cam-3")
    fleet.run(30)
    assert {*fleet.serving().values()} == {""}
    assert runs(fleet) == ""


def test_devices_that_fail_pause_the_trailing_stage_and_not_the_rollout(fleet: Fleet) -> None:
    late = [f"late-{i}" for i in range(4)]
    one = fleet.roll_out(fleet.release(wrong_on=late), ALL)
    done(fleet, one.id)
    for name in late:
        joins(fleet, name)
    fleet.run(60, lambda: (t := fleet.rollout(one.id).trailing) is not None and t.state == "PAUSED")
    assert fleet.rollout(one.id).state == "FINISHED"
    titles = [row.title for row in alerts(fleet)]
    assert f"{TWO} has stopped reaching devices that missed its rollout" in titles
    joins(fleet, "cam-7")
    fleet.run(20)
    assert fleet.serving()["cam-7"] == ""
    assert deviating(fleet)["cam-7"].state == "PAUSED"
    rollouts.resume(fleet.ctx, actor="ana", id=one.id)
    fleet.run(60, lambda: fleet.serving()["cam-7"] == TWO)


def test_a_board_that_cannot_run_it_is_an_alert_with_the_next_step(fleet: Fleet) -> None:
    one = fleet.roll_out(fleet.release(refused={"rpi4": "too large"}), ALL)
    done(fleet, one.id)
    joins(fleet, "cam-3", profile="rpi4")
    fleet.run(60, lambda: bool(alerts(fleet)))
    told = alerts(fleet)[0]
    assert "cannot get" in told.title
    assert f"shoal device exclude cam-3 {MODEL}" in told.next_step
    fleet.run(5, lambda: deviating(fleet)["cam-3"].state == "CANNOT")
    enrolment.decommission(fleet.ctx, actor="ana", device="cam-3")
    done(fleet, fleet.roll_out(fleet.release(), ALL).id)
    fleet.run(10, lambda: alerts(fleet) == [])


def test_two_groups_of_one_selector_are_refused(fleet: Fleet) -> None:
    south = Selector(site="south")
    made = groups.create(fleet.ctx, actor="ana", name="south-plant", select=south)
    assert (made.selector, made.releases) == ("site=south", [])
    with pytest.raises(ConflictError, match="south-plant selects site=south already"):
        groups.create(fleet.ctx, actor="ana", name="other", select=south)
    groups.remove(fleet.ctx, actor="ana", name="south-plant")
    with pytest.raises(ConflictError, match="every device"):
        groups.remove(fleet.ctx, actor="ana", name="fleet")


def test_devices_of_a_deleted_group_run_what_the_wider_one_runs(fleet: Fleet) -> None:
    fleet.release()
    joins(fleet, "press-1", site="south")
    fleet.run(60, lambda: fleet.serving()["press-1"] == ONE)
    done(fleet, fleet.roll_out(TWO, [StagePlan(name="s", select=Selector(site="south"))]).id)
    groups.remove(fleet.ctx, actor="ana", name="site=south")
    fleet.run(60, lambda: fleet.serving()["press-1"] == ONE)


@pytest.mark.parametrize("after_s", [1, 3, 5])
def test_wherever_the_power_fails_a_late_device_ends_with_the_release(
    fleet: Fleet, after_s: int
) -> None:
    late = joins(fleet, "cam-3")
    fleet.run(after_s)
    late.crash()
    with fleet.controller_down():
        fleet.run(3)
    late.start()
    fleet.run(90, lambda: fleet.serving()["cam-3"] == ONE)
    fleet.run(30, lambda: deviating(fleet) == {})
