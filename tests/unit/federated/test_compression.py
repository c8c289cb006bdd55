"""Small updates: right on average, read back whole, and never trusted."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.errors import InputError, WireError
from shoal.federated.compression import (
    BLOCK,
    PackedUpdate,
    compress,
    decompress,
    largest,
    with_feedback,
)
from shoal.federated.noise import Draws
from shoal.federated.plan import Compression

KINDS = [
    Compression(kind=kind, zstd=zstd)  # type: ignore[arg-type]
    for kind in ("none", "int8", "int4", "top-k")
    for zstd in (False, True)
]


def seeded(number: int = 0) -> Draws:
    return Draws(number.to_bytes(32))


def update(size: int, seed: int = 0) -> np.ndarray:
    """Layers of quite different size."""
    scales = np.geomspace(1e-4, 1, size)
    return (np.random.default_rng(seed).normal(size=size) * scales).astype(np.float32)


@pytest.mark.parametrize("how", KINDS, ids=str)
@pytest.mark.parametrize("size", [1, 2, BLOCK - 1, BLOCK, BLOCK + 1, 10_001])
def test_an_update_is_read_back_within_a_step_of_its_block(how: Compression, size: int) -> None:
    delta = update(size)
    found = decompress(compress(delta, how, seeded()), size)
    assert found.dtype == np.float32
    if how.kind == "none":
        assert np.array_equal(found, delta)
        return
    places = largest(delta, how.fraction) if how.kind == "top-k" else np.arange(size)
    steps = 7 if how.kind == "int4" else 127
    for start in range(0, places.size, BLOCK):
        block = places[start : start + BLOCK]
        step = np.abs(delta[block]).max() / steps
        assert np.abs(found[block] - delta[block]).max() <= step * 1.0001
    assert np.count_nonzero(found) <= places.size


@pytest.mark.parametrize("how", KINDS, ids=str)
def test_parts_are_what_the_whole_is(how: Compression) -> None:
    size = 3 * BLOCK + 77
    packed = compress(update(size), how, seeded())
    whole, opened = decompress(packed, size), PackedUpdate(memoryview(packed), size)
    for step in (1_000, BLOCK, 777):
        parts = [opened.part(at, min(at + step, size)) for at in range(0, size, step)]
        assert np.array_equal(np.concatenate(parts), whole)


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_an_update_larger_than_is_quantized_at_once_is_read_back(kind: str) -> None:
    delta = update(260 * BLOCK + 5)
    found = decompress(compress(delta, Compression(kind=kind), seeded()), delta.size)  # type: ignore[arg-type]
    step = np.maximum.reduceat(np.abs(delta), np.arange(0, delta.size, BLOCK)).repeat(BLOCK)
    assert (
        np.abs(found - delta) <= step[: delta.size] / (7 if kind == "int4" else 127) * 1.0001
    ).all()


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_rounding_is_right_on_average(kind: str) -> None:
    delta = update(2_000)
    how, draws = Compression(kind=kind), seeded(3)  # type: ignore[arg-type]
    mean = np.mean([decompress(compress(delta, how, draws), 2_000) for _ in range(400)], axis=0)
    step = 1 / (7 if kind == "int4" else 127)
    assert np.abs(mean - delta).max() < 5 * step * np.abs(delta).max() / np.sqrt(400)


@pytest.mark.parametrize(
    ("how", "smaller"),
    [
        (Compression(kind="int8"), 3.9),
        (Compression(kind="int4"), 7.8),
        (Compression(kind="top-k", fraction=0.01), 79),
        (Compression(kind="top-k", fraction=0.01, zstd=True), 120),
    ],
    ids=str,
)
def test_how_much_smaller_an_update_becomes(how: Compression, smaller: float) -> None:
    delta = np.random.default_rng(0).normal(size=100_000).astype(np.float32)
    assert delta.nbytes / len(compress(delta, how, seeded())) > smaller


def test_what_top_k_leaves_behind_arrives_later() -> None:
    how, draws = Compression(kind="top-k", fraction=0.05), seeded(1)
    delta, residual = update(1_000), np.zeros(1_000, np.float32)
    arrived = np.zeros(1_000)
    for _ in range(100):
        packed, residual = with_feedback(delta, residual, how, draws)
        arrived += decompress(packed, 1_000)
    assert np.allclose(arrived + residual, 100 * delta.astype(float), atol=1e-3)
    assert np.linalg.norm(residual) < 0.3 * 100 * np.linalg.norm(delta)
    once = decompress(compress(delta, how, draws), 1_000)
    assert np.linalg.norm(arrived / 100 - delta) < np.linalg.norm(once - delta)


def test_nothing_but_zeros_stays_nothing_but_zeros() -> None:
    for how in KINDS:
        assert not decompress(compress(np.zeros(50, np.float32), how, seeded()), 50).any()


def test_an_update_that_is_not_finite_is_not_sent() -> None:
    with pytest.raises(InputError):
        compress(np.array([np.nan], np.float32), KINDS[0], seeded())


@pytest.mark.parametrize("how", KINDS, ids=str)
def test_no_cut_and_no_flipped_bit_is_more_than_a_wire_error(how: Compression) -> None:
    packed = compress(update(120), how, seeded())
    hostile = [packed[:end] for end in range(len(packed))] + [packed + b"\0"]
    hostile += [
        packed[:i] + bytes([packed[i] ^ bit]) + packed[i + 1 :]
        for i in range(len(packed))
        for bit in (1, 0x80)
    ]
    for payload in hostile:
        try:
            found = decompress(payload, 120)
        except WireError:
            continue
        assert found.shape == (120,)
        assert np.isfinite(found).all()


@given(st.binary(max_size=300))
def test_whatever_the_bytes_they_are_an_update_or_a_wire_error(payload: bytes) -> None:
    for prefix in (b"", b"shu1"):
        try:
            assert decompress(prefix + payload, 20).shape == (20,)
        except WireError:
            pass


def test_an_update_of_another_model_is_refused() -> None:
    with pytest.raises(WireError, match="another model"):
        decompress(compress(update(10), KINDS[0], seeded()), 11)


def test_a_small_frame_with_a_huge_declared_size_is_not_decompressed() -> None:
    import zstandard

    packed = compress(update(10), Compression(zstd=True), seeded())
    bomb = zstandard.ZstdCompressor().compress(bytes(10**8))
    with pytest.raises(WireError, match="100000000 bytes, 40 needed"):
        decompress(packed[:14] + bomb, 10)
