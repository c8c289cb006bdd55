"""Floors only rise, and a release is installed only where it fits."""

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices import MODEL, PROFILE, Cloud
from shoal.agent.installed.floors import Floors
from shoal.agent.serving.engine import Runtime
from shoal.agent.update.orders import (
    ShortError,
    UnsupportedError,
    check_fits,
    check_memory,
    check_runtime,
    in_range,
)
from shoal.errors import BundleError, ModelError, ShoalError, StaleError
from shoal.manifest import File, Manifest
from shoal.profile import profile

RUNTIME = Runtime("1.32.0", range(29).__contains__)
numbers = st.dictionaries(st.sampled_from("abc"), st.integers(0, 9))


@given(
    st.lists(st.fixed_dictionaries({"time_s": st.integers(0, 9), "counters": numbers})),
)
def test_floors_are_the_highest_that_was_ever_seen(raises: list[dict[str, Any]]) -> None:
    floors = Floors()
    for one in raises:
        floors = floors.raised(**one)
    assert floors.time_s == max((r["time_s"] for r in raises), default=0)
    for model in "abc":
        highest = max((r["counters"].get(model, 0) for r in raises), default=0)
        assert floors.counters.get(model, 0) == highest


@pytest.mark.parametrize(
    ("version", "wanted", "fits"),
    [
        ("1.32.0", ">=1.31", True),
        ("1.32.0", ">=1.31,<1.33", True),
        ("1.33.0", ">=1.31,<1.33", False),
        ("1.31.0", ">=1.31", True),
        ("1.9.0", ">=1.31", False),
        ("1.32.0", "==1.32", True),
        ("1.32.1", "!=1.32.1", False),
        ("1.32.1", "", True),
        ("1.32.0", "~=1.32", False),
        ("1.32.0", "soon", False),
    ],
)
def test_a_range_of_versions(version: str, wanted: str, fits: bool) -> None:
    assert in_range(version, wanted) is fits


def changed(**fields: object) -> Callable[[Manifest], Manifest]:
    return lambda manifest: msgspec.structs.replace(manifest, **fields)


def huge(manifest: Manifest) -> Manifest:
    variant = manifest.variants[0]
    file = msgspec.structs.replace(variant.file, size=1 << 30)
    return msgspec.structs.replace(
        manifest, variants=[msgspec.structs.replace(variant, file=file), *manifest.variants[1:]]
    )


MISFITS: dict[str, tuple[Callable[[Manifest], Manifest], type[ShoalError], str]] = {
    "of a lower counter": (changed(release_counter=2), StaleError, "stale"),
    "of another version": (changed(version=9), BundleError, "unusable-model"),
    "of another model": (changed(model="other"), BundleError, "unusable-model"),
    "for other profiles": (changed(profiles={}), UnsupportedError, "unsupported-profile"),
    "for another runtime": (changed(ort="<1.31"), ModelError, "unusable-model"),
    "of a newer opset": (changed(opset=29), ModelError, "unusable-model"),
    "too large for the board": (huge, ModelError, "unusable-model"),
}


@pytest.mark.parametrize("kind", MISFITS)
def test_a_release_does_not_fit_that_is(kind: str) -> None:
    change, error, _ = MISFITS[kind]
    cloud = Cloud()
    order = cloud.release(1, counter=3)
    manifest = change(cloud.manifest(1, 3, MODEL, b""))
    with pytest.raises(error):
        check_fits(
            manifest,
            order,
            profile=profile(PROFILE),
            runtime=RUNTIME,
            floors=Floors(counters={MODEL: 3}),
        )


def sized(mb: int) -> Manifest:
    """A release of which each variant has so many MB, most of them in a data file."""
    manifest = Cloud().manifest(1, 1, MODEL, b"")
    data = [File(name="w.bin", size=mb << 20, sha256="0" * 64)]
    variants = [msgspec.structs.replace(variant, data=data) for variant in manifest.variants]
    return msgspec.structs.replace(manifest, variants=variants)


@pytest.mark.parametrize(
    ("mb", "free_mb", "fits"),
    [(80, 200.0, True), (80, 140.0, False), (80, -5.0, False), (80, 0.0, True), (8, 1.0, True)],
    ids=["enough", "too little", "less than none", "unknown", "small"],
)
def test_a_large_release_is_refused_where_memory_is_short(
    mb: int, free_mb: float, fits: bool
) -> None:
    if fits:
        check_memory(sized(mb), profile(PROFILE), free_mb)
        return
    with pytest.raises(ShortError, match=r"about 152 MB of memory, and \d+ MB are left"):
        check_memory(sized(mb), profile(PROFILE), free_mb)


def test_a_release_that_fits_is_judged_by_its_own_opset_alone() -> None:
    asked: list[int] = []

    def loads(opset: int) -> bool:
        asked.append(opset)
        return True

    manifest = Cloud().manifest(1, 1, MODEL, b"")
    check_runtime(manifest, Runtime("1.32.0", loads))
    assert asked == [manifest.opset]


@pytest.mark.parametrize("newest", [13, 14, 28, 59, 60])
def test_the_newest_opset_is_found_by_asking(newest: int) -> None:
    assert Runtime("1.32.0", range(newest + 1).__contains__).newest() == newest


def test_an_unsupported_board_is_the_first_reason() -> None:
    cloud = Cloud()
    order = cloud.release(1)
    with pytest.raises(UnsupportedError, match="64-bit"):
        check_fits(
            cloud.manifest(1, 1, MODEL, b""),
            order,
            profile=profile("rpi3-armv7"),
            runtime=RUNTIME,
            floors=Floors(),
        )


def test_a_stored_time_of_a_wrong_clock_is_clamped_to_the_latest_plausible_one() -> None:
    floors = Floors(assignment=7, time_s=4.9e9)
    assert floors.until(2e9) == Floors(assignment=7, time_s=2e9)
    assert floors.until(5e9) == floors
