"""Devices in a securely aggregated round: real certificates, masks of the trainer, refusals."""

from pathlib import Path

import msgspec
import numpy as np
import pytest

from digits import homes_of
from learning_devices import NOW, FakeController, RoundDevice, some_rows
from shoal import wire
from shoal.agent.federated.io.credentials import credentials_of
from shoal.agent.installed.record import RoundState
from shoal.controller.federated.secagg.server import SecAggServer
from shoal.federated import messages
from shoal.federated.config import secure_id, text_of
from shoal.federated.distributed import scale_for
from shoal.federated.fixed_point import FixedPoint
from shoal.federated.plan import Learning, Privacy, Secure
from shoal.federated.secure import Advert, Ending, Terms

COUNT = 5
SCALE = FixedPoint(clip=1.0, devices=COUNT, weight=500)
SECURE = Secure(degree=4, threshold=3, scale=SCALE)


class Class:
    """Five devices, and the controller between them."""

    def __init__(self, folder: Path, **plan: object) -> None:
        self.controller = FakeController(folder)
        self.homes, _ = homes_of(COUNT, np.random.default_rng(3), least=20)
        self.devices = {
            f"cam-{i}": RoundDevice(self.controller, f"cam-{i}", home)
            for i, home in enumerate(self.homes)
        }
        self.invite = self.controller.invite(1, **{"secure": SECURE, **plan})
        self.terms = terms_of(self.invite)

    def joined(self) -> dict[str, Advert]:
        for device in self.devices.values():
            device.receive(self.invite)
        adverts = {n: d.said(messages.Join)[0].advert for n, d in self.devices.items()}
        return {name: advert for name, advert in adverts.items() if advert is not None}

    def dealt(self, lost: str = "") -> SecAggServer:
        """Up to the masked updates; `lost` sends none."""
        adverts = self.joined()
        told = SecAggServer(self.terms, adverts, self.controller.theta.size + 1)
        for name, device in self.devices.items():
            device.call(1, messages.Start(roster=told.roster_for(name)))
            told.add_boxes(name, device.said(messages.Boxes)[0].boxes)
        for name, device in self.devices.items():
            if name != lost:
                device.call(1, messages.Deal(boxes=told.boxes_for(name)))
                told.add_masked(name, numbers_of(device))
        return told

    def started(self, name: str, adverts: dict[str, Advert]) -> list[messages.DeviceMessage]:
        """What a device answers when the controller hands these on."""
        told = SecAggServer(self.terms, adverts, 8)
        return self.devices[name].call(1, messages.Start(roster=told.roster_for(name)))

    def close(self, told: SecAggServer, ending: Ending) -> None:
        for name in ending.alive:
            self.devices[name].call(1, messages.Close(ending=ending))
            told.add_vote(name, self.devices[name].said(messages.Vote)[0].signature)
        for name in ending.alive:
            self.devices[name].call(1, messages.Pass(votes=told.votes_for(name)))
            told.add_shares(name, self.devices[name].said(messages.Shares)[0].shares)


def terms_of(invite: wire.RoundCall) -> Terms:
    """As a controller has them that signed this."""
    assert isinstance(invite.said, messages.Invite)
    round_id = secure_id(invite.attempt, text_of(invite.said.signed))
    return Terms(round_id=round_id, degree=4, threshold=3, least=3)


def refusal(answers: list[messages.DeviceMessage]) -> str:
    """Its reason, where nothing else was answered."""
    (said,) = answers
    assert isinstance(said, messages.Refuse)
    return said.reason


def numbers_of(device: RoundDevice) -> np.ndarray:
    return np.frombuffer(device.contribution().update, "<u4").astype(np.uint32)


@pytest.mark.parametrize("lost", ["", "cam-2"])
def test_the_sum_comes_out_and_no_update_does(tmp_path: Path, lost: str) -> None:
    cohort = Class(tmp_path)
    told = cohort.dealt(lost)
    ending = told.end()
    cohort.close(told, ending)
    mean, weight = SCALE.decode(told.value(), len(ending.alive))
    homes = dict(zip(cohort.devices, cohort.homes, strict=True))
    assert weight == sum(len(homes[name].y) for name in ending.alive)
    assert 0.01 < float(np.linalg.norm(mean)) < 10
    for name in ending.alive:
        assert not (cohort.devices[name].path(1) / "numbers").exists()
        said = cohort.devices[name].contribution()
        assert (said.examples, said.loss) == (0, 0.0)
        assert cohort.devices[name].state == RoundState.OPENED


def test_noise_that_is_distributed_is_in_the_sum_and_in_every_ledger(tmp_path: Path) -> None:
    privacy = Privacy(where="distributed", clip=2.0, noise=0.05)
    scale = scale_for(privacy, 1.0, COUNT, 3)
    cohort = Class(tmp_path, privacy=privacy, secure=Secure(degree=4, threshold=3, scale=scale))
    told = cohort.dealt()
    cohort.close(told, told.end())
    _, weight = scale.decode(told.value(), COUNT)
    assert weight == COUNT
    assert {d.journal.participation().ledger.rounds for d in cohort.devices.values()} == {1}


