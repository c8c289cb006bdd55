"""Going back from the very first release of a model: a device then serves nothing."""

from collections.abc import Iterator

import pytest

from fakes import memory_folder
from fleet import MODEL, Fleet, Station
from shoal.controller.rollouts import rollouts
from shoal.controller.rollouts.records import RolloutDevice, StagePlan

pytestmark = pytest.mark.scenario

ALL = [StagePlan(name="all")]


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    with memory_folder() as folder:
        made = Fleet(folder)
        for name in ("cam-1", "cam-2", "cam-3"):
            made.station(name)
        made.run(1)
        yield made
        made.ctx.store.close()


def make_old(fleet: Fleet, name: str) -> Station:
    """The agent of this device becomes one of an earlier version, that knows no removal."""
    one = fleet.stations[name]
    one.crash()
    one.facts = {}
    one.start()
    fleet.run(1)
    return one


def served_by_all(fleet: Fleet) -> str:
    """A paused rollout of the first release, which every device serves."""
    ident = fleet.roll_out(fleet.release(), ALL).id
    everywhere = {f"{MODEL}@1"}
    fleet.run(60, lambda: {*fleet.serving().values()} == everywhere)
    rollouts.pause(fleet.ctx, actor="ana", id=ident)
    return ident


def members(fleet: Fleet, ident: str) -> dict[str, RolloutDevice]:
    return {one.device: one for one in rollouts.rollout_devices(fleet.ctx, ident)[0]}


def go_back(fleet: Fleet, ident: str) -> dict[str, RolloutDevice]:
    rollouts.abort(fleet.ctx, actor="ana", id=ident, rollback=True)
    fleet.run(60, lambda: fleet.rollout(ident).state == "ROLLED_BACK")
    return members(fleet, ident)


def test_devices_that_had_no_release_before_are_ordered_to_remove_it(fleet: Fleet) -> None:
    found = go_back(fleet, served_by_all(fleet))
    assert fleet.serving() == {"cam-1": "", "cam-2": "", "cam-3": ""}
    assert {one.detail for one in found.values()} == {"removed: it serves none"}
    assert {one.state for one in found.values()} == {"CANCELED"}
    assert not list((fleet.stations["cam-1"].folder / "models").iterdir())


def test_an_agent_that_knows_no_removal_keeps_the_release_and_the_reason_says_so(
    fleet: Fleet,
) -> None:
    make_old(fleet, "cam-2")
    found = go_back(fleet, served_by_all(fleet))
    assert fleet.serving() == {"cam-1": "", "cam-2": f"{MODEL}@1", "cam-3": ""}
    assert found["cam-2"].detail == (
        "had no release before, and its agent does not know the order to remove one (update it): "
        "keeps the release, without an order"
    )


def test_a_device_that_served_this_release_before_the_rollout_keeps_it(fleet: Fleet) -> None:
    first = fleet.roll_out(fleet.release(), ALL).id
    fleet.run(60, lambda: fleet.rollout(first).state == "FINISHED")
    fleet.stations["cam-3"].crash()
    again = fleet.roll_out(f"{MODEL}@1", [StagePlan(name="all", min_executed=3)]).id
    fleet.run(20)
    assert fleet.states(again)["cam-1"] == "ALREADY_INSTALLED"
    found = go_back(fleet, again)
    fleet.stations["cam-3"].start()
    fleet.run(20)
    assert {*fleet.serving().values()} == {f"{MODEL}@1"}
    assert found["cam-1"].detail == (
        "had this release before the rollout: keeps the release, without an order"
    )


def test_a_device_that_is_away_removes_it_when_it_is_back(fleet: Fleet) -> None:
    ident = served_by_all(fleet)
    fleet.stations["cam-3"].crash()
    rollouts.abort(fleet.ctx, actor="ana", id=ident, rollback=True)
    fleet.run(60)
    assert members(fleet, ident)["cam-3"].state == "ASSIGNED"
    fleet.stations["cam-3"].start()
    fleet.run(30)
    assert fleet.serving()["cam-3"] == ""
    assert members(fleet, ident)["cam-3"].detail == "removed: it serves none"


def test_a_device_in_the_middle_of_the_first_install_ends_without_it(fleet: Fleet) -> None:
    ident = fleet.roll_out(fleet.release(), ALL).id
    fleet.run(60, lambda: "OBSERVING" in fleet.states(ident).values())
    go_back(fleet, ident)
    fleet.run(30)
    assert {*fleet.serving().values()} == {""}


def test_after_going_back_the_next_release_is_rolled_out_as_usual(fleet: Fleet) -> None:
    go_back(fleet, served_by_all(fleet))
    ident = fleet.roll_out(fleet.release(), ALL).id
    fleet.run(60, lambda: fleet.rollout(ident).state == "FINISHED")
    assert {*fleet.serving().values()} == {f"{MODEL}@2"}
