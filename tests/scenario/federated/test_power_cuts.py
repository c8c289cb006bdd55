"""The power fails before, in and after every durable write and every effect of a device's round.

As in test_power_cuts.py the points are found by an undisturbed run. Whatever fails, the device
comes back, the controller asks again, and the update that arrives is the one that was paid for.
"""

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from learning_devices import FakeController, RoundDevice, attempt_of, some_rows
from scenario.power import How, Supply, run_until_cut
from shoal import wire
from shoal.agent.installed.record import RoundState
from shoal.federated import messages
from shoal.federated.plan import Privacy
from shoal.federated.spending import Budget

pytestmark = [pytest.mark.scenario, pytest.mark.timeout(600)]

PRIVACY = Privacy(where="local", clip=1.0, noise=1.0)
ROUNDS = (1, 2)


def lead(device: RoundDevice, invites: Mapping[int, wire.RoundCall]) -> None:
    """What the controller says, again and again, until both rounds are through."""
    for number in ROUNDS:
        known = device.journal.participation()
        if known.last.get("digits-at-home", 0) > number:
            continue
        part = known.part
        mine = part is not None and part.attempt == attempt_of(number)
        if mine and part is not None and part.state is RoundState.OVER:
            continue
        if not mine:
            device.receive(invites[number])
        device.call(number, messages.Start())
        device.call(number, messages.Resend())
        device.call(number, messages.Dismiss())


@pytest.fixture(scope="module")
def controller(disk: Path) -> FakeController:
    return FakeController(disk / "fleet")


@pytest.fixture
def device(controller: FakeController, disk: Path) -> Iterator[RoundDevice]:
    made = RoundDevice(controller, "cam-1", some_rows(40), budget=Budget(epsilon=100.0))
    made.stop()
    yield made
    shutil.rmtree(made.folder, ignore_errors=True)


def run(
    device: RoundDevice,
    invites: Mapping[int, wire.RoundCall],
    monkeypatch: pytest.MonkeyPatch,
    how: How = How.KEPT,
    cut: int = -1,
) -> Supply:
    """One life that may be cut, and one that is not."""
    return run_until_cut(device, lambda: lead(device, invites), monkeypatch, how, cut)


@pytest.mark.parametrize("how", list(How))
def test_wherever_the_power_fails_a_round_is_answered_once_and_paid_for_before_it_is_sent(
    controller: FakeController,
    device: RoundDevice,
    disk: Path,
    monkeypatch: pytest.MonkeyPatch,
    how: How,
) -> None:
    invites = {number: controller.invite(number, privacy=PRIVACY) for number in ROUNDS}
    kept = disk / "kept"
    shutil.copytree(device.folder, kept)
    points = run(device, invites, monkeypatch).trace
    assert len(points) > 60
    for cut in range(0, len(points), 1 if how is How.LOST else 5):
        shutil.rmtree(device.folder)
        shutil.copytree(kept, device.folder)
        device.sent.clear()
        run(device, invites, monkeypatch, how, cut)
        sent_before = pieces(device)
        paid = paid_rounds(device)
        assert set(sent_before) <= set(range(1, paid + 1)), points[cut]
        run(device, invites, monkeypatch)
        assert paid_rounds(device) == len(ROUNDS), points[cut]
        for number in ROUNDS:
            digests = set(pieces(device).get(number, []))
            assert len(digests) == 1, (points[cut], number)
        left = {path.name for path in (device.folder / "learning" / "rounds").glob("*")}
        assert left <= {attempt_of(2).hex()}, points[cut]
    shutil.rmtree(kept)


def pieces(device: RoundDevice) -> dict[int, list[bytes]]:
    """Digests of what went up, by round."""
    found: dict[int, list[bytes]] = {}
    for answer in device.sent:
        if isinstance(answer.said, messages.Piece):
            number = int.from_bytes(answer.attempt)
            found.setdefault(number, []).append(answer.said.chunk.digest)
    return found


def paid_rounds(device: RoundDevice) -> int:
    device.start()
    rounds = device.journal.participation().ledger.rounds
    device.stop()
    return rounds
