"""k-regular graph of pairwise masks in secure aggregation; every device can compute it.

Devices form a ring, ordered by a hash over all adverts, which no party can choose. The neighbours
of a device are the k/2 before and the k/2 after it (Bell et al., "Secure Single-Server Aggregation
with (Poly)Logarithmic Overhead", 2020).

    >>> neighbours_of("b", {name: name.encode() for name in "abcdef"}, 2, b"round")
    ('a', 'd')
"""

import hashlib
from collections.abc import Mapping


def ring(digests: Mapping[str, bytes], round_id: bytes) -> list[str]:
    """All devices in the order of the ring.

    digests   of all adverts: the order cannot be known before the last one
    """
    seed = hashlib.sha256(round_id)
    for name in sorted(digests):
        seed.update(name.encode() + b"\0" + digests[name])
    start = seed.digest()
    return sorted(digests, key=lambda name: hashlib.sha256(start + name.encode()).digest())


def neighbours_of(
    device: str, digests: Mapping[str, bytes], degree: int, round_id: bytes
) -> tuple[str, ...]:
    """Names of a device's neighbours, sorted: `degree` of them, or all others if fewer."""
    return around(ring(digests, round_id), degree)[device]


def around(order: list[str], degree: int) -> dict[str, tuple[str, ...]]:
    """Neighbours of every device. degree: even, unless it covers all others."""
    count = len(order)
    if degree >= count - 1:
        return {name: tuple(sorted(set(order) - {name})) for name in order}
    steps = [step for step in range(-(degree // 2), degree // 2 + 1) if step]
    return {
        name: tuple(sorted(order[(i + step) % count] for step in steps))
        for i, name in enumerate(order)
    }
