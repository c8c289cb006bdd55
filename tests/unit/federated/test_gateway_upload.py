"""A contribution's way up: by way of the gateway, and directly as soon as that does not go."""

import hashlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

from learning_devices import FakeController, RoundDevice, some_rows
from shoal.agent.federated.ports import SiteSumFile
from shoal.agent.federated.upload import AGAIN_S, TRIES
from shoal.agent.installed.record import RoundState, SavedUpdate
from shoal.errors import LinkError, SettingError, UntrustedError
from shoal.federated import messages

GATEWAYS = {"north": "cam-1"}


class Collector:
    """Of a gateway whose site hands over what the test says. sums: who was in each; members: as it
    was opened for."""

    def __init__(self, controller: FakeController) -> None:
        self.controller, self.here, self.is_open = controller, set[str](), False
        self.members: Mapping[str, int] = {}
        self.sums, self.refuses = list[set[str]](), False

    def open(self, attempt: bytes, members: Mapping[str, int], limit: int) -> None:
        if self.refuses:
            raise SettingError("gateway: port in use", "choose another")
        self.is_open, self.members = True, members

    def received(self) -> frozenset[str]:
        return frozenset(self.here)

    def sum(self, attempt: bytes, members: Collection[str], size: int, most: int) -> SiteSumFile:
        self.sums.append(set(members))
        data = msgspec.msgpack.encode(messages.Contribution(update=b"", site=b"of some"))
        path = self.controller.folder.parent / "cam-1" / "learning" / "rounds" / attempt.hex()
        (path / "site-sum").write_bytes(data)
        return SiteSumFile(frozenset(members), SavedUpdate(digest=_digest(data), length=len(data)))

    def close(self) -> None:
        self.is_open = False


def _digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


class Lan:
    """says: what the gateway answers, a bool or an error, the last one again and again."""

    def __init__(self, *says: Any) -> None:
        self.says, self.given = list(says), list[bytes]()

    def hand_over(self, way: messages.GatewayRoute, attempt: bytes, data: bytes) -> bool:
        self.given.append(data)
        said = self.says.pop(0) if len(self.says) > 1 else self.says[0]
        if isinstance(said, Exception):
            raise said
        return said


@pytest.fixture
def controller(tmp_path: Path) -> FakeController:
    return FakeController(tmp_path)


def member(controller: FakeController, lan: Lan) -> RoundDevice:
    device = RoundDevice(controller, "cam-2", some_rows(30), more={"hand_over": lan.hand_over})
    device.receive(controller.invite(1, gateways=GATEWAYS))
    return device


def gateway(controller: FakeController) -> tuple[RoundDevice, Collector]:
    collector = Collector(controller)
    device = RoundDevice(controller, "cam-1", some_rows(30), more={"collector": collector})
    device.receive(controller.invite(1, gateways=GATEWAYS))
    return device, collector


def start(
    controller: FakeController, members: Collection[str] = (), **other: Any
) -> messages.Start:
    way = {
        "gateway": "cam-1", "address": "localhost:8456", "members": sorted(members),
        "close_s": controller.now + 100, "most": 100,
    }  # fmt: skip
    return messages.Start(way=messages.GatewayRoute(**way | other))


def later(device: RoundDevice, seconds: float = AGAIN_S) -> None:
    device.controller.now += seconds
    device.settle()


def test_a_member_hands_its_update_to_its_gateway_and_sends_nothing_up(
    controller: FakeController,
) -> None:
    lan = Lan(True)
    device = member(controller, lan)
    device.call(1, start(controller))
    assert device.state == RoundState.SENT
    assert device.said(messages.Piece) == []
    [given] = lan.given
    assert msgspec.msgpack.decode(given, type=messages.Contribution).examples == 30
    later(device)
    assert len(lan.given) == 1
    device.call(1, start(controller))  # asked again, it offers it again
    assert len(lan.given) == 2


def test_when_the_controller_names_no_way_any_more_it_goes_up_directly(
    controller: FakeController,
) -> None:
    lan = Lan(True)
    device = member(controller, lan)
    device.call(1, start(controller))
    device.call(1, messages.Start())
    assert device.contribution().examples == 30


def test_a_gateway_out_of_reach_is_tried_thrice_then_it_goes_up_directly(
    controller: FakeController,
) -> None:
    lan = Lan(LinkError("away"))
    device = member(controller, lan)
    device.call(1, start(controller))
    assert device.said(messages.Piece) == []
    for _ in range(TRIES):
        later(device)
    assert len(lan.given) == TRIES
    assert device.contribution().examples == 30
    assert len(device.said(messages.Piece)) == 1


