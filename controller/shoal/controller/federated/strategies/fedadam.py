"""FedAdam: Adam on the server, with the mean update as the gradient.

Reddi et al., "Adaptive Federated Optimization", 2021. As Flower does, and Reddi does not, the
learning rate is corrected for the moments' start at zero, with the power of the next round.
"""

import math

import numpy as np

from shoal.controller.federated.strategies.fedavg import FedAvg
from shoal.controller.federated.strategy import Fraction, Positive
from shoal.controller.federated.updates import Aggregate, Server


class FedAdam(FedAvg, frozen=True, kw_only=True):
    """m, v: running means of delta and delta²; theta + lr·m/(√v + tau).

    lr     the server's learning rate
    tau    adaptivity: limits the steps of elements with small updates
    """

    lr: Positive = 0.1
    beta1: Fraction = 0.9
    beta2: Fraction = 0.99
    tau: Positive = 1e-9

    def advance(self, server: Server, found: Aggregate) -> Server:
        m = self.beta1 * server.recall("m") + (1 - self.beta1) * found.delta
        v = self.beta2 * server.recall("v") + (1 - self.beta2) * found.delta**2
        power = server.rounds + 2
        lr = self.lr * math.sqrt(1 - self.beta2**power) / (1 - self.beta1**power)
        return server.moved(lr * m / (np.sqrt(v) + self.tau), m=m, v=v)
