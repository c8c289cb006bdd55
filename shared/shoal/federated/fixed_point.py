"""Fixed-point encoding of updates modulo 2**32, so that masks cancel exactly.

The sum cannot overflow: the quantization step is chosen so that all devices, each at its largest
weight and every element at the clip, stay below 2**31. The last element is the device's weight.

    >>> import numpy as np
    >>> scale = FixedPoint(clip=1.0, devices=10, weight=3)
    >>> sent = scale.encode(np.array([0.5, -0.25], np.float32), 3, np.random.default_rng(0))
    >>> mean, weight = scale.decode(sent, devices=1)
    >>> mean.round(6).tolist(), weight
    ([0.5, -0.25], 3)
"""

from typing import Annotated

import msgspec
import numpy as np
import numpy.typing as npt

from shoal.errors import InputError, SettingError
from shoal.federated.masks import U32
from shoal.params import F32

F64 = npt.NDArray[np.float64]
_HALF = 2**31 - 1
#: Smallest number of steps from 0 to the clip: as precise as int8.
LEAST_LEVELS = 127


class FixedPoint(msgspec.Struct, frozen=True, kw_only=True):
    """Quantization of updates; the same for the whole cohort.

    clip      elements are clipped to ±clip
    devices   largest number in one sum
    weight    largest weight of a device
    noise     largest noise of a device on an element, in steps; 0 without distributed noise
    levels_most   largest number of steps from 0 to the clip; 0: as many as fit
    """

    clip: Annotated[float, msgspec.Meta(gt=0)]
    devices: Annotated[int, msgspec.Meta(ge=1)]
    weight: Annotated[int, msgspec.Meta(ge=1)] = 1
    noise: Annotated[int, msgspec.Meta(ge=0)] = 0
    levels_most: Annotated[int, msgspec.Meta(ge=0)] = 0

    def check(self) -> "FixedPoint":
        """Return itself; SettingError when 32 bits are too few for so many devices."""
        if self.levels < LEAST_LEVELS:
            raise SettingError(
                f"{self.devices} devices of weight up to {self.weight} and noise up to "
                f"{self.noise} leave {self.levels} steps of 32 bits; {LEAST_LEVELS} are needed",
                "lower the largest weight, the noise or the cohort",
            )
        return self

    @property
    def levels(self) -> int:
        """Steps from 0 to the clip."""
        fit = (_HALF // self.devices - self.noise) // self.weight
        return min(fit, self.levels_most) if self.levels_most else fit

    @property
    def step(self) -> float:
        """Quantization step."""
        return self.clip / self.levels

    def encode(self, delta: F32, weight: int, random: "np.random.Generator") -> U32:
        """Encode as uint32 (P + 1,): weight times delta, stochastically rounded (unbiased), and the
        weight.

        InputError when delta is not finite or the weight not between 1 and the largest.
        """
        if not 1 <= weight <= self.weight or not np.isfinite(delta).all():
            raise InputError(
                f"an update of weight {weight} (1 to {self.weight}) or with NaN in it",
                "it cannot be sent",
            )
        scaled = np.clip(delta.astype(np.float64), -self.clip, self.clip) / self.step
        whole = np.floor(scaled + random.random(delta.size))
        whole = np.clip(whole, -self.levels, self.levels).astype(np.int64) * weight
        return wrapped(np.append(whole, weight))

    def decode(self, total: U32, devices: int) -> tuple[F64, int]:
        """(weighted mean float64 (P,), sum of weights) from the sum of `devices` updates.

        Raises InputError when the sum is out of range for honest devices.
        """
        signed = unwrapped(total)
        weight = int(signed[-1])
        bound = weight * self.levels + devices * self.noise
        if not devices <= weight <= devices * self.weight or np.abs(signed[:-1]).max() > bound:
            raise InputError(
                f"the sum of {devices} updates is out of its range (weight {weight})",
                "a device sent values out of range, or shares were wrong: discard the round",
            )
        return np.multiply(signed[:-1], self.step / weight, dtype=np.float64), weight


def wrapped(whole: npt.NDArray[np.int64]) -> U32:
    """Integers modulo 2**32."""
    return (whole & 0xFFFFFFFF).astype(np.uint32)


def unwrapped(numbers: U32) -> npt.NDArray[np.int64]:
    """Integers between -2**31 and 2**31 from their residues."""
    return numbers.view(np.int32).astype(np.int64)