def test_a_gateway_that_is_not_ready_is_asked_again(controller: FakeController) -> None:
    lan = Lan(False, False, True)
    device = member(controller, lan)
    device.call(1, start(controller))
    for _ in range(4):
        later(device)
    assert len(lan.given) == 3
    assert device.said(messages.Piece) == []


def test_another_at_the_gateways_address_is_reported_and_given_nothing(
    controller: FakeController,
) -> None:
    device = member(controller, Lan(UntrustedError("what answers as cam-1 is another")))
    device.call(1, start(controller))
    assert [fault.cause for fault in device.faults] == ["peer-untrusted"]
    assert device.contribution().examples == 30


def test_a_gateway_that_the_signed_plan_does_not_name_is_given_nothing(
    controller: FakeController,
) -> None:
    lan = Lan(True)
    device = member(controller, lan)
    device.call(1, start(controller, gateway="cam-9"))
    assert lan.given == []
    assert device.contribution().examples == 30


def test_a_gateway_sends_the_sum_once_everybodys_update_is_there(
    controller: FakeController,
) -> None:
    device, collector = gateway(controller)
    device.call(1, start(controller, {"cam-1", "cam-2", "cam-3"}))
    collector.here = {"cam-2"}
    later(device)
    assert collector.is_open
    assert device.said(messages.Piece) == []
    collector.here = {"cam-2", "cam-3"}
    later(device)
    assert collector.sums == [{"cam-1", "cam-2", "cam-3"}]
    assert device.contribution().site == b"of some"
    device.call(1, messages.Dismiss())
    assert not collector.is_open


def test_a_gateway_receives_the_enrolment_generation_of_its_members(
    controller: FakeController,
) -> None:
    device, collector = gateway(controller)
    device.call(1, start(controller, {"cam-1", "cam-2", "cam-3"}))
    assert collector.members == {"cam-1": 0, "cam-2": 0, "cam-3": 0}
    device.call(1, start(controller, {"cam-1", "cam-2", "cam-3"}, generations={"cam-3": 2}))
    assert collector.members == {"cam-1": 0, "cam-2": 0, "cam-3": 2}


def test_a_gateway_waits_for_no_device_after_it_closes(controller: FakeController) -> None:
    device, collector = gateway(controller)
    device.call(1, start(controller, {"cam-1", "cam-2", "cam-3"}))
    collector.here = {"cam-2"}
    later(device, 101)
    assert collector.sums == [{"cam-1", "cam-2"}]


def test_a_gateway_without_member_updates_sends_its_own(controller: FakeController) -> None:
    device, collector = gateway(controller)
    device.call(1, start(controller, {"cam-1", "cam-2"}))
    later(device, 101)
    assert collector.sums == []
    assert device.contribution().examples == 30


def test_a_device_that_has_sent_directly_is_left_out_of_the_next_sum(
    controller: FakeController,
) -> None:
    device, collector = gateway(controller)
    collector.here = {"cam-2", "cam-3"}
    device.call(1, start(controller, {"cam-1", "cam-2", "cam-3"}))
    device.call(1, start(controller, {"cam-1", "cam-3"}))
    assert collector.sums == [{"cam-1", "cam-2", "cam-3"}, {"cam-1", "cam-3"}]


def test_a_gateway_that_is_not_waited_for_any_more_sends_its_own(
    controller: FakeController,
) -> None:
    device, collector = gateway(controller)
    collector.here = {"cam-2"}
    device.call(1, start(controller, {"cam-1", "cam-2"}))
    device.sent.clear()
    device.call(1, messages.Start())
    assert device.contribution().examples == 30
    assert not collector.is_open


def test_a_gateway_that_cannot_listen_reports_a_fault_and_sends_its_own_update(
    controller: FakeController,
) -> None:
    device, collector = gateway(controller)
    collector.refuses = True
    device.call(1, start(controller, {"cam-1", "cam-2"}))
    assert [fault.cause for fault in device.faults] == ["no-gateway"]
    assert device.contribution().examples == 30


def test_a_gateway_that_restarts_sums_anew_and_sends_the_sum_from_its_first_piece(
    controller: FakeController,
) -> None:
    device, collector = gateway(controller)
    device.call(1, start(controller, {"cam-1", "cam-2"}))
    device.restart()
    device.call(1, messages.Resend(missing=[0]))
    assert device.contribution().examples == 30
    device.sent.clear()
    collector.here = {"cam-2"}
    device.call(1, start(controller, {"cam-1", "cam-2"}))
    assert device.contribution().site == b"of some"
