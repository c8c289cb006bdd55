"""Attack: the thief of the controller's online keys orders a release that was revoked."""

import shutil
from pathlib import Path

import pytest
from tuf.api.metadata import TargetFile

from devices import MODEL, Cloud, Device
from shoal.epochs import SecurityEpoch
from shoal.orders import Order

ROLE = f"release-{MODEL}"
#: Seconds in which an update is done.
UPDATE_S = 25


@pytest.fixture
def orders(device: Device, cloud: Cloud) -> dict[int, Order]:
    """Releases 1 to 3, all packed in the first epoch."""
    return {1: device.record.order, 2: cloud.release(2), 3: cloud.release(3)}


@pytest.fixture
def updated(device: Device, orders: dict[int, Order]) -> Device:
    """It served 1, then 2; 1 has been revoked, and an assignment has said so."""
    device.assign(orders[2])
    device.run(UPDATE_S)
    device.cloud.repository.revoke(MODEL, 1)
    device.assign(orders[2], named={MODEL: 2})
    device.run(3)
    return device


def refuses(device: Device, order: Order, cause: str) -> bool:
    device.assign(order)
    device.run(5)
    found = (device.state, device.record.cause, device.serves())
    return found == ("REJECTED", cause, "lot-codes@2")


def takes(device: Device, order: Order) -> bool:
    device.assign(order)
    device.run(UPDATE_S)
    return device.serves() == order.release


def test_a_device_learns_of_the_epoch_without_an_update(updated: Device) -> None:
    floors = updated.journal.floors()
    assert (floors.counters[MODEL], floors.revoked) == (2, {MODEL: [1]})
    assert (updated.serves(), updated.state) == ("lot-codes@2", "SUCCEEDED")
    assert updated.states("r-2").count("QUEUED") == 1


def test_the_directors_key_cannot_order_it_and_others_of_its_epoch_can_be(
    updated: Device, orders: dict[int, Order], cloud: Cloud
) -> None:
    assert refuses(updated, orders[1], "revoked")
    assert updated.record.detail.startswith("lot-codes@1 was revoked")
    assert "revoked" in [fault.cause for fault in updated.faults()]
    for order in (orders[3], cloud.release(4, counter=2), orders[2]):
        assert takes(updated, order)


@pytest.mark.parametrize("cache", ["kept", "deleted"])
def test_release_metadata_of_the_epoch_before_is_refused_even_with_every_online_key(
    cache: str, updated: Device, orders: dict[int, Order]
) -> None:
    """The thief signs timestamp, snapshot and order, and lists what the offline key once signed."""
    repository, stolen = updated.cloud.repository, orders[1]
    again = TargetFile(stolen.length, {"sha256": stolen.sha256}, stolen.path)
    repository.releases[ROLE][stolen.path] = again
    repository.epochs.clear()
    repository.publish()
    if cache == "deleted":
        shutil.rmtree(updated.folder / "metadata")
        updated.restart()
    assert refuses(updated, stolen, "revoked")
    assert refuses(updated, orders[3], "stale")


def test_what_the_director_says_of_epochs_raises_no_floor(
    updated: Device, orders: dict[int, Order]
) -> None:
    for named in ({MODEL: 0}, {MODEL: 2**54}, {MODEL: "2"}, [MODEL]):
        updated.assign(orders[3], named=named)
        updated.run(3)
        assert updated.state == "SUCCEEDED", "not even read"
    updated.assign(orders[2], named={MODEL: 2**53})
    updated.clock.now += 700
    updated.run(3)
    assert updated.journal.floors().counters == {MODEL: 2}
    assert takes(updated, orders[3])


def test_the_automation_key_cannot_shut_out_what_its_owner_signs(
    tmp_path: Path, cloud: Cloud
) -> None:
    canary = Device(tmp_path / "canary", cloud, ring="canary")
    cloud.repository.epochs[f"candidate-{MODEL}"] = SecurityEpoch(epoch=2**53)
    assert takes(canary, cloud.release(7, role="candidate", counter=2**53))
    assert takes(canary, cloud.release(8))


def test_a_damaged_slot_does_not_bring_it_back(updated: Device) -> None:
    slot = updated.slots.path(MODEL, updated.record.serving.slot)
    (slot / "int8-u8s8-pc.onnx").write_bytes(b"\x00" * 99)
    updated.restart()
    assert updated.serves() == ""
    updated.run(UPDATE_S)
    assert updated.serves() == "lot-codes@2"
