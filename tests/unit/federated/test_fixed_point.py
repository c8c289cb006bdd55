"""Whole numbers add up to the mean of updates, and cannot overflow."""

import numpy as np
import pytest

from shoal.errors import InputError, SettingError
from shoal.federated.fixed_point import FixedPoint, unwrapped, wrapped


def test_the_sum_of_whole_numbers_is_the_weighted_mean_within_a_step() -> None:
    random = np.random.default_rng(0)
    scale = FixedPoint(clip=0.5, devices=40, weight=64).check()
    deltas = (random.normal(size=(40, 3_000)) * 0.1).astype(np.float32)
    weights = random.integers(1, 65, 40)
    total = np.zeros(3_001, np.uint32)
    for delta, weight in zip(deltas, weights, strict=True):
        total += scale.encode(delta, int(weight), random)
    mean, weight = scale.decode(total, devices=40)
    assert weight == weights.sum()
    assert np.abs(mean - np.average(deltas, axis=0, weights=weights)).max() < scale.step


def test_all_devices_at_their_largest_do_not_overflow() -> None:
    random = np.random.default_rng(0)
    for sign in (1, -1):
        scale = FixedPoint(clip=1.0, devices=1000, weight=100)
        one = scale.encode(np.full(4, sign * 7, np.float32), 100, random)
        total = np.zeros(5, np.uint32)
        for _ in range(1000):
            total += one
        mean, _ = scale.decode(total, devices=1000)
        assert mean.tolist() == [sign] * 4


def test_rounding_is_right_on_average() -> None:
    scale = FixedPoint(clip=1.0, devices=1, levels_most=200)
    delta = np.full(200_000, 0.0012, np.float32)
    mean, _ = scale.decode(scale.encode(delta, 1, np.random.default_rng(1)), devices=1)
    assert abs(mean.mean() - 0.0012) < 5e-5


def test_a_cohort_that_cannot_share_32_bits_is_refused_with_what_to_do() -> None:
    with pytest.raises(SettingError, match="lower the largest weight"):
        FixedPoint(clip=1.0, devices=2_000, weight=10_000).check()


@pytest.mark.parametrize("delta", [np.nan, np.inf])
def test_an_update_that_is_not_finite_is_not_sent(delta: float) -> None:
    with pytest.raises(InputError):
        FixedPoint(clip=1.0, devices=3).encode(
            np.array([delta], np.float32), 1, np.random.default_rng(0)
        )


@pytest.mark.parametrize("weight", [0, 2])
def test_a_weight_outside_of_what_was_agreed_is_not_sent(weight: int) -> None:
    with pytest.raises(InputError, match="weight"):
        FixedPoint(clip=1.0, devices=3).encode(
            np.zeros(2, np.float32), weight, np.random.default_rng(0)
        )


@pytest.mark.parametrize("total", [[0, 0], [0, 5], [2**31, 2], [2**31 - 1, 2]])
def test_a_sum_that_honest_devices_cannot_have_made_is_not_used(total: list[int]) -> None:
    with pytest.raises(InputError, match="range"):
        FixedPoint(clip=1.0, devices=4).decode(np.array(total, np.uint32), devices=2)


def test_whole_numbers_go_round_and_come_back() -> None:
    whole = np.array([0, 1, -1, 2**31 - 1, -(2**31)], np.int64)
    assert unwrapped(wrapped(whole)).tolist() == whole.tolist()
