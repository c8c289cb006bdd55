"""The sketch counts what a plain loop would count, however its rows came."""

import math

import numpy as np
import pytest

from shoal.sketch import BUFFER_ROWS, Sketch, merge_bytes, reference_of

ODD = {"none": [], "NaN": [np.nan], "infinite": [np.inf, -np.inf], "all": [np.nan, np.inf, -np.inf]}
SIZES = (1, 7, BUFFER_ROWS - 1, BUFFER_ROWS, 3 * BUFFER_ROWS + 5)


def drawn(rows: int, odd: list[float], seed: int = 0) -> np.ndarray:
    """Rows of three features: smooth, few values that repeat, and one wholly odd if any is."""
    rng = np.random.default_rng(seed)
    rows_ = np.stack([rng.normal(size=rows), rng.integers(-3, 4, rows), rng.normal(size=rows)], 1)
    values = rows_.astype(np.float32)
    for value in odd:
        values[rng.random(values.shape) < 0.1] = value
        values[:, 2] = value
    return values


def reference():
    training = drawn(500, [], seed=1).astype(np.float64)
    return reference_of({"smooth": training[:, 0], "steps": training[:, 1], "gone": training[:, 2]})


def counted(edges: list[float], column: np.ndarray) -> list[int]:
    """By the definition of a bin, one value at a time; missing last."""
    bins = [0] * (len(edges) + 2)
    for value in column.tolist():
        if not math.isfinite(value):
            bins[-1] += 1
        else:
            bins[sum(np.float32(edge) <= value for edge in edges)] += 1
    return bins


@pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
@pytest.mark.parametrize("size", SIZES)
def test_every_value_is_in_the_bin_that_a_plain_loop_finds(size, odd):
    rows, sketch = drawn(size, odd), Sketch(reference())
    sketch.update(rows)
    for j, feature in enumerate(sketch.reference.features):
        bins = [*sketch.counts[j, : len(feature.edges) + 1].tolist(), sketch.missing[j]]
        assert bins == counted(feature.edges, rows[:, j])
        known = rows[np.isfinite(rows[:, j]), j].astype(np.float64)
        assert sketch.n[j] == len(known)
        if len(known):
            assert (sketch.low[j], sketch.high[j]) == (known.min(), known.max())
            assert sketch.mean[j] == pytest.approx(known.mean(), abs=1e-12)
            assert sketch.m2[j] == pytest.approx(np.square(known - known.mean()).sum(), rel=1e-9)


@pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
def test_rows_one_by_one_rows_together_and_merged_sketches_are_the_same(odd):
    rows, whole, single = drawn(600, odd), Sketch(reference()), Sketch(reference())
    whole.update(rows)
    for row in rows:
        single.update(row)
    halves = Sketch(reference()), Sketch(reference())
    halves[0].update(rows[:111])
    halves[1].update(rows[111:])
    merged = merge_bytes(halves[0].to_bytes(), halves[1].to_bytes())
    back = Sketch.from_bytes(reference(), merged)
    for other in (single, back):
        assert (other.counts == whole.counts).all()
        assert (other.missing == whole.missing).all()
        np.testing.assert_allclose(other.mean, whole.mean, atol=1e-6)


@pytest.mark.parametrize("features", [1, 3])
def test_rows_are_left_in_the_order_in_which_they_came(features):
    rows = np.random.default_rng(3).normal(size=(2 * BUFFER_ROWS, features)).astype(np.float32)
    given = rows.copy()
    sketch = Sketch(reference_of({f"x{j}": np.arange(9.0) for j in range(features)}))
    sketch.update(rows)
    assert (rows == given).all()


@pytest.mark.parametrize("size", SIZES)
def test_means_are_sums_row_after_row_to_the_bit(size):
    rows, sketch = drawn(size, []), Sketch(reference())
    sketch.update(rows)
    total = np.zeros(3)
    for row in rows.astype(np.float64):
        total += row
    assert sketch.mean.tolist() == (total / size).tolist()


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("size", [1, 7, 3 * BUFFER_ROWS])
def test_a_value_too_large_for_the_sketch_is_missing_and_one_too_large_for_its_squares_is_not(size):
    training = {"x": np.append(np.arange(50.0), 1e39)}
    assert reference_of(training).features[0].counts[-1] == 1
    sketch = Sketch(reference_of(training))
    sketch.update(np.full((size, 1), 1e39))
    sketch.update(np.append(np.arange(9.0), 1e38)[:, None])
    back = Sketch.from_bytes(sketch.reference, sketch.to_bytes())
    assert back.missing.tolist() == [size]
    assert back.n.tolist() == [10]
    assert np.isinf(back.m2).all()
