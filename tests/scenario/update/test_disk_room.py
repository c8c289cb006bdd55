"""Room on the disk: just enough, too little, gone on the way; and what is left lying about goes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from devices import MODEL, PROFILE, Cloud, Device
from shoal import bundle
from shoal import manifest as manifests
from shoal.agent.host.ports import RESERVE
from shoal.agent.update.io.download import HttpsDownloads
from shoal.errors import BundleError, StorageError

pytestmark = pytest.mark.scenario


@pytest.fixture
def device(tmp_path: Path, cloud: Cloud) -> Device:
    """A device that serves release 2 and has release 1 in the other slot."""
    device = Device(tmp_path / "device", cloud)
    for version in (1, 2):
        device.assign(cloud.release(version, weights=trained(version)))
        device.run()
    assert (device.serves(), release_in(device, "a")) == ("lot-codes@2", "lot-codes@1")
    return device


def trained(seed: int) -> bytes:
    """Weights as float32; another seed is a little more training."""
    start = np.random.default_rng(0).normal(size=20_000)
    return (start + 1e-4 * np.random.default_rng(seed).normal(size=20_000)).astype("<f4").tobytes()


def release_in(device: Device, slot: str) -> str:
    return bundle.read_manifest(device.slots.path(MODEL, slot)).release


def needed(cloud: Cloud, version: int) -> int:
    """Bytes that a device of this profile fetches of a release."""
    manifest = cloud.manifest(version, 1, MODEL, trained(version))
    return sum(file.size for file in manifest.files_for(PROFILE))


#: Of a stage: what is signed, a few kB that the reserve has room for.
SIGNED = (bundle.MANIFEST, "proof.json")


def left_of(device: Device) -> set[str]:
    """Everything under the model's folder, by its path there."""
    folder = device.folder / "models" / MODEL
    found = [path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()]
    return {str(path.relative_to(folder)) for path in found}


def whole_slots(device: Device) -> set[str]:
    """What should be there and nothing else: the files of two releases, their cards, the link."""
    found = {"current"}
    for slot in ("a", "b"):
        manifest = bundle.read_manifest(device.slots.path(MODEL, slot))
        names = [f.name for f in manifest.files_for(PROFILE)]
        names += [bundle.MANIFEST, "slot.json", "proof.json"]
        found |= {f"{slot}/{name}" for name in names}
    return found


@pytest.mark.parametrize(("short_by", "state"), [(0, "SUCCEEDED"), (1, "REJECTED")])
def test_room_is_enough_to_the_byte_for_a_third_release_beside_the_two(
    device: Device, cloud: Cloud, monkeypatch: pytest.MonkeyPatch, short_by: int, state: str
) -> None:
    room = needed(cloud, 3) + RESERVE - device.slots.size(MODEL, "a") - short_by
    monkeypatch.setattr(device.slots, "free_bytes", lambda: room)
    sent, before = device.downloads.sent, left_of(device)
    device.assign(cloud.release(3, weights=trained(3)))
    device.run()
    assert device.state == state
    if state == "REJECTED":
        assert device.record.cause == "disk-full"
        assert device.record.facts == {"need": needed(cloud, 3) + RESERVE, "free": room}
        assert "make room" in device.record.detail
        assert device.downloads.sent == sent, "no file was fetched"
        assert left_of(device) == before, "nothing was lost, nothing is left over"
        assert device.record.spare is not None
    assert device.serves() == ("lot-codes@3" if state == "SUCCEEDED" else "lot-codes@2")


def test_a_release_that_memory_is_too_short_for_is_refused_before_a_file_is_fetched(
    device: Device, cloud: Cloud
) -> None:
    device.headroom_mb = 100.0
    variants = cloud.manifest(3, 1, MODEL, trained(3)).variants
    data = [cloud.file("weights.bin", bytes(80 << 20))]
    sent = device.downloads.sent
    device.assign(
        cloud.release(3, variants=[msgspec.structs.replace(v, data=data) for v in variants])
    )
    device.run()
    assert (device.state, device.record.cause) == ("REJECTED", "too-big")
    assert "100 MB are left on this device" in device.record.detail
    assert (device.serves(), device.downloads.sent) == ("lot-codes@2", sent)


