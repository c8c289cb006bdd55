"""Calls of a round reach an agent as they come from the broker, and its answers go there."""

from pathlib import Path

import pytest

from devices import Cloud, Device
from learning_devices import attempt_of
from shoal import topics, wire
from shoal.federated import messages

CALL = wire.RoundCall(attempt=attempt_of(1), said=messages.Start())


@pytest.fixture
def device(tmp_path: Path) -> Device:
    return Device(tmp_path / "cam-1", Cloud())


def answers(device: Device) -> list[wire.RoundAnswer]:
    return [m for m in device.received if isinstance(m, wire.RoundAnswer)]


def test_an_agent_without_learning_refuses_with_a_reason(device: Device) -> None:
    device.deliver("round", wire.encode(CALL))
    device.run(2)
    (answer,) = answers(device)
    assert answer.said == messages.Refuse(reason="not-enabled")
    assert (answer.attempt, answer.seq, answer.device) == (attempt_of(1), 0, "cam-1")


def test_a_dismissal_is_not_answered(device: Device) -> None:
    call = wire.RoundCall(attempt=attempt_of(1), said=messages.Dismiss())
    device.deliver("round", wire.encode(call))
    device.run(2)
    assert answers(device) == []


def test_a_call_that_cannot_be_read_is_a_fault_and_no_more(device: Device) -> None:
    device.deliver("round", b"\x00nonsense")
    device.run(2)
    assert [fault.cause for fault in device.faults()] == ["unreadable-message"]
    assert topics.down("cam-1", "round").endswith("/down/round")