def test_a_second_ending_is_refused_and_the_same_one_is_answered_again(tmp_path: Path) -> None:
    cohort = Class(tmp_path)
    told = cohort.dealt()
    ending, device = told.end(), cohort.devices["cam-0"]
    first = device.call(1, messages.Close(ending=ending))
    assert device.call(1, messages.Close(ending=ending)) == first
    other = Ending(alive=[n for n in ending.alive if n != "cam-3"], dead=["cam-3"])
    refused = device.call(1, messages.Close(ending=other))
    assert refusal(refused) == "second-ending"
    assert device.call(1, messages.Pass(votes={})) == refused


def test_shares_are_the_same_again_whatever_votes_come_with_the_question(tmp_path: Path) -> None:
    cohort = Class(tmp_path)
    told = cohort.dealt()
    cohort.close(told, told.end())
    device = cohort.devices["cam-1"]
    assert device.call(1, messages.Pass(votes={})) == device.said(messages.Shares)[:1]


def test_shares_of_a_device_reported_both_alive_and_lost_are_not_revealed(tmp_path: Path) -> None:
    cohort = Class(tmp_path)
    told = cohort.dealt()
    both = Ending(alive=list(cohort.devices), dead=["cam-3"])
    answers = cohort.devices["cam-0"].call(1, messages.Close(ending=both))
    assert refusal(answers) == "alive-and-dead"
    assert told.end()


@pytest.mark.parametrize("state", ["joined", "shared", "sent", "voted"])
def test_a_device_that_restarted_refuses_and_never_opens_anything(
    tmp_path: Path, state: str
) -> None:
    cohort = Class(tmp_path)
    device = cohort.devices["cam-0"]
    ending = Ending(alive=list(cohort.devices), dead=[])
    if state == "joined":
        cohort.joined()
    else:
        told = cohort.dealt("cam-0" if state == "shared" else "")
        if state == "voted":
            device.call(1, messages.Close(ending=ending))
        assert told
    device.restart()
    for said in (messages.Deal(boxes={}), messages.Close(ending=ending), messages.Pass(votes={})):
        assert refusal(device.call(1, said)) == "restarted"
    assert not device.path(1).exists()


def test_an_advert_with_another_devices_certificate_is_refused(tmp_path: Path) -> None:
    cohort = Class(tmp_path)
    adverts = cohort.joined()
    stolen = msgspec.structs.replace(adverts["cam-1"], certificate=adverts["cam-2"].certificate)
    assert refusal(cohort.started("cam-0", {**adverts, "cam-1": stolen})) == "bad-signature"


def test_an_advert_of_another_fleets_ca_is_refused(tmp_path: Path) -> None:
    cohort = Class(tmp_path)
    adverts = cohort.joined()
    stranger = RoundDevice(FakeController(tmp_path / "elsewhere"), "cam-1", some_rows(20))
    stranger.receive(stranger.controller.invite(1, secure=SECURE))
    foreign = stranger.said(messages.Join)[0].advert
    assert foreign is not None
    assert refusal(cohort.started("cam-0", {**adverts, "cam-1": foreign})) == "bad-signature"


def test_an_expired_certificate_is_nobodys_identity(tmp_path: Path) -> None:
    cohort = Class(tmp_path)
    adverts = cohort.joined()
    cohort.controller.now = NOW + 91 * 86_400
    assert cohort.started("cam-0", adverts) != []
    assert isinstance(cohort.devices["cam-0"].sent[-1].said, messages.Refuse)


@pytest.mark.parametrize("key", [bytes(32), b"short", b""])
def test_a_neighbour_with_a_trap_for_a_key_costs_the_round_and_no_more(
    tmp_path: Path, key: bytes
) -> None:
    cohort = Class(tmp_path)
    adverts = cohort.joined()
    trap = cohort.devices["cam-1"]
    bare = msgspec.structs.replace(adverts["cam-1"], box=key, mask=key, signature=b"")
    credentials = credentials_of(trap.folder, lambda: NOW)
    signed = msgspec.structs.replace(
        bare, signature=credentials.sign(bare.signed(cohort.terms.round_id))
    )
    cohort.started("cam-0", {**adverts, "cam-1": signed})
    device = cohort.devices["cam-0"]
    assert isinstance(device.sent[-1].said, messages.Refuse)
    assert device.state == RoundState.REFUSED


def test_devices_that_were_asked_for_different_things_make_no_sum(tmp_path: Path) -> None:
    """One try, two configs: with a graph that learns nothing, a sum would be one's update."""
    cohort = Class(tmp_path)
    other = cohort.controller.invite(1, secure=SECURE, learning=Learning(lr=1e-9))
    cohort.devices["cam-3"].receive(other)
    adverts = cohort.joined()
    assert other.attempt == cohort.invite.attempt
    for name, device in cohort.devices.items():
        assert refusal(cohort.started(name, adverts)) in ("bad-signature", "neighbours")
        assert not device.said(messages.Boxes)
