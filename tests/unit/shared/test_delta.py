"""A delta makes exactly the new file, is small for weights trained on, and is never trusted."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal import delta
from shoal.errors import BundleError

RNG = np.random.default_rng(5)
WEIGHTS = (RNG.normal(size=30_000) * 0.05).astype(np.float32)
OLD = WEIGHTS.tobytes()
TRAINED = (WEIGHTS + RNG.normal(size=30_000) * 1e-4).astype(np.float32)


def quantized(weights: np.ndarray) -> bytes:
    return np.clip(np.round(weights / 0.0016), -127, 127).astype(np.int8).tobytes()


CASES = {
    "float32 weights, trained on": (WEIGHTS.tobytes(), TRAINED.tobytes(), 0.7),
    "at an odd place": (b"head" + b"er!" + WEIGHTS.tobytes(), b"HEADER!" + TRAINED.tobytes(), 0.7),
    "behind a longer header": (b"a" * 7 + WEIGHTS.tobytes(), b"b" * 12 + TRAINED.tobytes(), 0.7),
    "before a longer tail": (WEIGHTS.tobytes(), TRAINED.tobytes() + b"tail", 0.7),
    "int8 weights, trained on": (quantized(WEIGHTS), quantized(TRAINED), 0.3),
    "only the last layer": (OLD, OLD[:-2000] + TRAINED[-500:].tobytes(), 0.03),
    "pieces that moved": (OLD, OLD[36_000:] + OLD[:36_000], 0.02),
    "the same": (WEIGHTS.tobytes(), WEIGHTS.tobytes(), 0.01),
    "nothing in common": (WEIGHTS.tobytes(), RNG.bytes(50_000), 1.01),
    "of nothing": (b"", WEIGHTS.tobytes(), 1.0),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_it_makes_the_new_file_and_costs_little(name: str) -> None:
    old, new, share = CASES[name]
    made = delta.make(old, new)
    assert delta.apply(old, made, len(new)) == new
    assert len(made) <= share * len(new)


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=400), st.binary(max_size=400))
def test_any_file_is_made_of_any_other(old: bytes, new: bytes) -> None:
    assert delta.apply(old, delta.make(old, new), len(new)) == new


GOOD = delta.make(WEIGHTS.tobytes(), TRAINED.tobytes())


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"shd1",
        b"xxxx" + GOOD[4:],
        GOOD[:4] + b"\x09" + GOOD[5:],
        GOOD[:-5],
        GOOD[:7] + b"junk",
    ],
)
def test_what_is_no_delta_is_refused(said: bytes) -> None:
    with pytest.raises(BundleError):
        delta.apply(WEIGHTS.tobytes(), said, TRAINED.nbytes)


def test_a_delta_never_makes_more_than_was_signed() -> None:
    with pytest.raises(BundleError):
        delta.apply(WEIGHTS.tobytes(), GOOD, TRAINED.nbytes - 1)
    bomb = delta.make(b"", b"\0" * 10_000_000)
    assert len(bomb) < 2_000
    with pytest.raises(BundleError):
        delta.apply(b"", bomb, 100)


def test_what_would_not_fit_in_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delta, "LIMIT", 1000)
    with pytest.raises(BundleError):
        delta.make(b"x" * 1001, b"y")
    with pytest.raises(BundleError):
        delta.apply(b"x", GOOD, 1001)


def test_what_would_spare_too_little_is_not_made() -> None:
    for name in ("float32 weights, trained on", "only the last layer", "pieces that moved"):
        old, new, _ = CASES[name]
        assert delta.make(old, new, delta.WORST_RATIO * len(new)) == delta.make(old, new)
    old, new, _ = CASES["nothing in common"]
    with pytest.raises(BundleError, match="saves too little"):
        delta.make(old, new, delta.WORST_RATIO * len(new))


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=300), st.integers(0, 3), st.integers(0, 2))
def test_noise_behind_a_good_head_is_an_error_and_no_crash(
    noise: bytes, shift: int, way: int
) -> None:
    with pytest.raises(BundleError):
        delta.apply(b"old", b"shd1" + bytes([way, shift, 0]) + noise, 1000)
