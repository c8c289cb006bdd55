"""Binary deltas: the difference between a file and an older version that the receiver has.

Three formats, whichever is smallest, each compressed by zstd:

    DICTIONARY   zstd with the old file as dictionary, as `zstd --patch-from`: moved pieces
    BYTES        byte minus byte: quantized weights after more training
    WORDS        32-bit word minus word, zigzag coded, transposed into byte planes: float32 weights
                 after more training; every one of them changed a little

More training changes every weight slightly: a dictionary finds no equal bytes, but the upper bytes
of the differences are nearly all zero. Measured by tests/bench/delta.py.

A delta is not trusted: its result is verified against the signed hash of the file.
"""

import enum
import math
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from shoal.errors import BundleError

if TYPE_CHECKING:
    from zstandard import ZstdCompressionDict, ZstdCompressor, ZstdDecompressor

#: Longest file, old or new, in bytes: both are held in memory.
LIMIT = 64 << 20
_MAGIC, _HEAD = b"shd1", 7
_WORD = 4
#: zstd levels: to compare formats; for differences that hardly compress, where the strongest level
#: takes twenty times as long for 1 % less; and the strongest.
_QUICK, _FAST, _STRONGEST = 1, 12, 19
#: Estimated share of the whole file beyond which no delta is made: to compress it takes ten times
#: as long as the estimate, and devices fetch no delta longer than 0.8 of the file.
WORST_RATIO = 0.85
#: Up to this length, formats are compared at the strongest level.
_SMALL = 1 << 17
#: Longer files of equal length are sampled: so many pieces of this length, evenly spaced.
_PIECES, _PIECE = 8, 1 << 17
_U8 = npt.NDArray[np.uint8]


class DeltaFormat(enum.IntEnum):
    """Encoding of the difference."""

    DICTIONARY, BYTES, WORDS = 0, 1, 2


def make(old: bytes, new: bytes, most: float = math.inf) -> bytes:
    """Make the delta from `old` to `new`.

    most   longest delta in bytes, by an estimate

    Raises BundleError beyond it, and for a file longer than LIMIT.

    >>> old = bytes(range(256)) * 40
    >>> new = old[:5000] + b"!" + old[5001:]
    >>> delta = make(old, new)
    >>> len(delta) < 100, apply(old, delta, len(new)) == new
    (True, True)
    """
    _check_length(len(old), len(new))
    level = _QUICK if len(new) > _SMALL else _STRONGEST
    best, cost = _smallest(old, new, level)
    dictionary_cost = len(_with_dictionary(old, len(new), level).compress(new))
    if min(cost, dictionary_cost) > most:
        least = min(cost, dictionary_cost)
        raise BundleError(f"a delta of about {least:.0f} bytes saves too little")
    if dictionary_cost < cost:
        packed = _with_dictionary(old, len(new), _STRONGEST).compress(new)
        return _head(DeltaFormat.DICTIONARY, 0, 0) + packed
    level = _STRONGEST if cost < len(new) / 4 or len(new) <= _SMALL else _FAST
    return _head(*best) + _plain(level).compress(_difference(old, new, *best))


def _smallest(old: bytes, new: bytes, level: int) -> tuple[tuple[DeltaFormat, int, int], float]:
    """The format with the shortest delta, (format, shift, end), and its estimated length."""
    ways = [(DeltaFormat.BYTES, 0), *((DeltaFormat.WORDS, shift) for shift in range(_WORD))]
    ends = (0, 1) if len(old) != len(new) else (0,)
    whole = len(new)
    if len(old) == whole > _PIECES * _PIECE:
        old, new = _sample(old), _sample(new)
    costs = {
        (way, shift, end): len(_plain(level).compress(_difference(old, new, way, shift, end)))
        for way, shift in ways
        for end in ends
    }
    best = min(costs, key=lambda each: costs[each])
    return best, costs[best] * whole / max(1, len(new))