def test_the_data_files_of_a_model_come_with_it(device: Device, cloud: Cloud) -> None:
    variants = cloud.manifest(3, 1, MODEL, b"").variants
    data = [cloud.file("weights.bin", trained(3))]
    device.assign(
        cloud.release(3, variants=[msgspec.structs.replace(v, data=data) for v in variants])
    )
    device.run()
    assert device.serves() == "lot-codes@3"
    slot = device.slots.path(MODEL, device.slots.pointed(MODEL))
    assert (slot / "weights.bin").read_bytes() == trained(3)
    (slot / "weights.bin").write_bytes(trained(4))
    with pytest.raises(BundleError, match=r"weights\.bin"):
        bundle.verify(slot, PROFILE)


@pytest.mark.parametrize(("room", "stays"), [(0, True), (-1, False)])
def test_the_slot_to_be_overwritten_goes_early_only_where_room_is_short(
    device: Device, cloud: Cloud, monkeypatch: pytest.MonkeyPatch, room: int, stays: bool
) -> None:
    order = cloud.release(3, weights=trained(3))
    free = needed(cloud, 3) + RESERVE + room
    monkeypatch.setattr(device.slots, "free_bytes", lambda: free)
    seen = []
    real = device.power.point

    def look(name: str) -> None:
        if name.startswith("downloading"):
            seen.append(device.slots.path(MODEL, "a").exists())
        real(name)

    monkeypatch.setattr(device.power, "point", look)
    device.assign(order)
    device.run()
    assert device.serves() == "lot-codes@3"
    assert set(seen) == {stays}
    assert release_in(device, "b") == "lot-codes@2", "what served before is kept"


def test_a_probe_that_fails_where_room_was_short_leaves_what_serves(
    device: Device, cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device.slots, "free_bytes", lambda: needed(cloud, 3) + RESERVE - 1)
    device.measures = {name: {"worst_error": 9.0} for name in ("int8-u8s8-pc", "fp32")}
    device.assign(cloud.release(3, weights=trained(3)))
    device.run()
    assert (device.state, device.record.cause) == ("FAILED", "golden-mismatch")
    device.restart()
    assert device.serves() == "lot-codes@2"


def full_after(nth: int) -> Callable[..., int]:
    """A write that the disk refuses: the `nth` of all files that are fetched."""
    calls: list[int] = []
    real = HttpsDownloads.file

    def file(self: Any, *args: Any) -> int:
        calls.append(1)
        if len(calls) == nth:
            raise StorageError("int8.onnx: No space left on device", "make room on the disk")
        return real(self, *args)

    return file


@pytest.mark.parametrize("nth", [1, 2, 3])
def test_a_disk_that_fills_during_the_download_rejects_and_what_came_makes_room(
    device: Device, cloud: Cloud, monkeypatch: pytest.MonkeyPatch, nth: int
) -> None:
    before = left_of(device)
    with monkeypatch.context() as patch:
        patch.setattr(HttpsDownloads, "file", full_after(nth))
        device.assign(cloud.release(3))
        device.run()
    assert (device.state, device.record.cause) == ("REJECTED", "disk-full")
    assert left_of(device) == before
    assert device.serves() == "lot-codes@2"
    device.assign(cloud.release(4))
    device.run()
    assert device.serves() == "lot-codes@4"


