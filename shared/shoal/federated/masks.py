"""Masks of secure aggregation: pseudorandom 32-bit streams from seeds shared by two devices.

Each seed is derived for one mask in one round. ChaCha20 as generator, HKDF-SHA256 for derivation,
X25519 between devices.

Which devices share a mask is a k-regular graph that every device can compute: a ring, ordered by a
hash over all adverts, which no party can choose. The neighbours of a device are the k/2 before and
the k/2 after it (Bell et al., "Secure Single-Server Aggregation with (Poly)Logarithmic Overhead",
2020).

    >>> neighbours_of("b", {name: name.encode() for name in "abcdef"}, 2, b"round")
    ('a', 'd')
"""

import hashlib
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from shoal.errors import InputError

U32 = npt.NDArray[np.uint32]
#: Numbers at a time: 64 KiB fit a small cache.
_PART = 1 << 14
_ZEROS = bytes(4 * _PART)


def derive(secret: bytes, purpose: str, round_id: bytes, *names: str) -> bytes:
    """Derive 32 bytes for one purpose in one round; names are joined unambiguously."""
    info = b"\0".join([b"shoal/secagg", purpose.encode(), *(name.encode() for name in names)])
    return HKDF(hashes.SHA256(), 32, round_id, info).derive(secret)


def agreed(own: X25519PrivateKey, peer: bytes) -> bytes:
    """Shared secret of two devices (X25519), 32 bytes; InputError for an invalid or weak key."""
    try:
        return own.exchange(X25519PublicKey.from_public_bytes(peer))
    except ValueError as error:
        raise InputError(f"a key of another device: {error}", "leave that device out") from error


def pair_seed(own: X25519PrivateKey, peer: bytes, round_id: bytes, a: str, b: str) -> bytes:
    """Seed of the mask between devices a and b: equal on both sides."""
    return derive(agreed(own, peer), "pair", round_id, *sorted((a, b)))


def self_seed(secret: bytes, round_id: bytes, device: str) -> bytes:
    """Seed of a device's self mask."""
    return derive(secret, "self", round_id, device)


def add_mask(vector: U32, seed: bytes, sign: int) -> None:
    """vector ± the mask of `seed`, modulo 2**32, in place; constant memory."""
    stream = Cipher(ChaCha20(seed, bytes(16)), mode=None).encryptor()
    drawn = bytearray(4 * _PART + 64)
    numbers = np.frombuffer(drawn, "<u4", _PART)
    apply = np.add if sign > 0 else np.subtract
    for start in range(0, vector.size, _PART):
        part = vector[start : start + _PART]
        stream.update_into(memoryview(_ZEROS)[: 4 * part.size], drawn)
        apply(part, numbers[: part.size], out=part)


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
