"""A clip that follows the updates: a chosen share of them is to be within it.

Andrew et al., "Differentially Private Learning with Adaptive Clipping", 2021. How many were within
is private too, and gets noise of its own; the update's noise is raised so that both together
cost what was planned.
"""

import math
from typing import Annotated

import msgspec
import numpy as np

from shoal.errors import SettingError
from shoal.federated.noise import Draws, discrete_gaussian


class AdaptiveClip(msgspec.Struct, frozen=True, kw_only=True):
    """How the clip moves from round to round.

    share    of the updates that should be within the clip
    rate     how fast it moves, on its logarithm
    spread   noise on twice the number of devices within: its standard deviation, in devices
    """

    share: Annotated[float, msgspec.Meta(gt=0, lt=1)] = 0.5
    rate: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.2
    spread: Annotated[float, msgspec.Meta(gt=0)] = 5.0

    def noise_on_updates(self, noise: float) -> float:
        """What is left for updates of a planned `noise`: more, as the count costs too.

        A device moves twice the centred count by 1. SettingError when the count alone costs more.
        """
        left = noise**-2 - (2 * self.spread) ** -2
        if left <= 0:
            raise SettingError(
                f"noise {noise:g} with a count known to {self.spread:g} devices",
                f"let spread be more than {noise / 2:g}",
            )
        return 1 / math.sqrt(left)

    def noisy_share(self, within: int, devices: int, draws: Draws) -> float:
        """Share of the devices within the clip, with noise."""
        centred = 2 * within - devices
        noise = int(discrete_gaussian(1, 2 * self.spread, draws)[0])
        return (centred + noise + devices) / (2 * devices)

    def next_clip(self, clip: float, share: float) -> float:
        """The next round's clip."""
        moved = self.rate * (float(np.clip(share, 0, 1)) - self.share)
        return clip * math.exp(-moved)
