"""L2 clipping of updates."""

import math

import numpy as np

from shoal.params import F32

#: Margin, so that float32 rounding does not exceed the bound.
_SAFE = 1 - 1e-6


def norm_of(delta: F32) -> float:
    """L2 norm in float64, independent of the number of threads."""
    return math.sqrt(float(np.einsum("i,i->", delta, delta, dtype=np.float64)))


def clipped(delta: F32, bound: float) -> F32:
    """Scale delta to the norm `bound` if it is longer; float32 (P,).

    >>> clipped(np.array([3, 4], np.float32), 1.0).round(3).tolist()
    [0.6000000238418579, 0.800000011920929]
    """
    norm = norm_of(delta)
    return delta if norm <= bound else (delta * (bound * _SAFE / norm)).astype(np.float32)
