"""An imported release is an update like any other: verified, journalled, safe from power cuts."""

import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from devices import MODEL, Cloud
from scenario.offline_devices import NAME, BundleWriter, OfflineDevice
from scenario.power import How, Supply, run_until_cut
from scenario.update.test_power_cuts import SECONDS, STRIDE
from shoal import offline_bundle, wire
from shoal.agent.offline.io.cache import OfflineCache
from shoal.errors import (
    BundleError,
    MisdirectedError,
    SettingError,
    ShoalError,
    StaleError,
    StorageError,
    UntrustedError,
)
from shoal.offline_bundle import OfflineBundle
from shoal.sealed_message import BatchMessage
from shoal.trust import removal

pytestmark = [pytest.mark.scenario, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def disk(disk: Path) -> Iterator[Path]:
    """A folder in memory, for temporary files too."""
    before, scratch = tempfile.tempdir, disk / "scratch"
    scratch.mkdir()
    tempfile.tempdir = str(scratch)
    yield disk
    tempfile.tempdir = before


class Scene:
    """A device that serves release 1 and has lost the network, and a bundle with release 2."""

    def __init__(self, folder: Path) -> None:
        self.cloud, self.folder = Cloud(), folder
        self.writer = BundleWriter(folder, self.cloud)
        self.before = folder / "before"
        self.writer.enrol(self.before)
        device = OfflineDevice(self.before, self.cloud)
        for version in (7, 1):  # both slots are taken
            device.assign(self.cloud.release(version))
            device.run(SECONDS)
        assert device.serves() == "lot-codes@1"
        device.connect(up=False)
        device.run(15)
        device.stop()
        self.cloud.reachable = False
        self.order = self.cloud.release(2, counter=3)
        self.bundle = self.writer.write(folder / "bundle", self.writer.assignment(self.order))

    def device(self, name: str) -> OfflineDevice:
        """A copy of the device, switched off."""
        folder = self.folder / name
        shutil.copytree(self.before, folder, symlinks=True)
        device = OfflineDevice.__new__(OfflineDevice)
        device.__dict__["online"] = False
        OfflineDevice.__init__(device, folder, self.cloud)
        device.connect(up=False)
        device.stop()
        return device

    def copy(self, name: str) -> OfflineBundle:
        shutil.copytree(self.bundle.folder, self.folder / name)
        return OfflineBundle(self.folder / name)


@pytest.fixture(scope="module")
def scene(disk: Path) -> Scene:
    return Scene(disk)


@pytest.fixture
def device(scene: Scene, request: pytest.FixtureRequest) -> Iterator[OfflineDevice]:
    made = scene.device(f"device-{abs(hash(request.node.name))}")
    made.start()
    yield made
    made.stop()
    shutil.rmtree(made.folder, ignore_errors=True)


def test_a_release_that_was_imported_is_tried_committed_and_reported_once(
    scene: Scene, device: OfflineDevice
) -> None:
    device.import_bundle(scene.bundle)
    device.run(SECONDS)
    assert (device.state, device.serves()) == ("SUCCEEDED", "lot-codes@2")
    assert not OfflineCache(device.folder).exists
    device.import_bundle(scene.bundle)  # again
    device.run(SECONDS)
    device.report()
    states = device.states("r-2")
    assert states.count("SUCCEEDED") == 1
    assert len(states) == len(set(states))
    (reported,) = [m for m in device.faults() if m.cause == "folder-imported"]
    assert reported.detail.startswith("ana imported a bundle")


def test_a_removal_that_was_imported_is_done_and_reported(
    scene: Scene, device: OfflineDevice
) -> None:
    order = removal("lot-codes", rollout="u-1", attempt=1)
    bundle = scene.writer.write(device.folder.with_name("removal"), scene.writer.assignment(order))
    assert device.import_bundle(bundle).releases == []
    device.run(SECONDS)
    assert (device.state, device.serves()) == ("SUCCEEDED", "")
    device.report()
    assert device.states("u-1") == ["QUEUED", "REMOVING", "SUCCEEDED"]


def test_a_bad_release_that_was_imported_rolls_back(scene: Scene, device: OfflineDevice) -> None:
    device.failing = {2}
    device.import_bundle(scene.bundle)
    device.run(SECONDS)
    assert (device.state, device.serves()) == ("FAILED", "lot-codes@1")


def test_acks_that_were_imported_remove_their_messages_and_no_others(
    scene: Scene, device: OfflineDevice
) -> None:
    device.outbox.number_all()
    boot, waiting = device.outbox.boot, device.outbox.waiting
    seqs = [letter.seq for letter in device.outbox.after(0, 100)]
    assert waiting == len(seqs) > 0
    ack = wire.Ack(boot=boot, seqs=seqs[:1])
    foreign = wire.Ack(boot="other", seqs=seqs)
    letters = [BatchMessage("ack", wire.encode(m)) for m in (ack, foreign)]
    device.import_bundle(scene.writer.write(device.folder.with_name("acks"), *letters))
    device.requests_per_tick = 0
    device.run(2)
    left = {letter.seq for letter in device.outbox.after(0, 100)}
    assert set(seqs) - left == set(seqs[:1])


def test_a_new_root_of_the_director_comes_with_the_bundle_and_is_kept(
    scene: Scene, device: OfflineDevice
) -> None:
    newer, source = scene.writer.rotate_director_key(), scene.copy("rooted")
    letter = scene.writer.assignment(scene.order, signer="director-2")
    scene.writer.put_sealed(source, letter)
    with pytest.raises(UntrustedError):  # signed by a key that this device does not know
        device.import_bundle(source)
    scene.writer.put_sealed(source, letter, roots=[device_root(device), newer])
    device.import_bundle(source)
    device.run(SECONDS)
    assert device.serves() == "lot-codes@2"
    assert device_root(device) == newer


def device_root(device: OfflineDevice) -> bytes:
    return (device.folder / "director.json").read_bytes()


def test_a_root_that_the_one_before_did_not_sign_is_refused(
    scene: Scene, device: OfflineDevice
) -> None:
    forged_root, source = (
        scene.writer.rotate_director_key(signer="intruder"),
        scene.copy("uprooted"),
    )
    letter = scene.writer.assignment(scene.order, signer="director-2")
    scene.writer.put_sealed(source, letter, roots=[forged_root])
    before = device_root(device)
    with pytest.raises(UntrustedError):
        device.import_bundle(source)
    assert device_root(device) == before


def test_what_was_imported_gives_way_to_a_newer_order_that_the_network_delivered_meanwhile(
    scene: Scene, device: OfflineDevice
) -> None:
    device.import_bundle(scene.bundle)
    third = scene.cloud.release(3, counter=3)
    scene.cloud.reachable = True
    device.assign(third, version=scene.writer.version + 50)
    device.run(2 * SECONDS)
    scene.cloud.reachable = False
    assert device.serves() == "lot-codes@3"
    assert not OfflineCache(device.folder).exists


def test_a_clock_that_woke_in_1970_does_not_make_an_old_bundle_fresh(
    scene: Scene, device: OfflineDevice
) -> None:
    device.import_bundle(scene.bundle)
    device.run(2)
    old = scene.copy("old")
    scene.writer.put_sealed(old, scene.writer.assignment(scene.order, days=-1.0))
    device.clock.now = 0.0
    with pytest.raises(StaleError):
        device.import_bundle(old)


def forged(source: OfflineBundle, scene: Scene) -> None:
    path = source.folder / offline_bundle.DOWN / f"{NAME}.parcel"
    path.write_bytes(path.read_bytes().replace(b"lot-codes", b"lot-coded", 1))


def cut_short(name: str) -> Callable[[OfflineBundle, Scene], None]:
    def cut(source: OfflineBundle, scene: Scene) -> None:
        path = next(iter(sorted((source.folder / name).rglob("*.*"), reverse=True)))
        path.write_bytes(path.read_bytes()[:-7])

    return cut


def lost_blob(source: OfflineBundle, scene: Scene) -> None:
    (source.folder / offline_bundle.BLOBS / scene.order.sha256).unlink()


def changed_blob(source: OfflineBundle, scene: Scene) -> None:
    model = next(sha for sha, data in scene.cloud.blobs.items() if data.startswith(b"lot-codes 2"))
    path = source.folder / offline_bundle.BLOBS / model
    path.write_bytes(path.read_bytes()[::-1])


def short_blob(source: OfflineBundle, scene: Scene) -> None:
    model = next(sha for sha, data in scene.cloud.blobs.items() if data.startswith(b"lot-codes 2"))
    path = source.folder / offline_bundle.BLOBS / model
    path.write_bytes(path.read_bytes()[:-1])


def other_controller(source: OfflineBundle, scene: Scene) -> None:
    other = BundleWriter(scene.folder / f"other-{source.folder.name}", scene.cloud)
    other.put_sealed(source, scene.writer.assignment(scene.order))


def sealed_by_a_device(source: OfflineBundle, scene: Scene) -> None:
    folder = scene.folder / f"thief-{source.folder.name}"
    scene.writer.enrol(folder, "cam-9")
    from shoal.agent.offline.io.seal import seal
    from shoal.sealed_message import MessageBatch

    made = MessageBatch(
        device=NAME, made_s=0.0, trip="0" * 8, letters=[scene.writer.assignment(scene.order)]
    )
    source.write(f"{offline_bundle.DOWN}/{NAME}.parcel", seal(folder, made))


def no_label(source: OfflineBundle, scene: Scene) -> None:
    source.delete(offline_bundle.LABEL)


def for_another(source: OfflineBundle, scene: Scene) -> None:
    parcel = source.folder / offline_bundle.DOWN / f"{NAME}.parcel"
    parcel.rename(parcel.with_name("cam-2.parcel"))


def renamed_parcel(source: OfflineBundle, scene: Scene) -> None:
    scene.writer.put_sealed(
        source, scene.writer.assignment(scene.order, device="cam-2"), name="cam-2"
    )
    (source.folder / offline_bundle.DOWN / "cam-2.parcel").replace(
        source.folder / offline_bundle.DOWN / f"{NAME}.parcel"
    )


def another_label(source: OfflineBundle, scene: Scene) -> None:
    path = source.folder / offline_bundle.LABEL
    path.write_text(path.read_text().replace(scene.writer.authority.root_fingerprint, "0" * 64))


def not_the_director(source: OfflineBundle, scene: Scene) -> None:
    scene.writer.put_sealed(source, scene.writer.assignment(scene.order, signer="intruder"))


def an_old_order(source: OfflineBundle, scene: Scene) -> None:
    scene.writer.put_sealed(source, scene.writer.assignment(scene.order, version=1))


def an_expired_order(source: OfflineBundle, scene: Scene) -> None:
    scene.writer.put_sealed(source, scene.writer.assignment(scene.order, days=-1.0))


def an_unsigned_release(source: OfflineBundle, scene: Scene) -> None:
    from msgspec.structs import replace

    scene.writer.put_sealed(source, scene.writer.assignment(replace(scene.order, sha256="0" * 64)))


def a_link(source: OfflineBundle, scene: Scene) -> None:
    path = source.folder / offline_bundle.DOWN / f"{NAME}.parcel"
    path.unlink()
    path.symlink_to("/dev/zero")


def enormous(source: OfflineBundle, scene: Scene) -> None:
    with (source.folder / offline_bundle.DOWN / f"{NAME}.parcel").open("wb") as file:
        file.truncate(5 << 30)


def a_linked_folder(source: OfflineBundle, scene: Scene) -> None:
    path = source.folder / offline_bundle.METADATA
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def much_metadata(source: OfflineBundle, scene: Scene) -> None:
    for version in range(100, 104):
        with (source.folder / offline_bundle.METADATA / f"{version}.targets.json").open(
            "wb"
        ) as file:
            file.truncate(5 << 20)  # sparse: nothing on the disk, 20 MiB in memory


HOSTILE: list[tuple[Callable[[OfflineBundle, Scene], None], type[ShoalError]]] = [
    (forged, UntrustedError),
    (cut_short(offline_bundle.DOWN), BundleError),
    (cut_short(offline_bundle.METADATA), ShoalError),
    (lost_blob, BundleError),
    (changed_blob, BundleError),
    (short_blob, BundleError),
    (other_controller, UntrustedError),
    (sealed_by_a_device, UntrustedError),
    (no_label, SettingError),
    (another_label, MisdirectedError),
    (for_another, MisdirectedError),
    (renamed_parcel, MisdirectedError),
    (not_the_director, UntrustedError),
    (an_old_order, StaleError),
    (an_expired_order, StaleError),
    (an_unsigned_release, UntrustedError),
    (a_link, BundleError),
    (enormous, BundleError),
    (a_linked_folder, BundleError),
    (much_metadata, BundleError),
]


@pytest.mark.parametrize(("spoil", "error"), HOSTILE, ids=lambda it: it.__name__)
def test_a_bundle_that_is_not_whole_fresh_and_ours_is_refused_and_nothing_of_it_is_used(
    scene: Scene, device: OfflineDevice, spoil: Callable[..., None], error: type[ShoalError]
) -> None:
    source = scene.copy(f"spoilt-{spoil.__name__}-{device.folder.name}")
    spoil(source, scene)
    with pytest.raises(error) as caught:
        device.import_bundle(source)
    assert caught.value.hint
    device.run(SECONDS)
    assert device.serves() == "lot-codes@1"
    assert not OfflineCache(device.folder).exists
    assert device.record.state.name == "SUCCEEDED"  # of release 1
    device.report()
    attack = issubclass(caught.type, (UntrustedError, MisdirectedError, StaleError))
    reported = [m for m in device.faults() if "imported a bundle that was refused" in m.detail]
    assert bool(reported) == (attack and caught.type is not StaleError)
    damaged = [m for m in device.faults() if m.cause == "folder-damaged"]
    assert len(damaged) == issubclass(caught.type, BundleError)
    assert all(m.detail.startswith("ana imported a bundle that is damaged: ") for m in damaged)


def test_a_disk_without_room_for_it_is_reported_before_anything_is_copied(
    scene: Scene, device: OfflineDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 10 << 20))
    with pytest.raises(StorageError, match="make room"):
        device.import_bundle(scene.bundle)
    assert not OfflineCache(device.folder).exists


