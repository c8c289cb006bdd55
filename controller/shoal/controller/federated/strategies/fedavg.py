"""FedAvg: the mean of the updates, weighted by examples.

McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", 2017.
"""

from collections.abc import Callable, Iterable
from typing import ClassVar

import numpy as np

from shoal.controller.federated.aggregation.gathering import Gathering, Shelf, check_new, too_few
from shoal.controller.federated.strategy import ByExamples
from shoal.controller.federated.updates import Aggregate, Update, check
from shoal.federated.sums import ExactSum


class FedAvg(ByExamples, frozen=True, kw_only=True):
    """theta + Σ n·delta / Σ n."""

    elementwise: ClassVar[bool] = True

    def gather(self, size: int, shelf: Shelf) -> Gathering:
        return WeightedSum(size, self.weight)


class WeightedSum:
    """Accumulator of a weighted mean, Σ factor·delta / Σ weight: exact, in any order of arrival.

    It needs O(P) memory, and is all that secure aggregation can provide.

    weigh    weight of an update in the divisor, a function of this update only
    factor   of its delta; None: its weight
    """

    def __init__(
        self,
        size: int,
        weigh: Callable[[Update], float],
        factor: Callable[[Update], float] | None = None,
    ) -> None:
        self._size, self._weigh, self._factor = size, weigh, factor or weigh
        self._sum, self._weight, self._control = ExactSum(size), ExactSum(1), ExactSum(size)
        self._devices: set[str] = set()

    def add(self, update: Update) -> None:
        check(update, self._size)
        check_new(update.device, self._devices)
        weight = self._weigh(update)
        self._weight.reach_with(np.array([weight]))
        if update.control is not None:
            self._control.reach_with(update.control)
        self._sum.add(update.delta, self._factor(update))
        self._weight.add(np.array([weight]))
        if update.control is not None:
            self._control.add(update.control)
        self._devices.add(update.device)

    def merge(self, devices: Iterable[str], deltas: ExactSum, weights: ExactSum) -> None:
        """Add a site's sum: bit for bit the same as its devices' single updates.

        ConflictError, and nothing is added, when one of them is in already.
        """
        devices = set(devices)
        for device in sorted(devices):
            check_new(device, self._devices)
        self._sum.merge(deltas)
        self._weight.merge(weights)
        self._devices |= devices

    def result(self) -> Aggregate:
        weight = float(self._weight.value()[0])
        if not weight > 0:
            raise too_few(len(self._devices), 1)
        devices = tuple(sorted(self._devices))
        control = self._control.value() / len(devices) if self._control.count else None
        delta = self._sum.value() / weight
        return Aggregate(delta=delta, devices=devices, chosen=devices, control=control)
