"""Norm clipping: the L2 norm of every update is limited to a bound.

Sun et al., "Can You Really Backdoor Federated Learning?", 2019. Weighs every device the same by
default, because a large reported number of examples would circumvent the bound.
"""

import math
from typing import ClassVar

from shoal.controller.federated.aggregation.gathering import Gathering, Shelf
from shoal.controller.federated.strategies.fedavg import WeightedSum
from shoal.controller.federated.strategy import ByExamples, Counted, Positive
from shoal.controller.federated.updates import Update


class NormClipping(ByExamples, frozen=True, kw_only=True):
    """Mean of delta·min(1, bound/‖delta‖).

    bound           on the L2 norm of a delta
    most_examples   1: all devices weigh the same
    """

    elementwise: ClassVar[bool] = True
    bound: Positive
    most_examples: Counted = 1

    def gather(self, size: int, shelf: Shelf) -> Gathering:
        return WeightedSum(size, self.weight, self._factor)

    def _factor(self, update: Update) -> float:
        norm = math.sqrt(update.squared_norm())
        return self.weight(update) * (self.bound / max(self.bound, norm))
