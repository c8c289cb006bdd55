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
from collections.abc import Iterator, Sequence
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
#: Elements that are quantized at a time: 256 blocks.
_AT_ONCE = 256 * BLOCK
#: Largest window of a zstd frame that is unpacked in parts (level 3 writes 2 MiB), and bytes that
#: are skipped at a time.
_WINDOW, _SKIPPED = 1 << 23, 1 << 18


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
    return PackedUpdate(packed, size).part(0, size)


class PackedUpdate:
    """A compressed update that is read in parts: memory is that of a part.

    packed   a view of a file will do: only what a part needs is copied

    WireError for another size, and for invalid bytes: some are only found when all parts are read.
    """

    def __init__(self, packed: bytes | memoryview, size: int) -> None:
        if len(packed) < _HEAD.size:
            raise WireError(f"an update of {len(packed)} bytes")
        magic, kind, zstd, elements, kept = _HEAD.unpack_from(packed)
        if magic != _MAGIC or kind >= len(_KINDS) or zstd > 1:
            raise WireError(
                "an update of unknown kind", "is the peer a newer or a foreign version?"
            )
        self._name, self._zstd, self._size, self._kept = _KINDS[kind], bool(zstd), size, kept
        if elements != size or kept > size or (self._name != "top-k" and kept != size):
            raise WireError(f"an update of {elements} elements, {size} needed", "another model's?")
        self._body = memoryview(packed)[_HEAD.size :]
        self._length = _length(self._name, kept)
        held = _zstd_length(self._body) if zstd else len(self._body)
        if held != self._length:
            raise WireError(f"{self._name}: {held} bytes, {self._length} needed", "truncated?")

    def part(self, start: int, stop: int) -> F32:
        """Elements `start` to `stop`, float32 (stop - start,)."""
        if self._name == "none":
            [body] = self._read((4 * start, 4 * stop))
            delta = np.frombuffer(body, "<f4").astype(np.float32)
        elif self._name == "top-k":
            delta = self._sparse(start, stop)
        else:
            delta = self._values(0, start, stop)
        if not np.isfinite(delta).all():
            raise WireError(f"{self._name}: the update holds NaN or infinity")
        return delta

    def _sparse(self, start: int, stop: int) -> F32:
        [gaps] = self._read((0, 4 * self._kept))
        indexes = np.cumsum(np.frombuffer(gaps, "<u4"), dtype=np.uint64)
        steps = np.frombuffer(gaps, "<u4")
        if self._kept and (int(indexes[-1]) >= self._size or (steps[1:] == 0).any()):
            raise WireError("top-k: indexes outside of the model, or duplicate")
        first, last = np.searchsorted(indexes, np.array([start, stop], np.uint64)).tolist()
        delta = np.zeros(stop - start, np.float32)
        at = indexes[first:last].astype(np.intp) - start
        delta[at] = self._values(4 * self._kept, first, last)
        return delta

    def _values(self, offset: int, start: int, stop: int) -> F32:
        """Quantized values `start` to `stop`; offset: of the scales in the body."""
        first, last = start // BLOCK, -(-stop // BLOCK)
        codes_at = offset + 4 * -(-self._kept // BLOCK)
        apart = 2 if self._name == "int4" else 1
        scales, codes = self._read(
            (offset + 4 * first, offset + 4 * last),
            (codes_at + start // apart, codes_at + -(-stop // apart)),
        )
        values = np.frombuffer(codes, np.int8)
        if apart == 2:
            values = _unpack_int4(values.view(np.uint8))[start % 2 :]
        steps = np.repeat(np.frombuffer(scales, "<f4"), BLOCK)[start - first * BLOCK :]
        count = stop - start
        with np.errstate(invalid="ignore", over="ignore"):  # hostile scales: checked afterwards
            return (values[:count] * steps[:count]).astype(np.float32)

    def _read(self, *ranges: tuple[int, int]) -> "list[bytes | memoryview]":
        """Bytes of the body, which zstd unpacks from its start; ranges ascend."""
        if self._zstd:
            return list(_zstd_ranges(self._body, ranges, self._length))
        return [self._body[start:stop] for start, stop in ranges]


def largest(delta: F32, fraction: float) -> npt.NDArray[np.intp]:
    """Indexes of the largest elements by magnitude, ascending; at least one."""
    count = min(delta.size, max(1, round(fraction * delta.size)))
    return np.sort(np.argpartition(-np.abs(delta), count - 1)[:count])


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
    scales = np.empty(-(-values.size // BLOCK), "<f4")
    codes = np.empty(values.size, np.int8)
    for start in range(0, values.size, _AT_ONCE):
        part = slice(start, min(start + _AT_ONCE, values.size))
        scales[start // BLOCK : -(-part.stop // BLOCK)], codes[part] = _quantized(
            values[part], _MOST[name], draws
        )
    return scales.tobytes() + (_pack_int4(codes) if name == "int4" else codes.tobytes())


def _quantized(values: F32, most: int, draws: Draws) -> tuple[F32, I8]:
    padded = np.zeros(-(-values.size // BLOCK) * BLOCK)
    padded[: values.size] = values
    scales = (np.abs(padded).reshape(-1, BLOCK).max(axis=1) / most).astype(np.float32)
    scales = np.where(scales > 0, scales, np.float32(1))
    exact = padded / np.repeat(scales.astype(np.float64), BLOCK)
    codes = np.floor(exact[: values.size] + 1 - draws.uniform(values.size))
    return scales, np.clip(codes, -most, most).astype(np.int8)


def _pack_int4(codes: I8) -> bytes:
    """Pack two codes a byte, the first in the lower half."""
    shifted = np.append(codes, np.zeros(codes.size % 2, np.int8)).astype(np.int16) + 8
    return (shifted[::2] | shifted[1::2] << 4).astype(np.uint8).tobytes()


def _unpack_int4(packed: npt.NDArray[np.uint8]) -> I8:
    codes = np.stack([packed & 15, packed >> 4], axis=1).ravel()
    return (codes.astype(np.int16) - 8).astype(np.int8)


def _zstd_length(body: memoryview) -> int:
    """Bytes that a frame claims to unpack to; WireError when it is none."""
    import zstandard

    try:
        return int(zstandard.frame_content_size(body))
    except zstandard.ZstdError as error:
        raise _unreadable(error) from error


def _zstd_ranges(
    body: memoryview, ranges: Sequence[tuple[int, int]], length: int
) -> Iterator[bytes]:
    """Unpack at most `length` bytes, whatever the frame holds, and no more than needed."""
    import zstandard

    unpacker = zstandard.ZstdDecompressor(max_window_size=_WINDOW)
    at = 0
    try:
        with unpacker.stream_reader(body) as reader:
            for start, stop in ranges:
                while at < start:
                    at += _some(reader.read(min(_SKIPPED, start - at)))
                found = reader.read(stop - start)
                if len(found) != stop - start:
                    raise WireError("a compressed update that ends too early", "truncated?")
                at = stop
                yield found
            if at == length and reader.read(1):
                raise WireError(f"a compressed update of more than {length} bytes")
    except (zstandard.ZstdError, MemoryError) as error:
        raise _unreadable(error) from error


def _some(skipped: bytes) -> int:
    if not skipped:
        raise WireError("a compressed update that ends too early", "truncated?")
    return len(skipped)


def _unreadable(error: Exception) -> WireError:
    return WireError(f"a compressed update that cannot be read: {error}")
