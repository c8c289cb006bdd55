"""The power fails before, in and after every durable write and every effect of an update.

The points are not listed here but found: one update runs undisturbed and notes each that it
passes (journal, outbox, slots, downloads, trust, probe, load, publish, and below these every
fsync and every call that changes a folder). Then the update runs once for each, and is cut there.
What is on the disk afterwards is told by power.py.
"""

import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from devices import MODEL, Cloud, Device
from scenario.power import How, Supply, run_until_cut
from shoal.agent.installed.floors import Floors

pytestmark = [pytest.mark.scenario, pytest.mark.timeout(600)]

SECONDS = 45
#: Every so manieth point with what the kernel may have written by chance; all of them in a soak.
STRIDE = 1 if os.environ.get("SHOAL_SOAK") else 8


def live_through_an_update(
    device: Device,
    orders: list[Any],
    monkeypatch: pytest.MonkeyPatch,
    how: How = How.KEPT,
    cut: int = -1,
) -> Supply:
    """Power on, and on until it has settled on release 2 or is cut; a cut takes five seconds."""

    def update() -> None:
        device.version = 2
        device.assign(*orders)
        device.run(SECONDS)

    supply = run_until_cut(device, update, monkeypatch, how, cut)
    device.clock.now += 5 * supply.dead
    return supply


class Story:
    """A device that serves release 1 and is told to run release 2; told the same after each cut.

    fail   the new release fails in service: it has to go back
    """

    def __init__(
        self, before: Path, cloud: Cloud, folder: Path, orders: list[Any], fail: bool = False
    ) -> None:
        shutil.copytree(before, folder, symlinks=True)
        self.orders = orders
        self.device = Device(folder, cloud)
        self.device.failing = {2} if fail else set()
        self.device.stop()

    def go(self, monkeypatch: pytest.MonkeyPatch, how: How = How.KEPT, cut: int = -1) -> Supply:
        """Power on, and on until it settles or is cut; then the device is off again."""
        return live_through_an_update(self.device, self.orders, monkeypatch, how, cut)

    def end(self) -> None:
        self.device.stop()
        shutil.rmtree(self.device.folder, ignore_errors=True)


@pytest.fixture(scope="module")
def stage(disk: Path) -> tuple[Cloud, Path, list[Any]]:
    """The cloud, a folder of a device that serves release 1, and the order for release 2."""
    cloud, folder = Cloud(), disk / "before"
    device = Device(folder, cloud)
    for version in (7, 1):  # both slots are taken
        device.assign(cloud.release(version))
        device.run(SECONDS)
        assert device.serves() == f"lot-codes@{version}"
    device.stop()
    order = cloud.release(2, counter=3)
    cloud.offer_deltas()
    cloud.deltas = {k: v for k, v in cloud.deltas.items() if len(v) < 500}  # some are worth it
    return cloud, folder, [order]


@pytest.fixture
def tell(stage: tuple[Cloud, Path, list[Any]], disk: Path) -> Iterator[Callable[..., Story]]:
    told: list[Story] = []

    def begin(**how: Any) -> Story:
        cloud, before, orders = stage
        told.append(Story(before, cloud, disk / f"story-{len(told)}", orders, **how))
        return told[-1]

    yield begin
    for story in told:
        story.end()


def check_on_return(story: Story, floors: Floors) -> None:
    """What must hold the moment the device is back, before anything else is reached."""
    device = story.device
    device.start()
    assert device.serves() in ("lot-codes@1", "lot-codes@2")
    assert device.infer() is not None
    now = device.journal.floors()
    assert now.assignment >= floors.assignment
    assert all(now.counters.get(k, 0) >= v for k, v in floors.counters.items())
    device.stop()


