"""The device's half of SCAFFOLD (Karimireddy et al. 2020, option II).

A device keeps its control variate c_i from round to round. It trains with `shift` = c - c_i added
to every gradient, and afterwards c_i becomes the mean gradient it saw.
"""

import numpy as np

from shoal.params import F32


def shift_of(shared: F32, own: F32) -> F32:
    """What is added to every gradient: c - c_i, float32 (P,)."""
    return shared - own


def control_after(own: F32, shared: F32, delta: F32, steps: int, lr: float) -> F32:
    """c_i after `steps` steps of plain SGD at `lr` that moved theta by delta; float32 (P,).

    >>> one = np.ones(1, np.float32)
    >>> control_after(own=0 * one, shared=0 * one, delta=-one, steps=10, lr=0.1).tolist()
    [1.0]
    """
    gradient = -delta.astype(np.float64) / (steps * lr)
    return (own - shared.astype(np.float64) + gradient).astype(np.float32)
