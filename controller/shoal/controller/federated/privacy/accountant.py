"""Privacy accountant: epsilon of a task's rounds, and the check against its budget.

Rounds in which every device takes part with the same probability, independently, cost less than
rounds with everybody: the Poisson-subsampled Gaussian. Losses are added up as distributions
(`loss_distribution`), to within a few hundredths. Where their grid cannot tell (a delta below what
the transform's rounding hides, an epsilon that protects nobody), Rényi privacy gives the bound,
which is never too low either: Mironov, Talwar and Zhang, "Rényi Differential Privacy of the Sampled
Gaussian Mechanism", 2019. Its moment is integrated numerically, so any order can be asked;
trapezoids are exact here to rounding.
"""

import math
from collections.abc import Iterable
from functools import lru_cache

import msgspec
import numpy as np

from shoal.controller.federated.privacy.loss_distribution import Rounds, epsilon_of_losses
from shoal.errors import ConflictError, SettingError
from shoal.federated.spending import Budget, epsilon_of

#: Factor on every cost: numerical error must not make privacy look better.
_SLACK = 1 + 1e-9
#: An epsilon above this protects nothing, and need not be computed tightly.
_MEANINGLESS = 100.0


class Spent(msgspec.Struct, frozen=True, kw_only=True):
    """Rounds with the same noise and sampling rate.

    noise    noise multiplier: standard deviation over sensitivity
    rate     sampling rate: probability that a device is in a round; 1 without random sampling
    rounds   number of them
    """

    noise: float
    rate: float = 1.0
    rounds: int = 1


def epsilon(spent: Iterable[Spent], delta: float) -> float:
    """Epsilon of all rounds together, in any order."""
    kinds = _kinds(spent)
    by_moments = renyi(kinds, delta)
    if by_moments > _MEANINGLESS:
        return by_moments
    losses = epsilon_of_losses([Rounds(k.noise, k.rate, k.rounds) for k in kinds], delta)
    return losses if math.isfinite(losses) else by_moments


def renyi(spent: Iterable[Spent], delta: float) -> float:
    """Epsilon by Rényi privacy alone, as the devices compute it."""
    kinds = _kinds(spent)
    return epsilon_of(
        lambda order: sum(k.rounds * cost(k.noise, k.rate, order) for k in kinds), delta
    )


def _kinds(spent: Iterable[Spent]) -> list[Spent]:
    """Rounds summed by noise and rate; SettingError for invalid values."""
    rounds: dict[tuple[float, float], int] = {}
    for kind in spent:
        if not (kind.noise > 0 and 0 < kind.rate <= 1 and kind.rounds >= 0):
            raise SettingError(
                f"noise {kind.noise}, rate {kind.rate}, {kind.rounds} rounds",
                "noise has to be above 0 and the rate above 0 and at most 1",
            )
        key = (kind.noise, kind.rate)
        rounds[key] = rounds.get(key, 0) + kind.rounds
    return [Spent(noise=noise, rate=rate, rounds=n) for (noise, rate), n in rounds.items()]


def check_budget(spent: Iterable[Spent], following: Spent, budget: Budget) -> float:
    """Epsilon after the following round; ConflictError if it exceeds the budget."""
    needed = epsilon([*spent, following], budget.delta)
    if needed > budget.epsilon:
        raise ConflictError(
            f"another round would bring epsilon to {needed:.3g} at delta {budget.delta:g}; "
            f"{budget.epsilon:g} is the task's budget",
            "stop here, or plan another task with more noise",
            epsilon=needed,
            budget=budget.epsilon,
        )
    return needed


@lru_cache(maxsize=65_536)
def cost(noise: float, rate: float, order: float) -> float:
    """Rényi divergence of one round, for an order above 1."""
    if rate == 1:
        return order / (2 * noise**2)
    return max(0.0, _log_moment(noise, rate, order)) / (order - 1) * _SLACK


def _log_moment(noise: float, rate: float, order: float) -> float:
    """log E[(1 - q + q·exp((2x - 1)/2z²))^order], x normal with standard deviation z."""
    step = noise / 20
    x = np.arange(-14 * noise, order + 14 * noise, step)
    ratio = np.logaddexp(math.log1p(-rate), math.log(rate) + (2 * x - 1) / (2 * noise**2))
    exponent = order * ratio - x**2 / (2 * noise**2)
    top = float(exponent.max())
    total = float(np.exp(exponent - top).sum()) * step
    return top + math.log(total) - math.log(noise * math.sqrt(2 * math.pi))