def check_at_the_end(story: Story, allowed: tuple[str, ...]) -> None:
    """It finished or rolled back, said each step once, and left nothing behind."""
    device = story.device
    device.start()
    assert device.state in allowed
    wanted = "lot-codes@2" if device.state == "SUCCEEDED" else "lot-codes@1"
    assert device.serves() == wanted
    assert device.slots.pointed(MODEL) == device.record.serving.slot
    told = device.states("r-2")
    assert len(told) == len(set(told)), f"reported twice: {told}"
    assert told[-1] == device.state
    assert device.outbox.waiting == 0
    left = {path.name for path in (device.folder / "models" / MODEL).iterdir()}
    assert left <= {"a", "b", "current"}
    assert not device.journal.lost
    if device.state == "SUCCEEDED":
        assert device.journal.floors().counters == {MODEL: 3}
    else:
        assert device.record.facts.get("outcome", "rolled_back") == "rolled_back"


def test_an_update_passes_every_kind_of_point(
    tell: Callable[..., Story], monkeypatch: pytest.MonkeyPatch
) -> None:
    passed = set(tell().go(monkeypatch).trace)
    for name in (
        "save", "save_floors", "save_assignment", "add", "install", "keep", "point", "load",
        "probe", "refresh", "check", "small", "file", "delta", "fsync", "rename", "publish",
        "replace", "mkdir", "unlink", "rmtree", "rmdir",
    ):  # fmt: skip
        assert {f"before {name}", f"after {name}"} <= passed
    assert {"during save", "during add", "during save_assignment"} <= passed
    assert any(name.startswith("downloading") for name in passed)


@pytest.mark.parametrize("how", How)
@pytest.mark.parametrize("fail", [False, True], ids=["good", "bad"])
def test_wherever_the_power_fails_the_device_comes_back_serving_a_verified_release(
    fail: bool, how: How, tell: Callable[..., Story], monkeypatch: pytest.MonkeyPatch
) -> None:
    allowed = ("FAILED",) if fail else ("SUCCEEDED",)
    whole = tell(fail=fail)
    names = whole.go(monkeypatch).trace
    check_at_the_end(whole, allowed)
    first = names.index("before save_assignment")
    last = len(names) - names[::-1].index("after save")
    stride = STRIDE // 2 or 1 if how is How.LOST and not fail else STRIDE
    for cut in range(first, last + 6, stride):
        story = tell(fail=fail)
        try:
            assert story.go(monkeypatch, how, cut).dead
            check_on_return(story, Floors())
            story.go(monkeypatch)
            check_at_the_end(story, allowed)
        except Exception as error:
            raise AssertionError(f"{how.value} at {cut}, {names[cut]!r}: {error}") from error
        story.end()


@pytest.mark.parametrize("seed", range(200 if STRIDE == 1 else 15))
def test_a_power_supply_that_fails_again_and_again_is_survived(
    seed: int, tell: Callable[..., Story], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Up to five cuts at random points: it finishes, or blames the release and rolls back."""
    chance = random.Random(seed)
    story = tell(fail=seed % 5 == 4)
    for _ in range(5):
        how = chance.choice(list(How))
        if not story.go(monkeypatch, how, chance.randrange(300)).dead:
            break
        check_on_return(story, Floors())
    story.go(monkeypatch)
    check_at_the_end(story, ("SUCCEEDED", "FAILED"))
    if story.device.state == "FAILED" and not story.device.failing:
        assert story.device.record.cause == "crash-loop"


@pytest.mark.parametrize("how", How)
def test_the_very_first_install_survives_as_well(
    how: How, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cloud = Cloud()
    order = cloud.release(2, counter=3)
    empty = disk / f"empty-{how.value}"
    empty.mkdir()
    for cut in range(0, 280, 2 if STRIDE == 1 else 7):
        story = Story(empty, cloud, disk / f"first-{how.value}-{cut}", [order])
        story.go(monkeypatch, how, cut)
        story.go(monkeypatch)
        story.device.start()
        assert (story.device.state, story.device.serves()) == ("SUCCEEDED", "lot-codes@2"), cut
        told = story.device.states("r-2")
        assert len(told) == len(set(told))
        story.end()
