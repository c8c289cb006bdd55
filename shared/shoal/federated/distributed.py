"""Distributed differential privacy: each device adds a share of the noise of the secure sum.

Kairouz, Liu and Steinke, "The Distributed Discrete Gaussian Mechanism for Federated Learning with
Secure Aggregation", 2021. Not even the controller sees a sum without noise. Each device's share
is enough for `least` devices in the sum, whichever drop out.
"""

import math

import numpy as np

from shoal.errors import InputError, SettingError
from shoal.federated.fixed_point import FixedPoint, wrapped
from shoal.federated.masks import U32
from shoal.federated.noise import F64, I64, LARGEST, Draws, discrete_gaussian
from shoal.federated.plan import Privacy
from shoal.params import F32, clipped

#: Headroom for a device's noise in standard deviations; beyond it the sum would wrap around,
#: which harms accuracy and not privacy.
ROOM = 12.0
_TRIES = 100


def scale_for(privacy: Privacy, clip: float, devices: int, least: int) -> FixedPoint:
    """Fixed-point scale with headroom for the noise. clip: of single elements.

    Raises SettingError when noise and values exceed 32 bits.
    """
    per_level = privacy.noise * privacy.clip / clip / math.sqrt(least)
    levels = int((2**31 - 1) / devices / (1 + ROOM * per_level)) - 1
    levels = min(levels, int(LARGEST / max(per_level, 1e-9)))
    noise = math.ceil(ROOM * per_level * max(levels, 0))
    return FixedPoint(clip=clip, devices=devices, noise=noise, levels_most=max(levels, 1)).check()


def own_sigma(privacy: Privacy, scale: FixedPoint, least: int) -> float:
    """Standard deviation of one device's noise, in quantization steps."""
    return privacy.noise * privacy.clip / scale.step / math.sqrt(least)


def effective_noise(privacy: Privacy, scale: FixedPoint, least: int, size: int) -> float:
    """Noise over sensitivity for the accountant, including rounding and discretization.

    Raises SettingError when the steps are too coarse for a Gaussian approximation.
    """
    sigma = own_sigma(privacy, scale, least)
    apart = 10 * sum(
        math.exp(-2 * math.pi**2 * sigma**2 * k / (k + 1)) for k in range(1, min(least, 1000))
    )
    apart += 10 * max(0, least - 1000) * math.exp(-2 * math.pi**2 * sigma**2 * 0.999)
    cost = rounded_norm(privacy.clip / scale.step, size) / (math.sqrt(least) * sigma)
    cost += apart * math.sqrt(size)
    if sigma < 0.5 or cost > 2 / privacy.noise:
        raise SettingError(
            f"each device would add noise of {sigma:.2g} steps",
            "use more noise, finer steps or a smaller cohort",
        )
    return 1 / cost


def rounded_norm(norm: float, size: int) -> float:
    """Bound on the L2 norm of a rounded vector, in steps; beyond it rounding is repeated."""
    root = math.sqrt(size)
    return min(norm + root, math.sqrt(norm**2 + size / 4 + norm + root / 2))


def encode_privately(
    delta: F32, privacy: Privacy, scale: FixedPoint, least: int, draws: Draws
) -> U32:
    """uint32 (P + 1,): the clipped update with this device's noise, and weight 1."""
    if not np.isfinite(delta).all():
        raise InputError("an update with NaN in it cannot be sent", "its training diverged")
    cut = np.clip(clipped(delta, privacy.clip).astype(np.float64), -scale.clip, scale.clip)
    bound = rounded_norm(privacy.clip / scale.step, delta.size)
    whole = _rounded(cut / scale.step, bound, draws)
    noise = discrete_gaussian(delta.size, own_sigma(privacy, scale, least), draws)
    return wrapped(np.append(whole + noise, 1))


def _rounded(scaled: F64, bound: float, draws: Draws) -> I64:
    """Unbiased stochastic rounding, with a norm within the bound."""
    for _ in range(_TRIES):
        whole = np.ceil(scaled - draws.uniform(scaled.size))
        if float(np.einsum("i,i->", whole, whole)) <= bound**2:
            return whole.astype(np.int64)
    return np.trunc(scaled).astype(np.int64)
