"""Attack: the thief of the director's key signs orders that no device could carry out."""

from typing import Any

import msgspec
import pytest

from devices import Cloud, Device
from shoal import wire
from shoal.orders import Order, check_order
from shoal.trust import target_path

MALFORMED: dict[str, dict[str, Any]] = {
    "a model named as another folder": {"model": "../../etc"},
    "a model without a name": {"model": ""},
    "a model of a name as long as a book": {"model": "m" * 5_000},
    "a model of a name that a terminal obeys": {"model": "m\x1b[2J"},
    "a version below none": {"version": -1},
    "a version that no database holds": {"version": 10**30},
    "an attempt that no message holds": {"attempt": 2**60},
    "a rollout as long as a book": {"rollout": "r" * 5_000},
    "a manifest of endless bytes": {"length": 2**40},
    "a hash that is none": {"sha256": "../" * 21 + "x"},
    "a time that never comes": {"not_before_s": 10**30},
}


@pytest.mark.parametrize("kind", MALFORMED)
def test_an_order_with(kind: str, device: Device, cloud: Cloud) -> None:
    """... is refused before it is kept: what serves goes on, and the next order is carried out."""
    kept, floor = device.journal.assignment(), device.journal.floors().assignment
    order = msgspec.structs.replace(cloud.release(2), **MALFORMED[kind])
    path = target_path("release", order.model, order.version)
    device.assign(msgspec.structs.replace(order, path=path))
    device.run(3)
    assert device.serves() == "lot-codes@1"
    assert device.journal.assignment() == kept
    assert device.journal.floors().assignment == floor
    assert [fault.severity for fault in device.faults()] == ["critical"]
    device.restart()
    assert device.serves() == "lot-codes@1"
    device.assign(cloud.release(3))
    device.run(40)
    assert device.serves() == "lot-codes@3"


def test_an_order_that_an_older_agent_has_kept_does_not_end_this_one(
    device: Device, cloud: Cloud
) -> None:
    bad = msgspec.structs.replace(
        cloud.release(2), model="../x", path="release/../x/2/manifest.json"
    )
    signed = cloud.repository.orders("cam-1", 9, [bad])
    payload = wire.encode(wire.Assignment(signed=signed, urls={}))
    device.journal.save_assignment(payload, device.journal.floors())
    device.restart()
    assert device.serves() == "lot-codes@1"


def test_two_releases_of_one_model_are_no_order(device: Device, cloud: Cloud) -> None:
    device.assign(cloud.release(2), cloud.release(3))
    device.run(5)
    assert device.serves() == "lot-codes@1"
    assert "two releases" in device.faults()[-1].detail


def test_no_well_formed_order_is_taken_for_a_malformed_one(cloud: Cloud) -> None:
    order: Order = cloud.release(2)
    check_order(order)
    check_order(msgspec.structs.replace(order, not_before_s=4e9, deadline_s=4e9, attempt=2**53))
