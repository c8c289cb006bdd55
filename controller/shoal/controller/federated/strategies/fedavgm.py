"""FedAvgM: FedAvg with momentum on the server.

Hsu, Qi and Brown, "Measuring the Effects of Non-Identical Data Distribution for Federated Visual
Classification", 2019.
"""

from shoal.controller.federated.strategies.fedavg import FedAvg
from shoal.controller.federated.strategy import Fraction, Positive
from shoal.controller.federated.updates import Aggregate, Server


class FedAvgM(FedAvg, frozen=True, kw_only=True):
    """m = momentum·m + delta; theta + lr·m.

    lr         the server's learning rate
    momentum   of the server
    """

    lr: Positive = 1.0
    momentum: Fraction = 0.9

    def advance(self, server: Server, found: Aggregate) -> Server:
        m = self.momentum * server.recall("m") + found.delta
        return server.moved(self.lr * m, m=m)
