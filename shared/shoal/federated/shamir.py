"""Shamir's secret sharing of 32-byte secrets: t shares reveal the secret, t - 1 reveal nothing.

The prime is the smallest above 2**256, so that every 32-byte secret is a field element and a
share is 33 bytes. Shamir, "How to Share a Secret", 1979.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache

from shoal.errors import ConflictError, InputError

PRIME = 2**256 + 297
SECRET, SHARE = 32, 33
#: Random bytes of a field element: uniform to 2**-127.
_DRAWN = 48

Entropy = Callable[[int], bytes]


def split(secret: bytes, threshold: int, points: Sequence[int], entropy: Entropy) -> list[bytes]:
    """Split a secret into a 33-byte share for every point (distinct, 1 or more).

    Raises InputError when the threshold is not between 1 and the number of points.
    """
    if len(secret) != SECRET or not 1 <= threshold <= len(set(points)) or min(points) < 1:
        raise InputError(
            f"{len(secret)} bytes among {len(set(points))} points, {threshold} needed",
            "use 32 bytes, distinct points, and a threshold of at most their number",
        )
    drawn = [int.from_bytes(entropy(_DRAWN)) % PRIME for _ in range(threshold - 1)]
    coefficients = [*drawn, int.from_bytes(secret)]
    return [_at(coefficients, point).to_bytes(SHARE) for point in points]


def combine(shares: Mapping[int, bytes], threshold: int) -> bytes:
    """Reconstruct the secret from shares by point, using the lowest `threshold` points.

    Raises ConflictError for too few shares, InputError for inconsistent ones.
    """
    if len(shares) < threshold:
        raise ConflictError(
            f"{len(shares)} shares, {threshold} needed",
            "too many devices were lost: run the round again",
            have=len(shares),
            need=threshold,
        )
    points = tuple(sorted(shares)[:threshold])
    terms = zip(_weights_at_zero(points), points, strict=True)
    value = sum(weight * int.from_bytes(shares[point]) for weight, point in terms) % PRIME
    if value >= 2 ** (8 * SECRET):
        raise InputError("the shares are inconsistent", "one of the devices sent a wrong one")
    return value.to_bytes(SECRET)


def _at(coefficients: Sequence[int], x: int) -> int:
    value = 0
    for coefficient in coefficients:
        value = (value * x + coefficient) % PRIME
    return value


@lru_cache(maxsize=4096)
def _weights_at_zero(points: tuple[int, ...]) -> tuple[int, ...]:
    """Lagrange coefficients for interpolation at 0."""
    weights = []
    for i, point in enumerate(points):
        above = below = 1
        for j, other in enumerate(points):
            if i != j:
                above = above * other % PRIME
                below = below * (other - point) % PRIME
        weights.append(above * pow(below, -1, PRIME) % PRIME)
    return tuple(weights)
