"""Adaptive clipping: the clip tracks a quantile of the update norms.

Andrew et al., "Differentially Private Learning with Adaptive Clipping", 2021. The number of
updates within the clip is private too and gets its own noise; the updates' noise is raised so that
both together cost what was planned.
"""

import math
from typing import Annotated

import msgspec
import numpy as np

from shoal.errors import SettingError
from shoal.federated.noise import Draws, discrete_gaussian


class AdaptiveClip(msgspec.Struct, frozen=True, kw_only=True):
    """Update rule of the clip.

    share    target quantile: share of the updates within the clip
    rate     learning rate of the clip's logarithm
    spread   standard deviation, in devices, of the noise on twice the number within
    """

    share: Annotated[float, msgspec.Meta(gt=0, lt=1)] = 0.5
    rate: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.2
    spread: Annotated[float, msgspec.Meta(gt=0)] = 5.0

    def noise_on_updates(self, noise: float) -> float:
        """Noise multiplier for the updates, so that with the count both cost `noise`.

        A device changes twice the centred count by 1. SettingError when the count alone costs more.
        """
        left = noise**-2 - (2 * self.spread) ** -2
        if left <= 0:
            raise SettingError(
                f"noise {noise:g} with a count known to {self.spread:g} devices",
                f"let spread be more than {noise / 2:g}",
            )
        return 1 / math.sqrt(left)

    def noisy_share(self, within: int, devices: int, draws: Draws) -> float:
        """Share of the updates within the clip, with noise."""
        centred = 2 * within - devices
        noise = int(discrete_gaussian(1, 2 * self.spread, draws)[0])
        return (centred + noise + devices) / (2 * devices)

    def next_clip(self, clip: float, share: float) -> float:
        """Clip of the next round."""
        moved = self.rate * (float(np.clip(share, 0, 1)) - self.share)
        return clip * math.exp(-moved)
