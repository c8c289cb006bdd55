"""Epsilon is what it is said to be: never too low, and hardly too high."""

import itertools
import json
import math
import subprocess
from pathlib import Path

import numpy as np
import pytest
from scipy.special import ndtr

from shoal.controller.federated.privacy.accountant import (
    Spent,
    check_budget,
    cost,
    epsilon,
    renyi,
)
from shoal.controller.federated.privacy.loss_distribution import Rounds, epsilon_of_losses
from shoal.errors import ConflictError, RefusedError, SettingError
from shoal.federated.spending import Budget, Ledger
from unit.federated.peers import python_with

SIDE = Path(__file__).with_name("accounting_side.py")
SAMPLED = itertools.product(
    (0.5, 0.7, 1.0, 4.0), (0.001, 0.01, 0.1, 0.3), (1, 30, 10_000), (1e-4, 1e-6)
)
#: ([(noise, rate, rounds), ...], delta); of all that were sampled, those that still protect.
CASES: list[tuple[list[tuple[float, float, int]], float]] = [
    *(
        ([(noise, rate, rounds)], delta)
        for noise, rate, rounds, delta in SAMPLED
        if rounds * rate**2 * math.expm1(noise**-2) < 20
    ),
    ([(1.0, 1.0, 1)], 1e-5), ([(1.0, 1.0, 40)], 1e-3), ([(5.0, 1.0, 10)], 1e-6),
    ([(0.5, 1.0, 3)], 1e-5), ([(1.0, 0.5, 40)], 1e-4), ([(2.0, 0.5, 40)], 1e-4),
    ([(10.0, 0.3, 20)], 1e-7), ([(4.0, 0.001, 1000)], 1e-7), ([(0.7, 0.01, 100)], 1e-7),
    ([(1.0, 0.01, 300), (2.0, 0.1, 50), (5.0, 1.0, 3)], 1e-6),
    ([(0.6, 0.001, 2000), (20.0, 1.0, 10)], 1e-5),
]  # fmt: skip


def spent(kinds: list[tuple[float, float, int]]) -> list[Spent]:
    return [Spent(noise=noise, rate=rate, rounds=rounds) for noise, rate, rounds in kinds]


def test_epsilon_is_never_below_that_of_dp_accounting_and_within_a_fifth_of_it() -> None:
    python = python_with("dp_accounting", "dp")
    done = subprocess.run([python, str(SIDE), json.dumps(CASES)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for (kinds, delta), exact in zip(CASES, json.loads(done.stdout), strict=True):
        found = epsilon(spent(kinds), delta)
        assert exact <= found <= 1.2 * exact, (kinds, delta, found / exact)


def test_epsilon_of_a_gaussian_is_that_of_its_closed_form() -> None:
    """Balle and Wang, "Improving the Gaussian Mechanism", 2018, theorem 8."""
    for noise, rounds in ((1.0, 1), (0.7, 3), (8.0, 100), (40.0, 7)):
        found = epsilon_of_losses([Rounds(noise, 1.0, rounds)], 1e-6)
        move = math.sqrt(rounds) / noise
        for near, over in ((found, True), (found * 0.99, False)):
            delta = ndtr(move / 2 - near / move) - math.exp(near) * ndtr(-move / 2 - near / move)
            assert (delta <= 1e-6) == over


def test_one_sampled_round_agrees_with_integration_in_both_directions() -> None:
    for noise, rate, delta in ((1.0, 0.1, 1e-4), (0.6, 0.01, 1e-3), (3.0, 0.5, 1e-5)):
        found = epsilon_of_losses([Rounds(noise, rate, 1)], delta)
        x = np.linspace(-15 * noise, 1 + 15 * noise, 2_000_001)
        without = np.exp(-(x**2) / (2 * noise**2)) / (noise * math.sqrt(2 * math.pi))
        mixture = without * (1 - rate + rate * np.exp((2 * x - 1) / (2 * noise**2)))
        for near, over in ((found, True), (found * 0.98, False)):
            worst = max(
                np.trapezoid(np.maximum(p - math.exp(near) * q, 0), x)
                for p, q in ((mixture, without), (without, mixture))
            )
            assert (worst <= delta) == over


def test_where_the_grid_cannot_tell_moments_do() -> None:
    kinds = [Spent(noise=0.7, rate=1e-4, rounds=10_000)]
    assert epsilon_of_losses([Rounds(0.7, 1e-4, 10_000)], 1e-12) == math.inf
    assert epsilon(kinds, 1e-12) == renyi(kinds, 1e-12)
    senseless = [Spent(noise=0.01, rounds=5)]
    assert epsilon(senseless, 1e-6) == renyi(senseless, 1e-6) > 1e4


def test_the_moment_of_whole_orders_is_that_of_the_closed_form() -> None:
    for noise, rate, order in ((1.0, 0.1, 4), (0.7, 0.5, 16), (3.0, 0.01, 64), (0.5, 0.9, 3)):
        terms = [
            math.log(math.comb(order, k)) + k * math.log(rate) + (order - k) * math.log1p(-rate)
            + k * (k - 1) / (2 * noise**2)
            for k in range(order + 1)
        ]  # fmt: skip
        top = max(terms)
        exact = (top + math.log(sum(math.exp(t - top) for t in terms))) / (order - 1)
        assert cost(noise, rate, float(order)) == pytest.approx(exact, rel=1e-6)


def test_sampling_costs_less_and_every_round_costs_more() -> None:
    delta = 1e-6
    everybody = epsilon([Spent(noise=1.0, rounds=10)], delta)
    some_of_them = epsilon([Spent(noise=1.0, rate=0.1, rounds=10)], delta)
    assert 0 < some_of_them < everybody
    assert epsilon([Spent(noise=1.0, rounds=11)], delta) > everybody
    mixed = [Spent(noise=1.0, rounds=4), Spent(noise=1.0, rounds=6)]
    assert epsilon(mixed, delta) == pytest.approx(everybody)
    assert epsilon([], delta) == 0


def test_a_round_over_the_budget_does_not_begin() -> None:
    budget = Budget(epsilon=8.0, delta=1e-6)
    noise = 2.923  # the least with which 20 rounds fit
    before = [Spent(noise=noise, rounds=19)]
    assert check_budget(before, Spent(noise=noise), budget) == pytest.approx(8.0, rel=0.01)
    with pytest.raises(ConflictError, match="budget"):
        check_budget([*before, Spent(noise=noise)], Spent(noise=noise), budget)


def test_a_device_counts_for_itself_and_refuses_what_its_budget_does_not_cover() -> None:
    ledger, budget = Ledger(), Budget(epsilon=3.0, delta=1e-6)
    for _ in range(9):
        ledger = ledger.spend(5.0, budget)
    with pytest.raises(RefusedError) as refusal:
        ledger.spend(5.0, budget)
    assert refusal.value.reason == "budget-spent"
    assert ledger.rounds == 9
    assert ledger.epsilon(1e-6) == pytest.approx(renyi([Spent(noise=5.0, rounds=9)], 1e-6))
    assert 0.8 * ledger.epsilon(1e-6) < epsilon([Spent(noise=5.0, rounds=9)], 1e-6)


@pytest.mark.parametrize("wrong", [{"noise": 0.0}, {"noise": 1.0, "rate": 0.0}, {"noise": -1.0}])
def test_costs_of_what_cannot_be_are_refused(wrong: dict) -> None:
    with pytest.raises(SettingError, match="noise"):
        epsilon([Spent(**wrong)], 1e-6)
