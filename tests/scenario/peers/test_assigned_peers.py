"""Peers in an assignment: the enrolled devices of the site that share downloads."""

import msgspec
import pytest
from sqlalchemy import select, update

from fakes import memory_folder
from fleet import Fleet
from shoal import wire
from shoal.controller.fleet import enrolment
from shoal.controller.rollouts import assignments
from shoal.controller.store import rollout_tables, tables

pytestmark = pytest.mark.scenario


@pytest.fixture
def fleet():
    with memory_folder() as folder:
        made = Fleet(folder)
        made.release()
        for name, site in (("a", "north"), ("b", "north"), ("c", "north"), ("d", "south")):
            made.station(name, site=site, start=False)
        yield made


def shares(fleet, **addresses):
    with fleet.ctx.store.write() as db:
        for name, where in addresses.items():
            row = update(tables.device).where(tables.device.c.name == name)
            db.execute(row.values(facts={"peer": where, "cores": 4}))


def assigned(fleet, name):
    with fleet.ctx.store.write() as db:
        release = assignments.signed_release(db, "lot-codes@1")
        order = assignments.order_of(release, rollout="r", attempt=1)
        assignments.change(db, fleet.ctx, [assignments.Change(name, "lot-codes", order)])
        query = select(rollout_tables.assignment.c.message).where(
            rollout_tables.assignment.c.device == name
        )
        return wire.decode_down("assignment", db.scalar(query))


def peers_of(fleet, name):
    return assigned(fleet, name).peers


def test_a_device_that_shares_receives_the_peers_of_its_site(fleet):
    shares(fleet, a="10.0.0.1:8455", b="10.0.0.2:8455", d="10.9.9.9:8455")
    assert peers_of(fleet, "a") == {"b": "10.0.0.2:8455"}
    assert peers_of(fleet, "d") == {}
    assert (
        peers_of(fleet, "c") is msgspec.UNSET
    )  # it does not share: nothing is added to its message


def test_a_decommissioned_device_is_no_peer_any_more(fleet):
    shares(fleet, a="10.0.0.1:8455", b="10.0.0.2:8455", c="10.0.0.3:8455")
    enrolment.decommission(fleet.ctx, actor="ana", device="b")
    assert peers_of(fleet, "a") == {"c": "10.0.0.3:8455"}


def test_of_a_name_that_was_given_away_the_peers_receive_the_generation_of_the_current_enrolment(
    fleet,
):
    shares(fleet, a="10.0.0.1:8455", b="10.0.0.2:8455", c="10.0.0.3:8455")
    assert assigned(fleet, "a").generations is msgspec.UNSET  # as before the field was there
    with fleet.ctx.store.write() as db:
        db.execute(update(tables.device).where(tables.device.c.name == "b").values(generation=2))
    assert assigned(fleet, "a").generations == {"b": 2}
    assert assigned(fleet, "d").generations is msgspec.UNSET


@pytest.mark.parametrize("odd", ["x" * 5_000, {"host": 1}, 7, [], ""])
def test_an_odd_address_makes_no_message_too_long(fleet, odd):
    shares(fleet, a="10.0.0.1:8455", b=odd)
    found = peers_of(fleet, "a")
    assert all(isinstance(where, str) and len(where) <= 64 for where in found.values())
