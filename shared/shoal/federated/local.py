"""Local differential privacy: a device adds all of the noise to its own update."""

import numpy as np

from shoal.errors import InputError
from shoal.federated.clipping import clipped
from shoal.federated.noise import Draws, noisy, sensitivity
from shoal.federated.plan import Privacy
from shoal.params import F32


def privately(delta: F32, privacy: Privacy, draws: Draws) -> F32:
    """Clip an update and add noise; float32 (P,). InputError when it is not finite."""
    if not np.isfinite(delta).all():
        raise InputError("an update with NaN in it cannot be sent", "its training diverged")
    sigma = privacy.noise * privacy.clip
    exact = clipped(delta, privacy.clip).astype(np.float64)
    return noisy(exact, sigma, draws).astype(np.float32)


def local_noise(privacy: Privacy, size: int) -> float:
    """Noise over sensitivity for the ledger: two updates may be twice the clip apart."""
    sigma = privacy.noise * privacy.clip
    return sigma / sensitivity(2 * privacy.clip, sigma, size)
