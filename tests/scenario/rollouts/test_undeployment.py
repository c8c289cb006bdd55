"""Undeployment: devices remove a model, and the controller shows how far they are."""

import statistics
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import insert

from fakes import memory_folder
from fleet import MODEL, Fleet
from shoal.controller.access import audit
from shoal.controller.fleet import enrolment
from shoal.controller.rollouts import assignments, rollouts, undeployments
from shoal.controller.rollouts.records import Selector, StagePlan, Undeployment
from shoal.controller.store import tables
from shoal.errors import AbsentError, ConflictError, InputError

pytestmark = pytest.mark.scenario

ALL = [StagePlan(name="all")]


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    """Two devices in the north and two in the south, all serving release 1."""
    with memory_folder() as folder:
        made = Fleet(folder)
        for name, site in {"n-1": "north", "n-2": "north", "s-1": "south", "s-2": "south"}.items():
            made.station(name, site=site)
        made.run(1)
        ident = made.roll_out(made.release(), ALL).id
        made.run(60, lambda: made.rollout(ident).state == "FINISHED")
        yield made
        made.ctx.store.close()


def undeploy(fleet: Fleet, **which: Any) -> str:
    return undeployments.start(fleet.ctx, actor="ana", model=MODEL, **which).id


def progress(fleet: Fleet, ident: str) -> Undeployment:
    return undeployments.get_undeployment(fleet.ctx, ident)


def states(fleet: Fleet, ident: str) -> dict[str, str]:
    found, _ = undeployments.undeployment_devices(fleet.ctx, ident)
    return {one.device: one.state for one in found}


def finished(fleet: Fleet, ident: str) -> bool:
    return progress(fleet, ident).state == "FINISHED"


def test_all_devices_remove_the_model_and_their_inventories_say_so(fleet: Fleet) -> None:
    ident = undeploy(fleet, all=True)
    fleet.run(30, lambda: finished(fleet, ident))
    assert {*fleet.serving().values()} == {""}
    assert {*states(fleet, ident).values()} == {"REMOVED"}
    done = progress(fleet, ident)
    assert (done.devices, done.removed, done.waiting, done.cannot) == (4, 4, 0, 0)
    assert all(row.releases == {} for row in fleet.rows_of(tables.device))
    [entry] = [e for e in audit.list_audit(fleet.ctx)[0] if e.verb == "model.undeploy"]
    assert (entry.actor, entry.subject) == ("ana", MODEL)
    assert entry.detail == {"undeployment": ident, "all": True}


@pytest.mark.parametrize(
    ("which", "gone"),
    [
        ({"devices": ["s-2"]}, {"s-2"}),
        ({"select": Selector(site="north")}, {"n-1", "n-2"}),
        ({"select": Selector(ring="stable", site="south")}, {"s-1", "s-2"}),
    ],
)
def test_only_the_devices_that_were_chosen_remove_it(
    fleet: Fleet, which: dict[str, Any], gone: set[str]
) -> None:
    ident = undeploy(fleet, **which)
    fleet.run(30, lambda: finished(fleet, ident))
    assert {name for name, release in fleet.serving().items() if not release} == gone
    assert {*states(fleet, ident)} == gone


def test_a_device_that_is_away_is_waited_for(fleet: Fleet) -> None:
    fleet.stations["n-1"].crash()
    ident = undeploy(fleet, all=True)
    fleet.run(30)
    assert states(fleet, ident)["n-1"] == "ORDERED"
    assert (progress(fleet, ident).state, progress(fleet, ident).waiting) == ("RUNNING", 1)
    fleet.stations["n-1"].start()
    fleet.run(30, lambda: finished(fleet, ident))


def test_an_old_agent_is_named_sent_nothing_and_removes_it_once_it_was_updated(
    fleet: Fleet,
) -> None:
    old = fleet.stations["n-2"]
    old.crash()
    old.facts = {}
    old.start()
    fleet.run(1)
    ident = undeploy(fleet, all=True)
    fleet.run(30)
    [one] = undeployments.undeployment_devices(fleet.ctx, ident, state="CANNOT")[0]
    assert (one.device, progress(fleet, ident).cannot) == ("n-2", 1)
    assert one.detail == "its agent does not know the order to remove a model: update the agent"
    assert fleet.serving()["n-2"] == f"{MODEL}@1"
    with fleet.ctx.store.read() as db:
        assert [order.removes for order in assignments.orders_of(db, "n-2")] == [False]
    old.crash()
    old.facts = {"removes": True}
    old.start()
    fleet.run(60, lambda: finished(fleet, ident))
    assert fleet.serving()["n-2"] == ""


def test_a_decommissioned_device_is_waited_for_no_longer(fleet: Fleet) -> None:
    fleet.stations["n-1"].crash()
    ident = undeploy(fleet, all=True)
    fleet.run(5)
    enrolment.decommission(fleet.ctx, actor="ana", device="n-1")
    fleet.run(40, lambda: finished(fleet, ident))
    assert states(fleet, ident)["n-1"] == "GONE"


