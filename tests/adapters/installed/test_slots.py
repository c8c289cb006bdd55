"""A stage becomes a slot: what was verified is not read again, unless it was touched since."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from real_models import put_release
from shoal import bundle
from shoal.agent.installed.io.slots import DiskSlots
from shoal.errors import BundleError

MODEL, PROFILE = "parts", "x86-vnni"


@pytest.fixture
def slots(tmp_path: Path) -> DiskSlots:
    """With a stage that holds a release."""
    made = DiskSlots(tmp_path / "models")
    put_release(made.path(MODEL, "stage"))
    return made


def ordered(slots: DiskSlots) -> str:
    """SHA-256 of the stage's manifest."""
    return bundle.sha256_of(slots.path(MODEL, "stage") / bundle.MANIFEST)


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that were read to be hashed."""
    read, real = list[str](), bundle.sha256_of
    monkeypatch.setattr(bundle, "sha256_of", lambda path: (read.append(path.name), real(path))[1])
    return read


def test_what_was_verified_and_not_touched_is_installed_without_being_read_again(
    slots: DiskSlots, hashed: list[str]
) -> None:
    sha256 = ordered(slots)
    slots.verify_stage(MODEL, sha256, PROFILE)
    assert "fp32.onnx" in hashed
    hashed.clear()
    slots.install(MODEL, "a", sha256, PROFILE)
    assert set(hashed) <= {bundle.MANIFEST}
    assert bundle.verify(slots.path(MODEL, "a"), PROFILE).model == MODEL


def flip(path: Path) -> None:
    """One bit, and the file says that nobody has written it."""
    before = path.stat()
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def replace(path: Path) -> None:
    other = path.with_suffix(".other")
    other.write_bytes(bytes(path.stat().st_size))
    other.replace(path)


def await_later(path: Path) -> None:
    """Until the file system's clock, which goes in steps, has gone on since `path` was written."""
    clock = path.parents[2] / "clock"
    clock.touch()
    while clock.stat().st_mtime_ns <= path.stat().st_ctime_ns:
        clock.touch()


@pytest.mark.parametrize("touch", [flip, replace, Path.unlink])
def test_what_was_touched_since_is_found_out_before_it_is_installed(
    touch: Callable[[Path], None], slots: DiskSlots
) -> None:
    sha256, model = ordered(slots), slots.path(MODEL, "stage") / "fp32.onnx"
    slots.verify_stage(MODEL, sha256, PROFILE)
    await_later(model)
    touch(model)
    with pytest.raises(BundleError):
        slots.install(MODEL, "a", sha256, PROFILE)
    assert not model.exists()
    assert not slots.path(MODEL, "a").exists()


def test_after_a_start_everything_is_read_again(slots: DiskSlots, hashed: list[str]) -> None:
    sha256 = ordered(slots)
    slots.verify_stage(MODEL, sha256, PROFILE)
    hashed.clear()
    DiskSlots(slots.path(MODEL, "a").parents[1]).install(MODEL, "a", sha256, PROFILE)
    assert "fp32.onnx" in hashed
