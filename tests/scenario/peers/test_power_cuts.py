"""A download from peers survives power cuts like any other."""

import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from devices import Cloud, Device
from scenario.power import How, Supply
from scenario.update.test_power_cuts import SECONDS, STRIDE, live_through_an_update
from shoal import manifest
from shoal.agent.peers.io import downloader
from shoal.agent.peers.io.downloader import PeerContext, PeerDownloads
from shoal.agent.peers.io.server import DownloadState
from shoal.agent.update.ports import UpdatePorts

pytestmark = [pytest.mark.scenario, pytest.mark.timeout(600)]


class PeerDevice(Device):
    """A Device with one peer, which is unreachable; the artifact server sends piece by piece."""

    def _update_ports(self) -> UpdatePorts:
        self._slept = 0.0
        context = PeerContext(
            folder=self.folder, me="cam-1", peers=lambda: {"cam-2": "127.0.0.1:1"},
            fault=lambda fault: None, wall=time.time, monotonic=lambda: self._slept,
            sleep=self._sleep, random=random.Random(1),
        )  # fmt: skip
        self.network = self.downloads
        self.downloads: Any = PeerDownloads(
            self.network, context, DownloadState(), lambda model: self.slots.path(model, "stage")
        )
        return super()._update_ports()

    def _sleep(self, seconds: float) -> None:
        self._slept += seconds


@pytest.fixture(scope="module")
def scene(disk: Path) -> Iterator[tuple[Cloud, Path, Any]]:
    """Releases of many small pieces, and a device that serves the first of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(manifest, "PIECE", 512)
        patch.setattr(downloader, "SMALL", 0)
        cloud, before = Cloud(), disk / "before"
        device = PeerDevice(before, cloud)
        device.assign(cloud.release(1))
        device.run(SECONDS)
        assert device.serves() == "lot-codes@1"
        device.stop()
        order = cloud.release(2, counter=3)
        assert any(file.chunks for file in cloud.manifest(2, 3, "lot-codes", b"").files())
        yield cloud, before, order


def lives(
    scene: tuple[Cloud, Path, Any], patch: pytest.MonkeyPatch, name: str, how: How, cut: int
) -> Supply:
    """One life that is cut, and one that is not; afterwards it serves release 2."""
    cloud, before, order = scene
    folder = before.with_name(name)
    shutil.copytree(before, folder, symlinks=True)
    device = PeerDevice(folder, cloud)
    device.stop()
    first = live_through_an_update(device, [order], patch, how, cut)
    live_through_an_update(device, [order], patch, how)
    device.start()
    assert (device.state, device.serves()) == ("SUCCEEDED", "lot-codes@2")
    told = device.states("r-2")
    assert len(told) == len(set(told))
    device.stop()
    shutil.rmtree(device.folder)
    return first


@pytest.mark.parametrize("how", How)
def test_wherever_the_power_fails_a_shared_download_ends_well(
    how: How, scene: tuple[Cloud, Path, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = lives(scene, monkeypatch, f"whole-{how.value}", how, -1).trace
    first = names.index("before save_assignment")
    last = len(names) - names[::-1].index("after keep")
    for cut in range(first, last + 2, 1 if STRIDE == 1 else 6):
        try:
            lives(scene, monkeypatch, f"{how.value}-{cut}", how, cut)
        except Exception as error:
            raise AssertionError(f"{how.value} at {cut}, {names[cut]!r}: {error}") from error