def test_the_stage_goes_before_the_journal_needs_its_room(
    device: Device, cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The journal itself cannot be written while the stage fills the disk."""
    stage, real = device.slots.path(MODEL, "stage"), device.journal.save

    def save(record: Any) -> None:
        if record.state.name == "REJECTED" and stage.exists():
            raise StorageError("journal.db: disk full")
        real(record)

    monkeypatch.setattr(HttpsDownloads, "file", full_after(2))
    monkeypatch.setattr(device.journal, "save", save)
    device.assign(cloud.release(3))
    device.run()
    assert device.state == "REJECTED"


def test_a_delta_needs_no_more_room_than_the_file_that_it_makes(
    device: Device, cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = cloud.release(3, weights=trained(3))
    cloud.offer_deltas()
    stage, most = device.slots.path(MODEL, "stage"), [0]
    real = Path.write_bytes

    def weigh() -> None:
        if stage.exists():
            files = [path for path in stage.iterdir() if path.name not in SIGNED]
            most[0] = max(most[0], sum(path.stat().st_size for path in files))

    def write(self: Path, data: bytes) -> int:
        written = real(self, data)
        weigh()
        return written

    monkeypatch.setattr(Path, "write_bytes", write)
    point = device.power.point
    monkeypatch.setattr(device.power, "point", lambda name: (weigh(), point(name)))
    device.assign(order)
    device.run()
    facts = next(m.facts for m in device.updates()[::-1] if m.state == "DOWNLOADED")
    assert facts["saved_by_delta"] > 0
    assert 0 < most[0] <= needed(cloud, 3)


def test_after_an_update_there_are_the_files_of_two_releases_and_nothing_else(
    device: Device, cloud: Cloud
) -> None:
    for version in (3, 4):
        device.assign(cloud.release(version))
        device.run()
        assert left_of(device) == whole_slots(device)
    assert {release_in(device, slot) for slot in ("a", "b")} == {"lot-codes@3", "lot-codes@4"}


def test_half_a_download_that_was_superseded_leaves_nothing(device: Device, cloud: Cloud) -> None:
    stage = device.slots.path(MODEL, "stage")
    stage.mkdir()
    (stage / f"{'9' * 64}.part").write_bytes(b"of an older order")
    (stage / "fp32.onnx").write_bytes(b"the same name, another file")
    manifest = cloud.manifest(3, 1, MODEL, b"")
    kept = f"{manifest.golden.sha256}.part"
    (stage / kept).write_bytes(b"of this very release")
    device.slots.put_manifest(MODEL, manifests.encode(manifest))
    assert {path.name for path in stage.iterdir()} == {bundle.MANIFEST, kept}


def test_what_is_left_over_goes_at_the_start_and_never_a_slot(device: Device) -> None:
    models = device.folder / "models"
    before = left_of(device)
    for orphan in (f"{MODEL}/stage", f"{MODEL}/a.old", "forgotten/stage", "forgotten/b.old"):
        (models / orphan).mkdir(parents=True)
        (models / orphan / "x.part").write_bytes(b"x" * 100)
    (models / "lost+found").mkdir()
    (models / MODEL / "current.new").symlink_to("a")
    (models / MODEL / "b" / "slot.json.new").write_bytes(b"half")
    device.restart()
    assert left_of(device) == before == whole_slots(device)
    assert not list((models / "forgotten").iterdir())
    assert (models / "lost+found").exists()
    assert device.serves() == "lot-codes@2"


def test_a_stage_that_is_being_filled_stays_over_a_start(
    device: Device, cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lose_the_network(name: str) -> None:
        cloud.reachable = cloud.reachable and not name.startswith("downloading")

    monkeypatch.setattr(device.power, "point", lose_the_network)
    device.assign(cloud.release(3))
    device.run(3)
    assert device.state == "DOWNLOADING"
    stage = {path.name for path in device.slots.path(MODEL, "stage").iterdir()}
    assert len(stage) > 1
    device.restart()
    assert {path.name for path in device.slots.path(MODEL, "stage").iterdir()} == stage
    cloud.reachable = True
    device.run()
    assert device.serves() == "lot-codes@3"
