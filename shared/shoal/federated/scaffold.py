"""Client side of SCAFFOLD (Karimireddy et al. 2020, option II).

A device keeps its control variate c_i between rounds. It adds `shift` = c - c_i to every gradient,
and afterwards sets c_i to its mean gradient.
"""

import numpy as np

from shoal.params import F32


def shift_of(shared: F32, own: F32) -> F32:
    """Correction of every gradient: c - c_i, float32 (P,)."""
    return shared - own


def control_after(own: F32, shared: F32, delta: F32, steps: int, lr: float) -> F32:
    """c_i after `steps` steps of SGD with rate `lr` that changed theta by delta; float32 (P,).

    >>> one = np.ones(1, np.float32)
    >>> control_after(own=0 * one, shared=0 * one, delta=-one, steps=10, lr=0.1).tolist()
    [1.0]
    """
    gradient = -delta.astype(np.float64) / (steps * lr)
    return (own - shared.astype(np.float64) + gradient).astype(np.float32)
