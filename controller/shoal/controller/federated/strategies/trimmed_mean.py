"""Coordinate-wise trimmed mean: without the largest and the smallest values.

Yin et al., "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates", 2018.
"""

from collections.abc import Sequence
from typing import Annotated, ClassVar

import msgspec
import numpy as np

from shoal.controller.federated.aggregation.gathering import Blocks, Compared, Gathering, Shelf
from shoal.controller.federated.strategy import Strategy
from shoal.federated.sums import F64


class TrimmedMean(Strategy, frozen=True, kw_only=True):
    """cut   fraction of the updates, rounded down, that is trimmed at either end."""

    sums: ClassVar[bool] = False
    cut: Annotated[float, msgspec.Meta(ge=0, lt=0.5)] = 0.2

    def gather(self, size: int, shelf: Shelf) -> Gathering:
        return Compared(size, shelf, self._trimmed)

    def _trimmed(self, updates: Blocks) -> tuple[F64, Sequence[int]]:
        count = len(updates.rows)
        out = int(self.cut * count)

        def mean(block: F64) -> F64:
            return np.sort(block, axis=0)[out : count - out].mean(axis=0)

        return updates.each(mean), range(count)
