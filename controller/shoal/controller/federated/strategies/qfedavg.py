"""q-FedAvg: devices with a larger loss weigh more.

Li et al., "Fair Resource Allocation in Federated Learning", 2020, algorithm 2. Each device's own
loss is its weight; Flower uses one loss of the whole model instead.
"""

import numpy as np

from shoal.controller.federated.aggregation.gathering import Gathering, Shelf, check_new, too_few
from shoal.controller.federated.strategy import Positive, Strategy
from shoal.controller.federated.updates import Aggregate, Update, check
from shoal.federated.sums import ExactSum

#: Added to every loss, as in the paper's code: 0 has no negative power.
_ABOVE_ZERO = 1e-10


class QFedAvg(Strategy, frozen=True, kw_only=True):
    """theta + Σ F^q·L·delta / Σ (q·F^(q-1)·‖L·delta‖² + L·F^q), with L = 1/lr.

    q    fairness: 0 weighs all the same, 1 and more equalises losses
    lr   the devices' learning rate
    """

    q: Positive = 0.2
    lr: Positive = 0.1

    def gather(self, size: int, shelf: Shelf) -> Gathering:
        return _Fair(size, self.q, 1 / self.lr)

    def reach(self, update: Update) -> float:
        weight, below = _weighed(update, self.q, 1 / self.lr)
        return max(super().reach(update) * weight, below)


class _Fair:
    """Numerator and denominator of q-FedAvg."""

    def __init__(self, size: int, q: float, steepness: float) -> None:
        self._size, self._q, self._steepness = size, q, steepness
        self._above, self._below = ExactSum(size), ExactSum(1)
        self._devices: set[str] = set()

    def add(self, update: Update) -> None:
        check(update, self._size)
        check_new(update.device, self._devices)
        weight, below = _weighed(update, self._q, self._steepness)
        self._below.reach_with(np.array([below]))
        self._above.add(update.delta, weight)
        self._below.add(np.array([below]))
        self._devices.add(update.device)

    def result(self) -> Aggregate:
        below = float(self._below.value()[0])
        if not below > 0:
            raise too_few(len(self._devices), 1)
        devices = tuple(sorted(self._devices))
        return Aggregate(delta=self._above.value() / below, devices=devices, chosen=devices)


def _weighed(update: Update, q: float, steepness: float) -> tuple[float, float]:
    """Weight of an update in the numerator, and its addend to the denominator."""
    loss = update.loss + _ABOVE_ZERO
    # einsum: its order of additions does not depend on the number of threads
    square = float(np.einsum("i,i->", update.delta, update.delta, dtype=np.float64)) * steepness**2
    weight = steepness * loss**q
    return weight, q * loss ** (q - 1) * square + weight
