"""Privacy ledger of a device: its cost in Rényi differential privacy adds up over the rounds.

Mironov, "Rényi Differential Privacy", 2017; to (epsilon, delta) by Canonne, Kamath and Steinke
2020. The unit is a device with its whole contribution to a round. A device knows that it took part,
so its ledger has no amplification by sampling: it holds `rho` of zero-concentrated differential
privacy, which determines the cost at every order.

    >>> ledger = Ledger()
    >>> for _ in range(10):
    ...     ledger = ledger.after(noise=5.0)
    >>> round(ledger.epsilon(1e-6), 2)
    3.13
"""

import math
from collections.abc import Callable

import msgspec

from shoal.errors import RefusedError

#: Rényi orders alpha of the conversion to epsilon.
ORDERS: tuple[float, ...] = (
    *(1 + 10 ** (-2 + i / 20) for i in range(40)),
    *(2 + i / 10 for i in range(1, 80)),
    *(float(i) for i in range(10, 64)),
    *(64.0, 80.0, 96.0, 128.0, 192.0, 256.0, 384.0, 512.0, 1024.0),
)


class Budget(msgspec.Struct, frozen=True, kw_only=True):
    """Privacy budget (epsilon, delta)."""

    epsilon: float
    delta: float = 1e-6


class Ledger(msgspec.Struct, frozen=True, kw_only=True):
    """Privacy spent by a device.

    rho      of zero-concentrated differential privacy: the cost at order alpha is rho·alpha
    rounds   number of rounds
    """

    rho: float = 0.0
    rounds: int = 0

    def after(self, noise: float) -> "Ledger":
        """The ledger after one more round. noise: standard deviation over sensitivity."""
        return Ledger(rho=self.rho + 1 / (2 * noise**2), rounds=self.rounds + 1)

    def epsilon(self, delta: float) -> float:
        return epsilon_of(lambda order: self.rho * order, delta)

    def spend(self, noise: float, budget: Budget) -> "Ledger":
        """The ledger after one more round; RefusedError beyond the budget."""
        after = self.after(noise)
        if (needed := after.epsilon(budget.delta)) > budget.epsilon:
            raise RefusedError(
                f"this round would bring epsilon to {needed:.3g} at delta {budget.delta:g}; "
                f"{budget.epsilon:g} is this device's budget",
                "budget-spent",
                "raise the budget on the device, or leave it out",
            )
        return after


def epsilon_of(cost: Callable[[float], float], delta: float) -> float:
    """The smallest epsilon over all orders, for cost(order) in Rényi privacy; 0 for no cost."""
    if cost(ORDERS[-1]) == 0:
        return 0.0
    return max(0.0, min(_at(cost(order), order, delta) for order in ORDERS))


def _at(cost: float, order: float, delta: float) -> float:
    return cost + math.log1p(-1 / order) - math.log(delta * order) / (order - 1)
