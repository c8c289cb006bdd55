"""Whatever is put in, however it is cut and merged, the same is counted; whatever bytes come, no
more than a SketchError comes of it."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from shoal.errors import SketchError
from shoal.sketch import Latency, Reference, Sketch, edges_of, merge_bytes, reference_of

FEATURES = 3
values = st.floats(width=32, allow_nan=True, allow_infinity=True)
tables = arrays(
    np.float32,
    st.tuples(st.integers(0, 300), st.just(FEATURES)),
    elements=values,
    fill=st.just(np.float32(0)),
)


def reference() -> Reference:
    rng = np.random.default_rng(5)
    return reference_of({f"f{i}": rng.normal(size=400) for i in range(FEATURES)})


REFERENCE = reference()


def sketch_of(*tables: np.ndarray) -> Sketch:
    sketch = Sketch(REFERENCE)
    for table in tables:
        sketch.update(table)
    return sketch


def same(a: Sketch, b: Sketch) -> None:
    assert a.rows == b.rows
    for exact in ("counts", "missing", "n", "low", "high"):
        np.testing.assert_array_equal(getattr(a, exact), getattr(b, exact))
    scale = np.maximum(np.abs(a.mean), np.where(a.n > 0, np.maximum(-a.low, a.high), 0))
    with np.errstate(over="ignore", invalid="ignore"):
        np.testing.assert_allclose(a.mean, b.mean, rtol=1e-9, atol=float(np.max(scale) * 1e-9))


@settings(max_examples=60, deadline=None)
@given(tables, tables)
def test_merging_two_sketches_is_sketching_both_tables(a: np.ndarray, b: np.ndarray) -> None:
    merged = sketch_of(a)
    merged.merge(sketch_of(b))
    same(merged, sketch_of(a, b))


@settings(max_examples=60, deadline=None)
@given(tables, tables)
def test_merging_bytes_needs_no_reference(a: np.ndarray, b: np.ndarray) -> None:
    merged = sketch_of(a)
    merged.merge(sketch_of(b))
    together = Sketch.from_bytes(
        REFERENCE, merge_bytes(sketch_of(a).to_bytes(), sketch_of(b).to_bytes())
    )
    assert together.rows == merged.rows
    np.testing.assert_array_equal(together.counts, merged.counts)
    np.testing.assert_array_equal(together.missing, merged.missing)


@settings(max_examples=60, deadline=None)
@given(tables)
def test_a_sketch_survives_its_bytes(table: np.ndarray) -> None:
    sketch = sketch_of(table)
    again = Sketch.from_bytes(REFERENCE, sketch.to_bytes())
    assert again.rows == sketch.rows == len(table)
    np.testing.assert_array_equal(again.counts, sketch.counts)
    np.testing.assert_array_equal(again.missing, sketch.missing)
    assert again.to_bytes() == sketch.to_bytes()


@settings(max_examples=60, deadline=None)
@given(tables, st.integers(1, 40))
def test_row_by_row_or_in_batches_is_the_same(table: np.ndarray, size: int) -> None:
    by_row = sketch_of(*table)
    in_batches = sketch_of(*(table[i : i + size] for i in range(0, len(table), size)))
    same(by_row, sketch_of(table))
    same(in_batches, sketch_of(table))


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=400))
def test_foreign_bytes_are_a_sketch_error(data: bytes) -> None:
    with pytest.raises(SketchError):
        Sketch.from_bytes(REFERENCE, data)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_damaged_bytes_are_read_as_something_sound_or_not_at_all(data: st.DataObject) -> None:
    rows = np.random.default_rng(1).normal(size=(50, FEATURES)).astype(np.float32)
    good = bytearray(sketch_of(rows).to_bytes())
    at = data.draw(st.integers(0, len(good) - 1))
    good[at] ^= data.draw(st.integers(1, 255))
    try:
        read = Sketch.from_bytes(REFERENCE, bytes(good))
    except SketchError:
        return
    assert (read.counts >= 0).all()
    assert (read.counts.sum(1) == read.n).all()


def test_sketches_of_two_references_do_not_merge() -> None:
    other = reference_of({f"f{i}": np.arange(100.0) for i in range(FEATURES)})
    with pytest.raises(SketchError):
        sketch_of().merge(Sketch(other))


@pytest.mark.parametrize("shape", [(4, 2), (4,), (1, 1, FEATURES)])
def test_rows_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(SketchError):
        sketch_of(np.zeros(shape, np.float32))


@settings(max_examples=60, deadline=None)
@given(arrays(np.float64, array_shapes(max_dims=1, max_side=200), elements=values))
def test_edges_rise_and_hold_the_training_data(column: np.ndarray) -> None:
    edges = edges_of(column)
    assert all(a < b for a, b in itertools.pairwise(edges))
    known = column[np.isfinite(column)].astype(np.float32)
    if len(known) and np.isfinite(edges[-1]):
        assert np.float32(edges[0]) <= known.min()
        assert known.max() < np.float32(edges[-1])


def test_a_value_that_many_rows_share_has_a_bin_of_its_own() -> None:
    found = reference_of({"zeros": np.array([0.0] * 90 + [1.0] * 10)}).features[0]
    sketch = Sketch(Reference(features=[found]))
    sketch.update(np.array([[0.0], [0.5], [1.0]], np.float32))
    assert sorted(sketch.counts[0].tolist(), reverse=True)[:3] == [1, 1, 1]


def test_the_reference_is_named_by_its_content() -> None:
    assert reference().id == REFERENCE.id
    assert reference_of({"f0": np.arange(9.0)}).id != reference_of({"f1": np.arange(9.0)}).id


def test_latency_quantiles_are_within_a_bin() -> None:
    histogram = Latency()
    for microseconds in range(1, 1001):
        histogram.add(microseconds * 1e-6)
    for q in (0.5, 0.99):
        assert histogram.quantile_us(q) == pytest.approx(1000 * q, rel=0.2)
    assert np.isnan(Latency().quantile_us(0.5))
    assert len(Latency([1, 0, 0]).trimmed()) == 1
