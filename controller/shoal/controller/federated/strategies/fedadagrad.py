"""FedAdagrad: Adagrad on the server; an element's steps shrink with its past updates.

Reddi et al., "Adaptive Federated Optimization", 2021.
"""

import numpy as np

from shoal.controller.federated.strategies.fedavg import FedAvg
from shoal.controller.federated.strategy import Positive
from shoal.controller.federated.updates import Aggregate, Server


class FedAdagrad(FedAvg, frozen=True, kw_only=True):
    """v += delta²; theta + lr·delta/(√v + tau)."""

    lr: Positive = 0.1
    tau: Positive = 1e-9

    def advance(self, server: Server, found: Aggregate) -> Server:
        v = server.recall("v") + found.delta**2
        return server.moved(self.lr * found.delta / (np.sqrt(v) + self.tau), v=v)
