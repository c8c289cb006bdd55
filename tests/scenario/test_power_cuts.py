"""The power fails before and after every durable write and every effect of an update.

The points are not listed here but found: one update runs undisturbed and notes each that it
passes (journal, outbox, slots, downloads, trust, probe, load, publish, and below these every
fsync, rename and removal of a folder). Then the update runs once for each, and is cut there.
"""

import os
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from devices import MODEL, Cloud, Device, Power, PowerCut
from shoal.agent.orders import Floors

pytestmark = [pytest.mark.scenario, pytest.mark.timeout(300)]

SECONDS = 60


class Story:
    """A device that serves release 1 and is told to run release 2; told the same after each cut."""

    def __init__(self, before: Path, cloud: Cloud, folder: Path, orders: list[Any]) -> None:
        shutil.copytree(before, folder, symlinks=True)
        self.orders = orders
        self.device = Device(folder, cloud)
        self.heard: list[Any] = []
        self.device.heard = self.heard

    def go(self, power: Power, monkeypatch: pytest.MonkeyPatch) -> bool:
        """Power on, and on until it settles; whether the power held."""
        self.device.stop()
        try:
            with monkeypatch.context() as patch:
                supply_disk(power, patch)
                self.device.start(power)
                self.device.version = 1
                self.device.assign(*self.orders)
                self.device.run(SECONDS)
        except PowerCut:
            self.device.clock.now += 5
            return False
        return True


def supply_disk(power: Power, patch: pytest.MonkeyPatch) -> None:
    """A point before and after every call that makes something durable."""
    patch.setattr(os, "fsync", _supplied(power, "fsync", lambda descriptor: None))
    for owner, name in ((Path, "replace"), (Path, "rename"), (shutil, "rmtree")):
        patch.setattr(owner, name, _supplied(power, name, getattr(owner, name)))


def _supplied(power: Power, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
    def supplied(*args: Any, **kwargs: Any) -> Any:
        power.point(f"before {name}")
        result = real(*args, **kwargs)
        power.point(f"after {name}")
        return result

    return supplied


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder in memory where there is one: these tests lose power, not the disk's cache."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path_factory.mktemp("disk")
        return
    with tempfile.TemporaryDirectory(dir=memory, prefix="shoal-") as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def stage(disk: Path) -> tuple[Cloud, Path, list[Any]]:
    """The cloud, a folder of a device that serves release 1, and the order for release 2."""
    cloud, folder = Cloud(), disk / "before"
    device = Device(folder, cloud)
    device.assign(cloud.release(1))
    device.run(SECONDS)
    assert device.serves() == "lot-codes@1"
    device.stop()
    return cloud, folder, [cloud.release(2, counter=3)]


@pytest.fixture
def tell(stage: tuple[Cloud, Path, list[Any]], disk: Path) -> Iterator[Callable[[], Story]]:
    told: list[Story] = []

    def begin() -> Story:
        cloud, before, orders = stage
        story = Story(before, cloud, disk / f"cut-{len(told)}", orders)
        told.append(story)
        return story

    yield begin
    for story in told:
        story.device.stop()
        shutil.rmtree(story.device.folder, ignore_errors=True)


def check_on_return(story: Story, floors: Floors) -> None:
    """What must hold the moment the device is back, before anything else is reached."""
    device = story.device
    assert device.serves() in ("lot-codes@1", "lot-codes@2")
    assert device.infer() is not None
    now = device.journal.floors()
    assert now.assignment >= floors.assignment
    assert all(now.counters.get(k, 0) >= v for k, v in floors.counters.items())


def check_at_the_end(story: Story, allowed: tuple[str, ...] = ("SUCCEEDED",)) -> None:
    device = story.device
    assert device.state in allowed
    wanted = "lot-codes@2" if device.state == "SUCCEEDED" else "lot-codes@1"
    assert device.serves() == wanted
    assert device.slots.pointed(MODEL) == device.record.serving.slot
    told = device.states("r-2")
    assert len(told) == len(set(told)), f"reported twice: {told}"
    assert told[-1] == device.state
    assert device.outbox.waiting == 0
    assert not (device.folder / "models" / MODEL / "stage").exists()
    if device.state == "SUCCEEDED":
        assert device.journal.floors().counters == {MODEL: 3}


def points(tell: Callable[[], Story], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every point that an undisturbed update passes, in order."""
    power, story = Power(), tell()
    assert story.go(power, monkeypatch)
    check_at_the_end(story)
    return power.trace


def test_an_update_passes_every_kind_of_point(
    tell: Callable[[], Story], monkeypatch: pytest.MonkeyPatch
) -> None:
    passed = set(points(tell, monkeypatch))
    for name in (
        "save", "save_floors", "save_assignment", "add", "install", "verify_stage", "point", "load",
        "probe", "refresh", "check", "small", "file", "fsync", "rename", "replace", "publish",
    ):  # fmt: skip
        assert {f"before {name}", f"after {name}"} <= passed
    assert any(name.startswith("downloaded") for name in passed)


def test_wherever_the_power_fails_the_device_comes_back_serving_a_verified_release(
    tell: Callable[[], Story], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = points(tell, monkeypatch)
    first = names.index("before save_assignment")
    last = len(names) - names[::-1].index("after save")
    for cut in range(first, last + 6):
        story = tell()
        floors = story.device.journal.floors()
        assert not story.go(Power(cut), monkeypatch), names[cut]
        story.device.restart()
        try:
            check_on_return(story, floors)
            story.device.version = 1
            story.device.assign(*story.orders)
            story.device.run(SECONDS)
            check_at_the_end(story)
        except AssertionError as error:
            raise AssertionError(f"cut at {cut}, {names[cut]!r}") from error


@pytest.mark.parametrize("seed", range(12))
def test_a_power_supply_that_fails_again_and_again_is_survived(
    seed: int, tell: Callable[[], Story], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Up to five cuts at random points: it finishes, or blames the release and rolls back."""
    story, chance = tell(), random.Random(seed)
    for _ in range(5):
        floors = story.device.journal.floors()
        if story.go(Power(chance.randrange(150)), monkeypatch):
            break
        story.device.restart()
        check_on_return(story, floors)
    assert story.go(Power(), monkeypatch)
    check_at_the_end(story, ("SUCCEEDED", "FAILED"))
    if story.device.state == "FAILED":
        assert story.device.record.cause == "crash-loop"


def test_the_very_first_install_survives_as_well(
    disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cloud = Cloud()
    order = cloud.release(2, counter=3)
    for cut in range(0, 140, 5):
        device = Device(disk / f"first-{cut}", cloud)
        device.stop()
        with monkeypatch.context() as patch:
            power = Power(cut)
            supply_disk(power, patch)
            try:
                device.start(power)
                device.assign(order)
                device.run(SECONDS)
            except PowerCut:
                pass
        device.restart()
        device.version = 0
        device.assign(order)
        device.run(SECONDS)
        assert (device.state, device.serves()) == ("SUCCEEDED", "lot-codes@2"), cut
        told = device.states("r-2")
        assert len(told) == len(set(told))
