"""Krum: the update closest to its nearest neighbours; Multi-Krum: the mean of the best few.

Blanchard et al., "Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent", 2017.

Distances are taken in float64 between deltas. Between float32 parameters, or as
‖a‖² + ‖b‖² - 2ab, they are dominated by rounding once updates are small beside theta.
"""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from shoal.controller.federated.aggregation.gathering import Blocks, Compared, Gathering, Shelf
from shoal.controller.federated.strategy import MOST_EXAMPLES, Counted, Natural, Strategy
from shoal.federated.sums import F64


class Krum(Strategy, frozen=True, kw_only=True):
    """Applies one update; the paper's guarantee needs at least 2·malicious + 3.

    malicious   number of malicious devices
    """

    sums: ClassVar[bool] = False
    malicious: Natural

    def gather(self, size: int, shelf: Shelf) -> Gathering:
        return Compared(size, shelf, self._best, 2 * self.malicious + 3)

    def _best(self, updates: Blocks) -> tuple[F64, Sequence[int]]:
        best = int(np.argmin(scores(distances(updates), self.malicious)))
        return updates.each(lambda block: block[best]), [best]


class MultiKrum(Strategy, frozen=True, kw_only=True):
    """The mean, by examples, of the `keep` best updates.

    keep   0: all but `malicious`
    """

    sums: ClassVar[bool] = False
    malicious: Natural
    keep: Natural = 0
    most_examples: Counted = MOST_EXAMPLES

    def gather(self, size: int, shelf: Shelf) -> Gathering:
        return Compared(size, shelf, self._few, max(2 * self.malicious + 3, self.keep))

    def _few(self, updates: Blocks) -> tuple[F64, Sequence[int]]:
        keep = self.keep or len(updates.rows) - self.malicious
        order = np.argsort(scores(distances(updates), self.malicious), kind="stable")
        best = np.sort(order[:keep])
        weights = np.minimum(updates.examples()[best], self.most_examples)
        weights /= weights.sum()
        mean = updates.each(lambda block: np.einsum("i,ij->j", weights, block[best]))
        return mean, best.tolist()


def distances(updates: Blocks) -> F64:
    """Squared distances between all pairs, float64 (N, N)."""
    count = len(updates.rows)
    found = np.zeros((count, count))
    for _, block in updates:
        for i in range(count - 1):
            apart = block[i + 1 :] - block[i]
            found[i, i + 1 :] += np.einsum("ij,ij->i", apart, apart)
    return found + found.T


def scores(squared: F64, malicious: int) -> F64:
    """Sum of the squared distances to the N - malicious - 2 nearest updates; float64 (N,)."""
    nearest = max(1, len(squared) - malicious - 2)
    return np.sort(squared, axis=1)[:, 1 : nearest + 1].sum(axis=1)
