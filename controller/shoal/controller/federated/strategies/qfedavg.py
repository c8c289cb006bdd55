"""q-FedAvg: devices with a larger loss weigh more.

Li et al., "Fair Resource Allocation in Federated Learning", 2020, algorithm 2. Each device's own
loss is its weight; Flower uses one loss of the whole model instead.
"""

from typing import ClassVar

from shoal.controller.federated.aggregation.gathering import Gathering, Shelf
from shoal.controller.federated.strategies.fedavg import WeightedSum
from shoal.controller.federated.strategy import Positive, Strategy
from shoal.controller.federated.updates import Update

#: Added to every loss, as in the paper's code: 0 has no negative power.
_ABOVE_ZERO = 1e-10


class QFedAvg(Strategy, frozen=True, kw_only=True):
    """theta + Σ F^q·L·delta / Σ (q·F^(q-1)·‖L·delta‖² + L·F^q), with L = 1/lr.

    q    fairness: 0 weighs all the same, 1 and more equalises losses
    lr   the devices' learning rate
    """

    elementwise: ClassVar[bool] = True
    q: Positive = 0.2
    lr: Positive = 0.1

    def gather(self, size: int, shelf: Shelf) -> Gathering:
        return WeightedSum(size, self._below, self._above)

    def reach(self, update: Update) -> float:
        return max(super().reach(update) * self._above(update), self._below(update))

    def _above(self, update: Update) -> float:
        """Weight of an update in the numerator."""
        return 1 / self.lr * (update.loss + _ABOVE_ZERO) ** self.q

    def _below(self, update: Update) -> float:
        """Addend of an update to the denominator."""
        square = update.squared_norm() * (1 / self.lr) ** 2
        slope = self.q * (update.loss + _ABOVE_ZERO) ** (self.q - 1)
        return slope * square + self._above(update)
