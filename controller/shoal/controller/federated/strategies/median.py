"""Coordinate-wise median of the updates.

Yin et al., "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates", 2018.
"""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from shoal.controller.federated.aggregation.gathering import Blocks, Compared, Gathering, Shelf
from shoal.controller.federated.strategy import Strategy
from shoal.federated.sums import F64


class Median(Strategy, frozen=True, kw_only=True):
    """theta + median of the deltas; every device weighs the same."""

    sums: ClassVar[bool] = False

    def gather(self, size: int, shelf: Shelf) -> Gathering:
        return Compared(size, shelf, _median)


def _median(updates: Blocks) -> tuple[F64, Sequence[int]]:
    delta = updates.each(lambda block: np.median(block, axis=0))
    return delta, range(len(updates.rows))
