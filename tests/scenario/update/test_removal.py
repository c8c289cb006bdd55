"""The order to remove a model: a device may serve nothing, and is never half of it."""

import os
import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest

from devices import MODEL, PROFILE, Cloud, Device, Loader
from scenario.power import How, Supply, run_until_cut
from shoal import wire
from shoal.agent.serving.io.embedded import Follower
from shoal.agent.serving.served_model import ServedModel
from shoal.agent.update import effects
from shoal.errors import AbsentError, StorageError
from shoal.orders import Order
from shoal.profile import profile
from shoal.trust import removal
from shoal.wire import Health

pytestmark = [pytest.mark.scenario, pytest.mark.timeout(600)]

REMOVE = removal(MODEL, rollout="u-1", attempt=1)
SECONDS = 45
STRIDE = 1 if os.environ.get("SHOAL_SOAK") else 3


def settled_on(folder: Path, cloud: Cloud, *versions: int) -> Device:
    """A device that was ordered these releases in turn."""
    device = Device(folder, cloud)
    for version in versions:
        device.assign(cloud.release(version, counter=version))
        device.run(SECONDS)
        assert device.serves() == f"{MODEL}@{version}"
    return device


@pytest.fixture
def device(tmp_path: Path, cloud: Cloud) -> Device:
    return settled_on(tmp_path / "device", cloud, 1, 2)


def files_of(device: Device) -> list[Path]:
    return list((device.folder / "models").iterdir())


def test_an_ordered_removal_leaves_nothing_but_the_floors(device: Device) -> None:
    floors = device.journal.floors()
    device.assign(REMOVE)
    device.run()
    assert device.states("u-1") == ["QUEUED", "REMOVING", "SUCCEEDED"]
    assert (device.serves(), files_of(device)) == ("", [])
    assert device.journal.floors().counters == floors.counters == {MODEL: 2}
    last = device.updates()[-1]
    assert (last.release, last.facts) == ("", {"removed": f"{MODEL}@2"})
    inventory = [m for m in device.received if isinstance(m, wire.Inventory)][-1]
    assert inventory.installed == []
    assert inventory.floors[f"counter:{MODEL}"] == 2


def test_the_last_window_is_reported_and_later_requests_are_told_that_nothing_serves(
    device: Device,
) -> None:
    device.assign(REMOVE)
    device.run()
    assert device.windows()[-1].release == f"{MODEL}@2"
    with pytest.raises(AbsentError, match="release serving"):
        device.agent.serving[MODEL].infer(np.zeros((1, 2), np.float32))


def test_a_request_in_flight_is_answered_by_the_release_that_leaves(device: Device) -> None:
    """The model is removed while its session runs."""
    serving = device.agent.serving[MODEL]
    assert serving.engine is not None
    session, real = serving.engine.session, serving.engine.session.run

    def slow(rows: np.ndarray) -> np.ndarray:
        session.run = real  # type: ignore[method-assign]
        device.assign(REMOVE)
        device.run(3)
        assert serving.engine is None
        return real(rows)

    session.run = slow  # type: ignore[method-assign]
    assert serving.infer(np.zeros((1, 2), np.float32)).shape == (1, 3)
    assert device.state == "SUCCEEDED"


def test_the_same_removal_again_changes_nothing(device: Device) -> None:
    payload = device.assign(REMOVE)
    device.run()
    device.deliver("assignment", payload)
    device.restart()
    device.deliver("assignment", payload)
    device.run()
    assert device.states("u-1") == ["QUEUED", "REMOVING", "SUCCEEDED"]
    device.assign(msgspec.structs.replace(REMOVE, attempt=2))
    device.run()
    assert device.states("u-1")[3:] == ["QUEUED", "REMOVING", "SUCCEEDED"]
    assert (device.serves(), files_of(device)) == ("", [])


def test_a_later_order_installs_again_but_not_below_the_floor(device: Device, cloud: Cloud) -> None:
    device.assign(REMOVE)
    device.run()
    device.assign(msgspec.structs.replace(cloud.release(1, counter=1), rollout="r-old"))
    device.run()
    assert (device.serves(), device.record.cause) == ("", "stale")
    device.assign(cloud.release(3, counter=3))
    device.run()
    assert device.serves() == f"{MODEL}@3"


def test_a_removal_withdrawn_after_it_was_done_brings_nothing_back(device: Device) -> None:
    device.assign(REMOVE)
    device.run()
    device.assign()
    device.restart()
    device.run()
    assert (device.serves(), device.state) == ("", "SUCCEEDED")


def test_a_removal_ends_a_download_and_an_observation(device: Device, cloud: Cloud) -> None:
    device.assign(cloud.release(3, counter=3))
    device.run(5)
    assert device.state == "OBSERVING"
    device.assign(REMOVE)
    device.run()
    assert device.states("r-3")[-1] == "CANCELED"
    assert (device.serves(), device.states("u-1")[-1]) == ("", "SUCCEEDED")


