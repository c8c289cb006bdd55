"""FedAvg: the mean of the updates, weighted by examples.

McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", 2017.
"""

from shoal.controller.federated.gathering import Gathering, Shelf, Weighed
from shoal.controller.federated.strategy import ByExamples


class FedAvg(ByExamples, frozen=True, kw_only=True):
    """theta + Σ n·delta / Σ n."""

    def gather(self, size: int, shelf: Shelf) -> Gathering:
        return Weighed(size, self.weight)