def _sample(whole: bytes) -> bytes:
    """Evenly spaced pieces, aligned to words."""
    last = len(whole) - _PIECE
    starts = [last * i // (_PIECES - 1) // _WORD * _WORD for i in range(_PIECES)]
    return b"".join(whole[at : at + _PIECE] for at in starts)


def apply(old: bytes, delta: bytes, size: int) -> bytes:
    """Apply a delta: the new file of exactly `size` bytes. Raises BundleError if it is invalid."""
    import zstandard

    _check_length(len(old), size)
    if (
        len(delta) < _HEAD
        or delta[:4] != _MAGIC
        or delta[4] not in list(DeltaFormat)
        or delta[5] >= _WORD
    ):
        raise BundleError("the delta has an unknown format")
    way, shift, end = DeltaFormat(delta[4]), delta[5], delta[6]
    dictionary = old if way is DeltaFormat.DICTIONARY else None
    try:
        if zstandard.frame_content_size(delta[_HEAD:]) != size:
            raise BundleError(f"the delta makes no file of {size} bytes")
        decoded = _decompressor(dictionary, size).decompress(delta[_HEAD:], max_output_size=size)
    except (zstandard.ZstdError, MemoryError) as error:
        raise BundleError(f"the delta cannot be read: {error}") from error
    if way is DeltaFormat.DICTIONARY:
        return decoded
    return _undo(old, np.frombuffer(decoded, np.uint8), way, shift, end).tobytes()


def _difference(old: bytes, new: bytes, way: DeltaFormat, shift: int, end: int) -> bytes:
    base, wanted = _fit(old, len(new), end), np.frombuffer(new, np.uint8)
    if way is DeltaFormat.BYTES:
        return (wanted - base).tobytes()
    first, last = _words(len(new), shift)
    difference = wanted[first:last].view("<u4") - base[first:last].view("<u4")
    folded = (difference << np.uint32(1)) ^ (np.uint32(0) - (difference >> np.uint32(31)))
    planes = folded.astype("<u4").view(np.uint8).reshape(-1, _WORD).T
    edge = wanted - base
    return planes.tobytes() + edge[:first].tobytes() + edge[last:].tobytes()


def _undo(old: bytes, coded: _U8, way: DeltaFormat, shift: int, end: int) -> _U8:
    base = _fit(old, len(coded), end)
    if way is DeltaFormat.BYTES:
        return base + coded
    first, last = _words(len(coded), shift)
    folded = np.ascontiguousarray(coded[: last - first].reshape(_WORD, -1).T).view("<u4").ravel()
    difference = (folded >> np.uint32(1)) ^ (np.uint32(0) - (folded & np.uint32(1)))
    edge = coded[last - first :]
    made = base.copy()
    made[:first] += edge[:first]
    made[first:last] = (base[first:last].view("<u4") + difference).astype("<u4").view(np.uint8)
    made[last:] += edge[first:]
    return made


def _fit(old: bytes, size: int, end: int) -> _U8:
    """The old file cut or zero-padded to the new length, at its end or (end=1) beginning."""
    have = np.frombuffer(old, np.uint8)
    made = np.zeros(size, np.uint8)
    both = min(size, len(have))
    if both and end:
        made[-both:] = have[-both:]
    elif both:
        made[:both] = have[:both]
    return made


def _words(size: int, shift: int) -> tuple[int, int]:
    """Range of the whole words, the first of them at `shift`."""
    first = min(shift, size)
    return first, first + (size - first) // _WORD * _WORD


def _head(way: DeltaFormat, shift: int, end: int) -> bytes:
    return _MAGIC + bytes([way, shift, end])


def _check_length(old: int, new: int) -> None:
    if max(old, new) > LIMIT:
        raise BundleError(f"a delta of a file of {max(old, new)} bytes, {LIMIT} allowed")


def _plain(level: int) -> "ZstdCompressor":
    import zstandard

    return zstandard.ZstdCompressor(level=level)


def _with_dictionary(old: bytes, size: int, level: int) -> "ZstdCompressor":
    """Compressor with `old` as dictionary and a window over both files."""
    import zstandard

    parameters = zstandard.ZstdCompressionParameters.from_level(
        level,
        window_log=max(10, (len(old) + size).bit_length()),
        enable_ldm=True,
        source_size=size,
        dict_size=len(old),
    )
    return zstandard.ZstdCompressor(dict_data=_dictionary(old), compression_params=parameters)


def _decompressor(old: bytes | None, size: int) -> "ZstdDecompressor":
    import zstandard

    window = max(1024, 4 * (size + len(old or b"")))
    dictionary = None if old is None else _dictionary(old)
    return zstandard.ZstdDecompressor(
        dict_data=dictionary, max_window_size=1 << window.bit_length()
    )


def _dictionary(old: bytes) -> "ZstdCompressionDict":
    import zstandard

    return zstandard.ZstdCompressionDict(old, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
