"""FedYogi: as FedAdam, with a second moment whose decay does not grow with its size.

Reddi et al., "Adaptive Federated Optimization", 2021.
"""

import numpy as np

from shoal.controller.federated.strategies.fedavg import FedAvg
from shoal.controller.federated.strategy import Fraction, Positive
from shoal.controller.federated.updates import Aggregate, Server


class FedYogi(FedAvg, frozen=True, kw_only=True):
    """v -= (1 - beta2)·delta²·sign(v - delta²); theta + lr·m/(√v + tau)."""

    lr: Positive = 0.01
    beta1: Fraction = 0.9
    beta2: Fraction = 0.99
    tau: Positive = 1e-3

    def advance(self, server: Server, found: Aggregate) -> Server:
        square, v = found.delta**2, server.recall("v")
        m = self.beta1 * server.recall("m") + (1 - self.beta1) * found.delta
        v = v - (1 - self.beta2) * square * np.sign(v - square)
        return server.moved(self.lr * m / (np.sqrt(v) + self.tau), m=m, v=v)
