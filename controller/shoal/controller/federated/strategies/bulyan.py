"""Bulyan: Krum selects updates, then every element is a trimmed mean around the median.

El Mhamdi, Guerraoui and Rouault, "The Hidden Vulnerability of Distributed Learning in Byzantium",
2018. A single element cannot carry an attack that is small in the L2 norm.
"""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from shoal.controller.federated.aggregation.gathering import Blocks, Compared, Gathering, Shelf
from shoal.controller.federated.strategies.krum import distances, scores
from shoal.controller.federated.strategy import Natural, Strategy
from shoal.federated.sums import F64


class Bulyan(Strategy, frozen=True, kw_only=True):
    """Of N updates N - 2f by Krum, then of each element the N - 4f nearest their median.

    malicious   f, number of malicious devices; at least 4·f + 3 updates are needed
    """

    sums: ClassVar[bool] = False
    malicious: Natural

    def gather(self, size: int, shelf: Shelf) -> Gathering:
        return Compared(size, shelf, self._combine, 4 * self.malicious + 3)

    def _combine(self, updates: Blocks) -> tuple[F64, Sequence[int]]:
        chosen = _one_by_one(distances(updates), self.malicious)
        keep = len(chosen) - 2 * self.malicious
        return updates.each(lambda block: _around_median(block[chosen], keep)), chosen


def _one_by_one(squared: F64, malicious: int) -> list[int]:
    """N - 2f indexes, sorted: repeatedly Krum's choice among the remaining updates."""
    left, chosen = list(range(len(squared))), []
    for _ in range(len(squared) - 2 * malicious):
        best = int(np.argmin(scores(squared[np.ix_(left, left)], malicious)))
        chosen.append(left.pop(best))
    return sorted(chosen)


def _around_median(block: F64, keep: int) -> F64:
    """Mean of the `keep` values nearest the median, by column."""
    away = np.abs(block - np.median(block, axis=0))
    nearest = np.argsort(away, axis=0, kind="stable")[:keep]
    return np.take_along_axis(block, np.sort(nearest, axis=0), axis=0).mean(axis=0)
