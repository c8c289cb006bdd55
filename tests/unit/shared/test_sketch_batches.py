"""Sketches that are decoded together are what they are one by one."""

import numpy as np
import pytest

from shoal.errors import SketchError
from shoal.sketch import Reference, Sketch, reference_of
from shoal.sketch_batches import decode

RNG = np.random.default_rng(5)


def reference(features: int) -> Reference:
    return reference_of({f"x{i}": RNG.normal(size=500) * 10 ** (i % 5) for i in range(features)})


def sketch(of: Reference, rows: int, scale: float = 1.0) -> bytes:
    made = Sketch(of)
    values = RNG.normal(size=(rows, len(of.features))) * scale
    values[RNG.random(values.shape) < 0.1] = np.nan
    made.update(values.astype(np.float32))
    return made.to_bytes()


@pytest.mark.parametrize("features", [1, 3, 40])
def test_a_batch_is_read_as_its_sketches_are_one_by_one(features: int) -> None:
    of = reference(features)
    given = [sketch(of, rows, scale) for rows in (0, 1, 50, 40_000) for scale in (1e-3, 1.0, 1e6)]
    batch = decode(of, given)
    assert batch.read.all()
    for i, data in enumerate(given):
        one = Sketch.from_bytes(of, data)
        assert batch.rows[i] == one.rows
        for name in ("counts", "missing", "n"):
            assert (getattr(batch, name)[i] == getattr(one, name)).all()
        moments = np.stack([one.mean, one.m2, one.low, one.high], 1)
        assert np.array_equal(batch.moments[i], moments.astype(np.float32), equal_nan=True)


def test_whatever_is_damaged_is_left_out_and_nothing_else() -> None:
    """Every byte of a sketch changed, cut or doubled: read if and only if it is read alone."""
    of = reference(3)
    whole = sketch(of, 300)
    given = [
        whole,
        b"",
        whole + b"x",
        sketch(reference(2), 9),
        *(whole[:n] for n in range(0, 60, 7)),
    ]
    for at in range(len(whole)):
        for value in (0, 128, 255, whole[at] ^ 1):
            given.append(whole[:at] + bytes([value]) + whole[at + 1 :])
    batch = decode(of, given)
    rows = iter(batch.rows)
    for data, read in zip(given, batch.read, strict=True):
        try:
            alone = Sketch.from_bytes(of, data)
        except SketchError:
            assert not read
        else:
            assert read
            assert next(rows) == alone.rows
    assert 0 < batch.read.sum() < len(given)


def test_of_nothing_nothing_is_read() -> None:
    assert decode(reference(2), []).counts.shape[0] == 0
    none = Reference(features=[])
    assert decode(none, [Sketch(none).to_bytes(), b""]).read.tolist() == [True, False]
