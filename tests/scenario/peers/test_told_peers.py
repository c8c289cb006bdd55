"""Which neighbours an assignment names: those of the site that share, and that are enrolled."""

import msgspec
import pytest
from sqlalchemy import select, update

from fakes import memory_folder
from fleet import Fleet
from shoal import wire
from shoal.controller.fleet import enrolment
from shoal.controller.rollouts import assignments
from shoal.controller.store import tables

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
        assignments.assign(db, fleet.ctx, device=name, release=release, rollout="r", attempt=1)
        query = select(tables.assignment.c.message).where(tables.assignment.c.device == name)
        return wire.decode_down("assignment", db.scalar(query))


def told(fleet, name):
    return assigned(fleet, name).peers


def test_a_device_that_shares_is_told_of_those_of_its_site_that_do(fleet):
    shares(fleet, a="10.0.0.1:8455", b="10.0.0.2:8455", d="10.9.9.9:8455")
    assert told(fleet, "a") == {"b": "10.0.0.2:8455"}
    assert told(fleet, "d") == {}
    assert told(fleet, "c") is msgspec.UNSET  # it does not share: nothing is added to its message


def test_who_was_decommissioned_is_not_named_any_more(fleet):
    shares(fleet, a="10.0.0.1:8455", b="10.0.0.2:8455", c="10.0.0.3:8455")
    enrolment.decommission(fleet.ctx, actor="ana", device="b")
    assert told(fleet, "a") == {"c": "10.0.0.3:8455"}


def test_of_a_name_that_was_given_away_the_neighbours_hear_which_enrolment_holds(fleet):
    shares(fleet, a="10.0.0.1:8455", b="10.0.0.2:8455", c="10.0.0.3:8455")
    assert assigned(fleet, "a").generations is msgspec.UNSET  # as before the field was there
    with fleet.ctx.store.write() as db:
        db.execute(update(tables.device).where(tables.device.c.name == "b").values(generation=2))
    assert assigned(fleet, "a").generations == {"b": 2}
    assert assigned(fleet, "d").generations is msgspec.UNSET


@pytest.mark.parametrize("odd", ["x" * 5_000, {"host": 1}, 7, [], ""])
def test_an_odd_address_makes_no_message_too_long(fleet, odd):
    shares(fleet, a="10.0.0.1:8455", b=odd)
    found = told(fleet, "a")
    assert all(isinstance(where, str) and len(where) <= 64 for where in found.values())