def test_files_that_no_controller_publishes_are_no_metadata(
    scene: Scene, device: OfflineDevice
) -> None:
    source = scene.copy("droppings")
    folder = source.folder / offline_bundle.METADATA
    for name in ("._timestamp.json", "x0.json", "1.Root.json"):
        with (folder / name).open("wb") as file:
            file.truncate(20 << 20)
    found = device.import_bundle(source)
    assert set(found.metadata) == {
        path.name for path in (scene.bundle.folder / offline_bundle.METADATA).iterdir()
    }


class Trip:
    """A copy of the device, and the import, repeated until it succeeded."""

    def __init__(self, scene: Scene, name: str) -> None:
        self.scene, self.device, self.imported = scene, scene.device(name), False

    def go(self, monkeypatch: pytest.MonkeyPatch, how: How = How.KEPT, cut: int = -1) -> Supply:
        supply = run_until_cut(self.device, self._import, monkeypatch, how, cut)
        self.device.clock.now += 5 * supply.dead
        return supply

    def _import(self) -> None:
        if not self.imported:
            self.device.import_bundle(self.scene.bundle)
            self.imported = True
        self.device.run(SECONDS)

    def check(self) -> None:
        """It serves the release, has reported each state once, and its cache is empty."""
        device = self.device
        device.start()
        assert (device.state, device.serves()) == ("SUCCEEDED", "lot-codes@2")
        assert not OfflineCache(device.folder).exists
        assert device.journal.floors().counters == {MODEL: 3}
        device.report()
        reported = device.states("r-2")
        assert len(reported) == len(set(reported)), f"reported twice: {reported}"
        assert reported[-1] == "SUCCEEDED"
        assert device.outbox.waiting == 0

    def end(self) -> None:
        self.device.stop()
        shutil.rmtree(self.device.folder, ignore_errors=True)


@pytest.mark.parametrize("how", How)
def test_wherever_the_power_fails_what_was_imported_is_installed_in_the_end(
    how: How, scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Trip(scene, f"whole-{how.value}")
    names = whole.go(monkeypatch).trace
    whole.check()
    whole.end()
    stride = 1 if STRIDE == 1 else 16
    for cut in range(list(How).index(how) * 5 % stride, len(names), stride):
        trip = Trip(scene, f"cut-{how.value}-{cut}")
        try:
            trip.go(monkeypatch, how, cut)
            trip.device.start()
            assert trip.device.serves() in ("lot-codes@1", "lot-codes@2")
            trip.device.stop()
            trip.go(monkeypatch)
            trip.check()
        except Exception as error:
            raise AssertionError(f"{how.value} at {cut}, {names[cut]!r}: {error}") from error
        trip.end()


def test_an_import_under_power_that_fails_again_and_again_is_survived(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in range(20 if STRIDE == 1 else 4):
        chance, trip = random.Random(seed), Trip(scene, f"again-{seed}")
        for _ in range(2):
            trip.go(monkeypatch, chance.choice(list(How)), chance.randrange(400))
        trip.go(monkeypatch)
        trip.check()
        trip.end()
