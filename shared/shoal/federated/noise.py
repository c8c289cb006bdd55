"""Noise for differential privacy: discrete Gaussian from a cryptographic stream.

The discrete Gaussian is sampled by rejection from the discrete Laplace (Canonne, Kamath and
Steinke, "The Discrete Gaussian for Differential Privacy", 2020), many at a time, with acceptance
in float64: probabilities are exact to about 2**-50. Noise on real numbers is a discrete Gaussian
on a fine grid, since floating-point samples leak the value (Mironov 2012).

    >>> noise = discrete_gaussian(100_000, 3.0, Draws(b"a seed of this test: 32 bytes.  "))
    >>> abs(float(noise.std()) - 3) < 0.03, abs(float(noise.mean())) < 0.05
    (True, True)
"""

import math

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20

from shoal.errors import InputError
from shoal.federated.plan import Privacy
from shoal.params import F32, clipped

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
#: Smallest number of grid steps per standard deviation.
_STEPS = 2.0**20
#: Largest standard deviation: float64 holds integers of this size exactly.
LARGEST = 2.0**40


class Draws:
    """Uniform random numbers from a secret seed of 32 bytes, to be used once."""

    def __init__(self, seed: bytes) -> None:
        self._stream = Cipher(ChaCha20(seed, bytes(16)), mode=None).encryptor()

    def uniform(self, count: int) -> F64:
        """float64 (count,) in (0, 1]: multiples of 2**-53."""
        bits = np.frombuffer(self._stream.update(bytes(8 * count)), "<u8")
        return ((bits >> np.uint64(11)) + np.uint64(1)).astype(np.float64) * 2.0**-53


def discrete_gaussian(count: int, sigma: float, draws: Draws) -> I64:
    """int64 (count,), P(x) ∝ exp(-x²/2sigma²); InputError beyond the largest sigma."""
    if not 0 < sigma <= LARGEST:
        raise InputError(f"noise of {sigma} steps", f"it has to be above 0 and below {LARGEST:g}")
    found: list[I64] = []
    have = 0
    while have < count:
        kept = _accepted(max(64, int(1.5 * (count - have))), sigma, draws)
        found.append(kept)
        have += kept.size
    return np.concatenate(found)[:count] if found else np.zeros(0, np.int64)


def _accepted(tried: int, sigma: float, draws: Draws) -> I64:
    """Rejection sampling: the accepted ones of `tried` discrete Laplace samples."""
    scale = math.floor(sigma) + 1
    size = np.floor(-scale * np.log(draws.uniform(tried)))
    negative = draws.uniform(tried) <= 0.5
    accept = np.exp(-((size - sigma**2 / scale) ** 2) / (2 * sigma**2))
    kept = (draws.uniform(tried) <= accept) & ~(negative & (size == 0))
    return np.where(negative, -size, size)[kept].astype(np.int64)


def grid_of(sigma: float) -> float:
    """Grid step for real numbers: a power of two, 2**20 or more steps per sigma."""
    return 2.0 ** math.floor(math.log2(sigma / _STEPS))


def sensitivity(clip: float, sigma: float, size: int) -> float:
    """L2 sensitivity of a clipped vector of `size` elements after rounding to the grid."""
    return clip + math.sqrt(size) * grid_of(sigma)


def noisy(vector: F64, sigma: float, draws: Draws) -> F64:
    """Round a vector to the grid and add a discrete Gaussian; float64, same shape."""
    grid = grid_of(sigma)
    noise = discrete_gaussian(vector.size, sigma / grid, draws)
    return np.multiply(np.rint(vector / grid) + noise, grid, dtype=np.float64)


def privately(delta: F32, privacy: Privacy, draws: Draws) -> F32:
    """Local differential privacy: clip an update and add all of the noise; float32 (P,).

    InputError when it is not finite.
    """
    if not np.isfinite(delta).all():
        raise InputError("an update with NaN in it cannot be sent", "its training diverged")
    sigma = privacy.noise * privacy.clip
    exact = clipped(delta, privacy.clip).astype(np.float64)
    return noisy(exact, sigma, draws).astype(np.float32)


def bounded(delta: F32, privacy: Privacy | None, draws: Draws) -> F32:
    """The update clipped, and with local noise, as far as the plan asks for it."""
    if privacy is None:
        return delta
    local = privacy.where == "local"
    return privately(delta, privacy, draws) if local else clipped(delta, privacy.clip)


def local_noise(privacy: Privacy, size: int) -> float:
    """Noise over sensitivity for the ledger: two updates may be twice the clip apart."""
    sigma = privacy.noise * privacy.clip
    return sigma / sensitivity(2 * privacy.clip, sigma, size)
