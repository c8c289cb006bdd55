"""The error of a device, on both sides: it stands as long as its cause, and no longer."""

import pytest

from fakes import memory_folder
from fleet import Fleet
from shoal import topics
from shoal.agent.host.faults import DISK_OVER_S, FEED_OVER_S, OVER_S, Fault, disk_fault, ended
from shoal.controller.fleet import devices
from shoal.controller.ingest.ingest import ingest
from shoal.controller.store.tables import device

pytestmark = pytest.mark.scenario


@pytest.fixture
def fleet():
    with memory_folder() as folder:
        fleet = Fleet(folder, window_s=60.0)
        fleet.station("cam-1", ring="canary")
        fleet.run(3)
        yield fleet


def error(fleet):
    return devices.get_device(fleet.ctx, "cam-1").error


def faults(fleet):
    return fleet.stations["cam-1"].agent.status().faults


def meet(fleet, fault):
    fleet.stations["cam-1"].agent.on_fault(fault)
    fleet.run(2)


def test_a_fault_that_is_said_to_be_over_is_over_everywhere(fleet):
    meet(fleet, Fault("certificate", "the controller refused to renew it"))
    fleet.run(2 * OVER_S, step=60.0)
    assert error(fleet) == "the controller refused to renew it", "it lasts"
    assert faults(fleet) == ["certificate: the controller refused to renew it"]
    meet(fleet, ended("certificate"))
    assert (error(fleet), faults(fleet)) == ("", [])
    meet(fleet, Fault("certificate", "refused again"))
    assert error(fleet) == "refused again", "at once: it is another one"


@pytest.mark.parametrize(
    ("fault", "after_s"),
    [
        (Fault("nan", "temp is NaN"), OVER_S),
        (disk_fault("outbox.db: database or disk is full"), DISK_OVER_S),
        (Fault("feed-down", "opcua 'press': no response"), FEED_OVER_S),
    ],
)
def test_a_fault_that_is_not_met_again_is_over(fleet, fault, after_s):
    for _ in range(3):
        meet(fleet, fault)
        fleet.run(after_s - 20, step=10.0)
        assert error(fleet) == fault.detail
    fleet.run(60, step=10.0)
    assert (error(fleet), faults(fleet)) == ("", [])


def test_the_end_of_one_fault_leaves_the_error_of_another(fleet):
    meet(fleet, Fault("certificate", "not renewed"))
    meet(fleet, Fault("pressure", "too hot"))
    meet(fleet, ended("certificate"))
    assert error(fleet) == "too hot"
    assert faults(fleet) == ["pressure: too hot"]


def test_a_new_process_of_the_agent_starts_without_the_faults_of_the_last_one(fleet):
    meet(fleet, Fault("pressure", "too hot"))
    station = fleet.stations["cam-1"]
    station.crash()
    fleet.run(2)
    assert error(fleet) == "too hot"
    station.start()
    fleet.run(3)
    assert error(fleet) == ""


def test_an_error_of_an_update_outlives_a_restart(fleet):
    with fleet.ctx.store.write() as db:
        db.execute(device.update().values(error="lot@2: too-slow: 9 ms"))
    fleet.stations["cam-1"].crash()
    fleet.stations["cam-1"].start()
    fleet.run(3)
    assert error(fleet) == "lot@2: too-slow: 9 ms"


def test_a_rejected_message_is_an_error_until_a_window_is_accepted(fleet):
    one = fleet.roll_out(fleet.release())
    fleet.run(120, lambda: fleet.states(one.id) == {"cam-1": "SUCCEEDED"})
    ingest(fleet.ctx, [(topics.up("cam-1", "event"), b"\xc1")])
    assert error(fleet).startswith("a message was rejected")
    fleet.run(130, step=10.0)
    assert error(fleet) == ""


def test_the_end_of_a_fault_is_on_the_timeline_and_is_no_error(fleet):
    meet(fleet, Fault("pressure", "too hot"))
    meet(fleet, ended("pressure"))
    events = devices.timeline(fleet.ctx, "cam-1")
    over = next(event for event in events if event.facts.get("ended"))
    assert (over.kind, over.state, over.cause) == ("fault", "info", "pressure")
