"""Compression of updates: int8, int4, top-k sparsification; zstd on top.

Stochastic rounding is unbiased, with a scale for every block of 1024 elements, so that layers of
different magnitude do not share one. Error feedback: a device adds the residual of top-k to its
next update (Stich, Cordonnier and Jaggi, "Sparsified SGD with Memory", 2018).

    >>> draws = Draws(b"a seed of this test: 32 bytes.  ")
    >>> packed = compress(np.array([1, -0.5, 0], np.float32), Compression(kind="int8"), draws)
    >>> decompress(packed, 3).round(1).tolist()
    [1.0, -0.5, 0.0]
"""

import struct
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from shoal.errors import InputError, WireError
from shoal.federated.noise import Draws
from shoal.federated.plan import Compression
from shoal.params import F32

I8 = npt.NDArray[np.int8]
BLOCK = 1024
_MAGIC = b"shu1"
#: magic, kind, whether zstd, elements, elements kept
_HEAD = struct.Struct("<4sBBII")
_KINDS = ("none", "int8", "int4", "top-k")
_MOST = {"int8": 127, "int4": 7, "top-k": 127}
_LEVEL = 3


class Compressed(NamedTuple):
    """A compressed update, and the residual for the next round: float32 (P,)."""

    packed: bytes
    residual: F32


def compress(delta: F32, how: Compression, draws: Draws) -> bytes:
    """Compress an update, float32 (P,); InputError when it is not finite."""
    if not np.isfinite(delta).all():
        raise InputError("an update with NaN in it cannot be sent", "its training diverged")
    kept = delta.size
    if how.kind == "none":
        body = delta.astype("<f4").tobytes()
    elif how.kind == "top-k":
        indexes = largest(delta, how.fraction)
        kept = indexes.size
        body = _gaps(indexes) + _blocks(delta[indexes], "top-k", draws)
    else:
        body = _blocks(delta, how.kind, draws)
    if how.zstd:
        import zstandard

        body = zstandard.ZstdCompressor(level=_LEVEL).compress(body)
    head = _HEAD.pack(_MAGIC, _KINDS.index(how.kind), how.zstd, delta.size, kept)
    return head + body


def with_feedback(delta: F32, residual: F32, how: Compression, draws: Draws) -> Compressed:
    """Compress delta plus the residual; return the new residual as well."""
    whole = delta + residual
    packed = compress(whole, how, draws)
    return Compressed(packed, whole - decompress(packed, delta.size))


def decompress(packed: bytes, size: int) -> F32:
    """Decompress an update, float32 (size,); WireError for invalid bytes or another size."""
    if len(packed) < _HEAD.size:
        raise WireError(f"an update of {len(packed)} bytes")
    magic, kind, zstd, elements, kept = _HEAD.unpack_from(packed)
    if magic != _MAGIC or kind >= len(_KINDS) or zstd > 1:
        raise WireError("an update of unknown kind", "is the peer a newer or a foreign version?")
    name = _KINDS[kind]
    if elements != size or kept > size or (name != "top-k" and kept != size):
        raise WireError(f"an update of {elements} elements, {size} needed", "another model's?")
    length = _length(name, kept)
    body = _zstd_decompressed(packed[_HEAD.size :], length) if zstd else packed[_HEAD.size :]
    if len(body) != length:
        raise WireError(f"{name}: {len(body)} bytes, {length} needed", "it was truncated")
    delta = _read(name, body, size, kept)
    if not np.isfinite(delta).all():
        raise WireError(f"{name}: the update holds NaN or infinity")
    return delta


def largest(delta: F32, fraction: float) -> npt.NDArray[np.intp]:
    """Indexes of the largest elements by magnitude, ascending; at least one."""
    count = min(delta.size, max(1, round(fraction * delta.size)))
    return np.sort(np.argpartition(-np.abs(delta), count - 1)[:count])


def _read(name: str, body: bytes, size: int, kept: int) -> F32:
    if name == "none":
        return np.frombuffer(body, "<f4").astype(np.float32)
    if name != "top-k":
        return _values(name, body, kept)
    indexes = np.cumsum(np.frombuffer(body, "<u4", kept), dtype=np.uint64)
    steps = np.frombuffer(body, "<u4", kept)
    if kept and (int(indexes[-1]) >= size or (steps[1:] == 0).any()):
        raise WireError("top-k: indexes outside of the model, or duplicate")
    delta = np.zeros(size, np.float32)
    delta[indexes.astype(np.intp)] = _values(name, body[4 * kept :], kept)
    return delta


def _length(name: str, kept: int) -> int:
    scales = 4 * -(-kept // BLOCK)
    return {
        "none": 4 * kept,
        "int8": scales + kept,
        "int4": scales + (kept + 1) // 2,
        "top-k": 4 * kept + scales + kept,
    }[name]


def _gaps(indexes: npt.NDArray[np.intp]) -> bytes:
    return np.diff(indexes, prepend=0).astype("<u4").tobytes()


def _blocks(values: F32, name: str, draws: Draws) -> bytes:
    """Quantize: a float32 scale for every block, then the codes."""
    padded = np.zeros(-(-values.size // BLOCK) * BLOCK)
    padded[: values.size] = values
    most = _MOST[name]
    scales = (np.abs(padded).reshape(-1, BLOCK).max(axis=1) / most).astype(np.float32)
    scales = np.where(scales > 0, scales, np.float32(1))
    exact = padded / np.repeat(scales.astype(np.float64), BLOCK)
    codes = np.floor(exact[: values.size] + 1 - draws.uniform(values.size))
    codes = np.clip(codes, -most, most).astype(np.int8)
    return scales.astype("<f4").tobytes() + (
        _pack_int4(codes) if name == "int4" else codes.tobytes()
    )


def _values(name: str, body: bytes, count: int) -> F32:
    blocks = -(-count // BLOCK)
    scales = np.frombuffer(body, "<f4", blocks)
    codes = np.frombuffer(body, np.int8, offset=4 * blocks)
    if name == "int4":
        codes = _unpack_int4(codes.view(np.uint8), count)
    with np.errstate(invalid="ignore", over="ignore"):  # hostile scales: checked afterwards
        return (codes * np.repeat(scales, BLOCK)[:count]).astype(np.float32)


def _pack_int4(codes: I8) -> bytes:
    """Pack two codes a byte, the first in the lower half."""
    shifted = np.append(codes, np.zeros(codes.size % 2, np.int8)).astype(np.int16) + 8
    return (shifted[::2] | shifted[1::2] << 4).astype(np.uint8).tobytes()


def _unpack_int4(packed: npt.NDArray[np.uint8], count: int) -> I8:
    codes = np.stack([packed & 15, packed >> 4], axis=1).ravel()[:count]
    return (codes.astype(np.int16) - 8).astype(np.int8)


def _zstd_decompressed(body: bytes, length: int) -> bytes:
    """Decompress at most `length` bytes, whatever the frame claims."""
    import zstandard

    try:
        if zstandard.frame_content_size(body) != length:
            raise WireError(f"a compressed update of other than {length} bytes")
        return zstandard.ZstdDecompressor().decompress(body, max_output_size=length)
    except (zstandard.ZstdError, MemoryError) as error:
        raise WireError(f"a compressed update that cannot be read: {error}") from error
