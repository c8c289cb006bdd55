"""A sum does not depend on the order of its addends, and is right."""

import math
import tracemalloc
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.errors import InputError
from shoal.federated.sums import FINE, LARGEST, ExactSum

_number = st.floats(-1e6, 1e6, width=32)
_weight = st.floats(0.001, 1000)


@given(st.lists(st.tuples(_number, _weight), min_size=1, max_size=30), st.randoms())
def test_whatever_the_order_a_sum_has_the_same_bits_and_is_right(pairs, random) -> None:
    def total(of) -> float:
        found = ExactSum(1)
        for x, w in of:
            found.add(np.array([x], np.float32), w)
        return float(found.value()[0])

    shuffled = random.sample(pairs, len(pairs))
    assert total(pairs).hex() == total(shuffled).hex()
    exact = sum(Fraction(x) * Fraction(w) for x, w in pairs)
    rounding = sum(abs(x) * w for x, w in pairs) * 2**-52
    assert abs(Fraction(total(pairs)) - exact) <= len(pairs) * FINE + rounding


def test_sums_that_are_merged_are_the_sum_of_all() -> None:
    vectors = np.random.default_rng(1).normal(size=(7, 40_000)).astype(np.float32)
    whole, left, right = (ExactSum(40_000) for _ in range(3))
    for i, vector in enumerate(vectors):
        whole.add(vector, i + 1)
        (left if i % 2 else right).add(vector, i + 1)
    left.merge(right)
    assert np.array_equal(left.value(), whole.value())
    assert left.count == 7


@pytest.mark.parametrize(
    ("vector", "says"),
    [
        (np.ones(2, np.float32), "2 elements, 3 needed"),
        (np.array([1, np.nan, 0], np.float32), "NaN or infinity"),
        (np.array([1, -np.inf, 0], np.float32), "NaN or infinity"),
        (np.full(3, LARGEST, np.float64), "clip the updates"),
    ],
    ids=["length", "nan", "infinite", "large"],
)
def test_what_cannot_be_summed_exactly_is_refused_and_changes_nothing(vector, says) -> None:
    total = ExactSum(3)
    total.add(np.ones(3))
    with pytest.raises(InputError, match=says):
        total.add(vector)
    assert total.value().tolist() == [1, 1, 1]
    assert total.count == 1


def test_memory_does_not_grow_with_the_number_of_updates() -> None:
    size = 200_000
    vector = np.ones(size, np.float32)
    tracemalloc.start()
    total = ExactSum(size)
    for _ in range(50):
        total.add(vector, 0.1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 24 * size
    assert math.isclose(total.value()[0], 5, rel_tol=1e-12)