def test_another_model_of_the_device_goes_on_serving(device: Device, cloud: Cloud) -> None:
    other = cloud.release(1, model="pumps")
    device.assign(cloud.release(2, counter=2), other)
    device.run()
    device.assign(REMOVE, other)
    device.run()
    engine = device.agent.serving["pumps"].engine
    assert engine is not None
    assert engine.manifest.release == "pumps@1"
    assert [path.name for path in files_of(device)] == ["pumps"]


@pytest.mark.parametrize("flaw", ["signature", "device", "older"])
def test_a_removal_is_verified_like_any_order(flaw: str, device: Device) -> None:
    repository, version = device.cloud.repository, device.version
    signed = {
        "signature": lambda: repository.orders("cam-1", version + 1, [REMOVE], signer="intruder"),
        "device": lambda: repository.orders("cam-2", version + 1, [REMOVE]),
        "older": lambda: repository.orders("cam-1", version - 1, [REMOVE]),
    }[flaw]()
    device.deliver("assignment", wire.encode(wire.Assignment(signed=signed, urls={})))
    device.run()
    assert device.serves() == f"{MODEL}@2"
    assert device.states("u-1") == []


def test_an_agent_that_knows_no_removal_refuses_the_order_and_goes_on_serving(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Order, "removes", property(lambda _: False))
    device.assign(REMOVE)
    device.run()
    assert device.serves() == f"{MODEL}@2"
    assert device.states("u-1") == ["QUEUED", "REJECTED"]
    assert device.record.cause == "misdirected"


def test_a_disk_that_refuses_is_tried_again_and_nothing_serves_meanwhile(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken:

        def refuse(model: str) -> None:
            raise StorageError("read-only file system")

        broken.setattr(device.slots, "remove", refuse)
        device.assign(REMOVE)
        device.run()
        assert (device.state, device.serves()) == ("REMOVING", "")
    device.run(600)
    assert (device.state, files_of(device)) == ("SUCCEEDED", [])


def test_a_program_that_follows_the_device_stops_serving_too(device: Device) -> None:
    serving = ServedModel(MODEL, clock=device.clock, timer=lambda: 0.0, lock=_NoLock())
    follower = Follower(
        serving, slots=device.slots, loader=Loader(device.slots, device), profile=profile(PROFILE)
    )
    follower.refresh()
    serving.infer(np.zeros((1, 2), np.float32))
    device.assign(REMOVE)
    device.run()
    window = follower.refresh()
    assert window is not None
    assert (window.release, serving.engine) == (f"{MODEL}@2", None)
    assert follower.refresh() is None
    device.assign(device.cloud.release(3, counter=3))
    device.run()
    follower.refresh()
    assert serving.engine is not None


class _NoLock:
    def __enter__(self) -> None: ...
    def __exit__(self, *_: object) -> None: ...


@pytest.mark.parametrize("how", How)
def test_wherever_the_power_fails_it_serves_or_is_removed_never_half(
    how: How, disk: Path, cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = disk / f"before-{how.value}"
    settled_on(before, cloud, 1, 2).stop()

    def live(folder: Path, cut: int = -1, how: How = How.KEPT) -> tuple[Device, Supply]:
        if not folder.exists():
            shutil.copytree(before, folder, symlinks=True)
        device = Device(folder, cloud)
        device.stop()

        def remove() -> None:
            device.version = 5
            device.assign(REMOVE)
            device.run(5)

        supply = run_until_cut(device, remove, monkeypatch, how, cut)
        device.clock.now += 5 * supply.dead
        return device, supply

    _, whole = live(disk / f"whole-{how.value}")
    names = whole.trace
    assert {"before remove", "after remove", "before rename", "before rmdir"} <= {*names}
    first = names.index("before save_assignment")
    for cut in range(first, len(names), 1 if how is How.LOST else STRIDE):
        folder = disk / f"cut-{how.value}-{cut}"
        try:
            _, supply = live(folder, cut, how)
            assert supply.dead
            back = Device(folder, cloud)
            assert back.serves() in ("", f"{MODEL}@2")
            decided = MODEL in back.journal.records() and back.state in ("REMOVING", "SUCCEEDED")
            assert bool(back.serves()) != (decided and back.record.order == REMOVE)
            back.stop()
            live(folder)
            end = Device(folder, cloud)
            assert (end.state, end.serves(), files_of(end)) == ("SUCCEEDED", "", [])
            assert end.journal.floors().counters == {MODEL: 2}
            assert not end.journal.lost
            end.stop()
        except Exception as error:
            raise AssertionError(f"{how.value} at {cut}, {names[cut]!r}: {error}") from error
        shutil.rmtree(folder)


def test_slots_that_are_gone_are_removed_again_without_an_error(device: Device) -> None:
    device.slots.remove(MODEL)
    device.slots.remove(MODEL)
    assert device.slots.pointed(MODEL) == ""
    assert effects.failed(effects.Effect.REMOVE, StorageError("full")).retry
    assert device.agent.serving[MODEL].swap(None, Health()) is not None