def test_a_device_that_was_enrolled_anew_meanwhile_is_waited_for_no_longer(fleet: Fleet) -> None:
    fleet.stations["n-1"].crash()
    ident = undeploy(fleet, all=True)
    fleet.run(5)
    with fleet.ctx.store.write() as db:
        withdrawn = assignments.Change("n-1", MODEL)  # as an enrolment does
        assignments.change(db, fleet.ctx, [withdrawn])
    fleet.run(40, lambda: finished(fleet, ident))
    assert states(fleet, ident)["n-1"] == "CANCELED"


def test_a_rollout_must_have_ended_first_and_the_error_says_how(fleet: Fleet) -> None:
    two = fleet.roll_out(fleet.release(), ALL).id
    rollouts.pause(fleet.ctx, actor="ana", id=two)
    with pytest.raises(ConflictError) as refused:
        undeploy(fleet, all=True)
    assert refused.value.hint == f"end it first: shoal rollout abort {two}"


def test_a_rollout_afterwards_installs_again_and_ends_the_undeployment(fleet: Fleet) -> None:
    fleet.stations["s-1"].crash()
    ident = undeploy(fleet, all=True)
    fleet.run(20)
    two = fleet.roll_out(fleet.release(), ALL).id
    assert (progress(fleet, ident).state, progress(fleet, ident).reason) == (
        "CANCELED",
        f"superseded by {two}",
    )
    fleet.stations["s-1"].start()
    fleet.run(60, lambda: fleet.rollout(two).state == "FINISHED")
    assert {*fleet.serving().values()} == {f"{MODEL}@2"}


def test_a_second_undeployment_takes_over_the_devices_of_the_first(fleet: Fleet) -> None:
    fleet.stations["n-1"].crash()
    first = undeploy(fleet, devices=["n-1", "n-2"])
    fleet.run(20)
    second = undeploy(fleet, all=True)
    fleet.run(5)
    fleet.stations["n-1"].start()
    fleet.run(30, lambda: finished(fleet, first) and finished(fleet, second))
    assert states(fleet, first) == {"n-1": "CANCELED", "n-2": "REMOVED"}
    assert states(fleet, second) == {"n-1": "REMOVED", "s-1": "REMOVED", "s-2": "REMOVED"}


def test_canceling_orders_no_further_device(fleet: Fleet) -> None:
    ident = undeploy(fleet, all=True)
    undeployments.cancel(fleet.ctx, actor="ana", id=ident)
    fleet.run(10)
    assert {*fleet.serving().values()} == {f"{MODEL}@1"}
    with pytest.raises(ConflictError, match="CANCELED"):
        undeployments.cancel(fleet.ctx, actor="ana", id=ident)


def test_the_controller_may_be_away_while_devices_report(fleet: Fleet) -> None:
    ident = undeploy(fleet, all=True)
    fleet.engine.work()
    with fleet.controller_down():
        fleet.run(20)
    fleet.run(30, lambda: finished(fleet, ident))


@pytest.mark.parametrize(
    ("which", "error", "words"),
    [
        ({}, InputError, "which devices"),
        ({"all": True, "devices": ["n-1"]}, InputError, "which devices"),
        ({"devices": ["nobody"]}, AbsentError, "nobody"),
        ({"select": Selector(site="west")}, InputError, "none of the selected devices"),
    ],
)
def test_a_choice_that_makes_no_sense_is_refused(
    fleet: Fleet, which: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        undeploy(fleet, **which)


def test_a_large_fleet_is_ordered_in_transactions_that_hold_the_write_lock_briefly(
    fleet: Fleet, held_s: list[float]
) -> None:
    many = 1_200
    rows = [
        {
            "name": f"d-{i:05}", "site": "west", "labels": {}, "ring": "stable",
            "profile": "generic", "state": "enrolled", "enrolled_at": 1.0,
            "releases": {MODEL: f"{MODEL}@1"}, "variants": {}, "facts": {"removes": True},
        }
        for i in range(many)
    ]  # fmt: skip
    with fleet.ctx.store.write() as db:
        db.execute(insert(tables.device), rows)
    ident = undeploy(fleet, select=Selector(site="west"))
    held_s.clear()
    while progress(fleet, ident).state == "SELECTING" or "WAITING" in states_of(fleet, ident):
        undeployments.step_all(fleet.ctx)
    assert progress(fleet, ident).waiting == many
    assert len(held_s) > many / 60, "many transactions"
    assert statistics.median(held_s) < 0.1, "seconds"


def states_of(fleet: Fleet, ident: str) -> set[str]:
    with fleet.ctx.store.read() as db:
        return {*undeployments._counts(db, ident)}
