"""Central differential privacy: a mean of clipped updates with noise.

McMahan et al., "Learning Differentially Private Recurrent Language Models", 2018. The divisor is
fixed beforehand, because the number of participants is private too under random sampling.
"""

import math

import numpy as np

from shoal.controller.federated.aggregation.gathering import check_new, too_few
from shoal.controller.federated.updates import Aggregate, Update, check
from shoal.errors import SettingError
from shoal.federated.noise import Draws, noisy, sensitivity
from shoal.federated.plan import Privacy
from shoal.federated.sums import ExactSum
from shoal.params import clipped


class PrivateMean:
    """(Σ delta clipped + noise) / divisor; a Gathering.

    divisor   expected number of updates, from the plan
    within    number of updates within the clip; private, for the adaptive clip only
    """

    def __init__(self, size: int, privacy: Privacy, divisor: float, draws: Draws) -> None:
        if privacy.where != "central" or not divisor > 0:
            raise SettingError(f"{privacy.where} noise cannot be added by the controller")
        self._size, self._privacy, self._divisor = size, privacy, divisor
        self._draws, self._sum = draws, ExactSum(size)
        self._devices: set[str] = set()
        self.within = 0

    def add(self, update: Update) -> None:
        check(update, self._size)
        check_new(update.device, self._devices)
        norm = math.sqrt(update.squared_norm())
        self._sum.add(clipped(update.delta, self._privacy.clip, norm))
        self._devices.add(update.device)
        self.within += norm <= self._privacy.clip

    def result(self) -> Aggregate:
        """Mean with new noise: call it once a round."""
        if not self._devices:
            raise too_few(0, 1)
        sigma = self._privacy.noise * self._privacy.clip
        delta = noisy(self._sum.value(), sigma, self._draws) / self._divisor
        devices = tuple(sorted(self._devices))
        return Aggregate(delta=delta.astype(np.float64), devices=devices, chosen=devices)


def central_noise(privacy: Privacy, size: int) -> float:
    """Noise multiplier for the accountant, with the grid's rounding in the sensitivity."""
    sigma = privacy.noise * privacy.clip
    return sigma / sensitivity(privacy.clip, sigma, size)
