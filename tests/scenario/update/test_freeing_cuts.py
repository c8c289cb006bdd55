"""The power fails while room is made: of the old slot, of what an install left, of a stage that
nobody wants any more. What serves is never touched, and in the end nothing is left over."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from devices import MODEL, Cloud, Device
from scenario.power import How, Supply, run_until_cut
from scenario.update.test_disk_room import left_of, needed, trained, whole_slots
from scenario.update.test_power_cuts import SECONDS, STRIDE
from shoal.agent.host.ports import RESERVE
from shoal.agent.installed.io.slots import DiskSlots
from shoal.errors import LinkError
from shoal.orders import Order

pytestmark = [pytest.mark.scenario, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def scene(disk: Path) -> tuple[Cloud, Path, Order]:
    """The cloud, a folder of a device that serves release 1 and has 7 besides, an order for 2."""
    cloud, folder = Cloud(), disk / "full"
    device = Device(folder, cloud)
    for version in (7, 1):
        device.assign(cloud.release(version, weights=trained(version)))
        device.run(SECONDS)
        assert device.serves() == f"lot-codes@{version}"
    device.stop()
    return cloud, folder, cloud.release(2, counter=3, weights=trained(2))


@pytest.fixture
def copy(scene: tuple[Cloud, Path, Order], disk: Path) -> Iterator[Callable[[], Device]]:
    """A device as in the scene, off."""
    cloud, before, _ = scene
    made: list[Device] = []

    def begin() -> Device:
        folder = disk / f"freeing-{len(made)}"
        shutil.copytree(before, folder, symlinks=True)
        made.append(Device(folder, cloud))
        made[-1].stop()
        return made[-1]

    yield begin
    for device in made:
        device.stop()
        shutil.rmtree(device.folder, ignore_errors=True)


def update(device: Device, orders: Sequence[Order]) -> Callable[[], None]:
    """Tell it the same orders in every life."""

    def work() -> None:
        device.version = 2
        device.assign(*orders)
        device.run(SECONDS)

    return work


def last(names: Sequence[str], name: str) -> int:
    """Where `name` is passed for the last time."""
    return len(names) - 1 - names[::-1].index(name)


def check_between(device: Device, serves: set[str]) -> None:
    """Back after a cut, before anything else is reached."""
    device.clock.now += 5
    device.start()
    assert device.serves() in serves
    assert device.infer() is not None
    device.stop()


def check_end(device: Device, state: str, serves: str) -> None:
    device.start()
    assert (device.state, device.serves()) == (state, serves)
    told = device.states("r-2")
    assert len(told) == len(set(told))
    assert told[-1] == state
    left, whole = left_of(device), whole_slots(device)
    # With the metadata's cache, which is not synced, a cut may take the proof that is made of it.
    assert left | {name for name in whole if name.endswith("/proof.json")} == whole


def each(
    begin: Callable[[], Device],
    names: Sequence[str],
    cuts: range,
    life: Callable[[Device, How, int], Supply],
    how: How,
    ends: tuple[str, str],
) -> None:
    """Cut a life at each point of `cuts`; the next one goes to its end."""
    for cut in cuts[:: 1 if how is How.LOST else STRIDE]:
        device = begin()
        try:
            assert life(device, how, cut).dead
            check_between(device, {"lot-codes@1", ends[1]})
            life(device, How.KEPT, -1)
            check_end(device, *ends)
        except Exception as error:
            raise AssertionError(f"{how.value} at {cut}, {names[cut]!r}: {error}") from error
        device.stop()


def while_it_cleans(
    begin: Callable[[], Device],
    life: Callable[[Device, How, int], Supply],
    how: How,
    ends: tuple[str, str],
) -> None:
    """Cut at each point after the attempt has ended, until all that it left is gone."""
    whole = begin()
    names = life(whole, How.KEPT, -1).trace
    check_end(whole, *ends)
    cuts = range(last(names, "before save"), last(names, "after clean") + 1)
    assert "after rmdir" in names[cuts.start : cuts.stop]
    each(begin, names, cuts, life, how, ends)


@pytest.mark.parametrize("how", How)
def test_the_old_slot_makes_room_for_a_download(
    how: How,
    scene: tuple[Cloud, Path, Order],
    copy: Callable[[], Device],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """There is just room for the new release once the oldest is gone."""
    cloud, _, order = scene
    room = RESERVE + needed(cloud, 2)

    def free(slots: DiskSlots) -> int:
        return room - any((slots.path(MODEL, "a") / "fp32.onnx").parent.glob("*"))

    monkeypatch.setattr(DiskSlots, "free_bytes", free)

    def life(device: Device, how: How, cut: int) -> Supply:
        return run_until_cut(device, update(device, [order]), monkeypatch, how, cut)

    whole = copy()
    names = life(whole, How.KEPT, -1).trace
    check_end(whole, "SUCCEEDED", "lot-codes@2")
    until = names.index("before file")
    since = last(names[:until], "after save")
    assert "after rmdir" in names[since:until]
    each(copy, names, range(since, until + 1), life, how, ("SUCCEEDED", "lot-codes@2"))


@pytest.mark.parametrize("how", How)
def test_the_stage_of_a_withdrawn_order(
    how: How,
    scene: tuple[Cloud, Path, Order],
    copy: Callable[[], Device],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cloud, _, order = scene
    real = cloud.get

    def get(url: str) -> bytes:
        if cloud.blobs.get(url.rpartition("/")[2]) == trained(2):
            raise LinkError("no route")
        return real(url)

    monkeypatch.setattr(cloud, "get", get)

    def life(device: Device, how: How, cut: int) -> Supply:
        def work() -> None:
            device.version = 2
            device.assign(order)
            device.run(5)
            device.assign()
            device.run(SECONDS)

        return run_until_cut(device, work, monkeypatch, how, cut)

    while_it_cleans(copy, life, how, ("CANCELED", "lot-codes@1"))


@pytest.mark.parametrize("how", How)
def test_the_slot_that_an_interrupted_install_has_set_aside(
    how: How,
    scene: tuple[Cloud, Path, Order],
    copy: Callable[[], Device],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Killed while it deletes the oldest release, it goes on: that goes after COMMITTED."""
    _, _, order = scene

    def life(device: Device, how: How, cut: int) -> Supply:
        return run_until_cut(device, update(device, [order]), monkeypatch, how, cut)

    names = life(copy(), How.KEPT, -1).trace
    install = names.index("before install")
    killed = install + names[install:].index("after unlink")

    def begin() -> Device:
        device = copy()
        assert life(device, How.KEPT, killed).dead
        assert (device.folder / "models" / MODEL / "a.old").exists()
        return device

    while_it_cleans(begin, life, how, ("SUCCEEDED", "lot-codes@2"))
