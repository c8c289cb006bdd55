"""What a file differs by from an older one that the other side has: made once, applied anywhere.

Three ways, whichever is smallest, each then compressed by zstd:

    DICTIONARY   zstd with the old file as dictionary, as `zstd --patch-from`: pieces that moved
    BYTES        byte minus byte: quantized weights, trained on
    WORDS        32-bit word minus word, the sign in the lowest bit, the four bytes of all words
                 each together: float32 weights, trained on; every one of them changed a little

Weights that are trained on change everywhere and hardly: no dictionary finds equal bytes there, but
the upper bytes of the differences are nearly all zero. tests/bench/delta.py measures it.

A delta is a hint, never trusted: what comes of it is held against the file's signed hash.
"""

import enum
import math
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from shoal.errors import BundleError

if TYPE_CHECKING:
    from zstandard import ZstdCompressionDict, ZstdCompressor, ZstdDecompressor

#: Longest file, old or new, that a delta is made of or applied to: both are held in memory.
LIMIT = 64 << 20
_MAGIC, _HEAD = b"shd1", 7
_WORD = 4
#: Levels of zstd: to find the smallest way; for differences that hardly shrink, where the strongest
#: takes twenty times as long for one byte in a hundred less; and the strongest.
_QUICK, _FAST, _STRONGEST = 1, 12, 19
#: Share of the whole file beyond which no delta is worth making: to compress what a quick look puts
#: there takes ten times as long as the look, and devices fetch none longer than 0.8 of it.
WORST_RATIO = 0.85
#: Up to this length the smallest way is looked for at full strength.
_SMALL = 1 << 17
#: Of longer files of one length, so many pieces of this length are looked at, from end to end.
_PIECES, _PIECE = 8, 1 << 17
_U8 = npt.NDArray[np.uint8]


class DeltaFormat(enum.IntEnum):
    """How a delta says what differs."""

    DICTIONARY, BYTES, WORDS = 0, 1, 2


def make(old: bytes, new: bytes, most: float = math.inf) -> bytes:
    """The delta that makes `new` of `old`; its length is what it costs.

    most   bytes: what a quick look puts beyond them is not made

    Raises BundleError for that, and for a file longer than LIMIT.

    >>> old = bytes(range(256)) * 40
    >>> new = old[:5000] + b"!" + old[5001:]
    >>> delta = make(old, new)
    >>> len(delta) < 100, apply(old, delta, len(new)) == new
    (True, True)
    """
    _check_length(len(old), len(new))
    looking = _QUICK if len(new) > _SMALL else _STRONGEST
    best, cost = _smallest(old, new, looking)
    keyed = len(_keyed(old, len(new), looking).compress(new))
    if min(cost, keyed) > most:
        raise BundleError(f"a delta of about {min(cost, keyed):.0f} bytes spares too little")
    if keyed < cost:
        return _head(DeltaFormat.DICTIONARY, 0, 0) + _keyed(old, len(new), _STRONGEST).compress(new)
    level = _STRONGEST if cost < len(new) / 4 or len(new) <= _SMALL else _FAST
    return _head(*best) + _plain(level).compress(_difference(old, new, *best))


def _smallest(old: bytes, new: bytes, level: int) -> tuple[tuple[DeltaFormat, int, int], float]:
    """The difference that is shortest, (way, shift, end), and about how long it is."""
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
    """Pieces from end to end, each from the beginning of a word on."""
    last = len(whole) - _PIECE
    starts = [last * i // (_PIECES - 1) // _WORD * _WORD for i in range(_PIECES)]
    return b"".join(whole[at : at + _PIECE] for at in starts)


def apply(old: bytes, delta: bytes, size: int) -> bytes:
    """The new file, of exactly `size` bytes; BundleError for a delta that does not make it."""
    import zstandard

    _check_length(len(old), size)
    if (
        len(delta) < _HEAD
        or delta[:4] != _MAGIC
        or delta[4] not in list(DeltaFormat)
        or delta[5] >= _WORD
    ):
        raise BundleError("the delta is of no known kind")
    way, shift, end = DeltaFormat(delta[4]), delta[5], delta[6]
    keyed = old if way is DeltaFormat.DICTIONARY else None
    try:
        if zstandard.frame_content_size(delta[_HEAD:]) != size:
            raise BundleError(f"the delta makes no file of {size} bytes")
        said = _opener(keyed, size).decompress(delta[_HEAD:], max_output_size=size)
    except (zstandard.ZstdError, MemoryError) as error:
        raise BundleError(f"the delta cannot be read: {error}") from error
    if way is DeltaFormat.DICTIONARY:
        return said
    return _undo(old, np.frombuffer(said, np.uint8), way, shift, end).tobytes()


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


def _undo(old: bytes, said: _U8, way: DeltaFormat, shift: int, end: int) -> _U8:
    base = _fit(old, len(said), end)
    if way is DeltaFormat.BYTES:
        return base + said
    first, last = _words(len(said), shift)
    folded = np.ascontiguousarray(said[: last - first].reshape(_WORD, -1).T).view("<u4").ravel()
    difference = (folded >> np.uint32(1)) ^ (np.uint32(0) - (folded & np.uint32(1)))
    edge = said[last - first :]
    made = base.copy()
    made[:first] += edge[:first]
    made[first:last] = (base[first:last].view("<u4") + difference).astype("<u4").view(np.uint8)
    made[last:] += edge[first:]
    return made


def _fit(old: bytes, size: int, end: int) -> _U8:
    """The old file at the new one's length: cut or filled up, at its end or (end=1) beginning."""
    have = np.frombuffer(old, np.uint8)
    made = np.zeros(size, np.uint8)
    both = min(size, len(have))
    if both and end:
        made[-both:] = have[-both:]
    elif both:
        made[:both] = have[:both]
    return made


def _words(size: int, shift: int) -> tuple[int, int]:
    """From where to where there are whole words, when the first begins at `shift`."""
    first = min(shift, size)
    return first, first + (size - first) // _WORD * _WORD


def _head(way: DeltaFormat, shift: int, end: int) -> bytes:
    return _MAGIC + bytes([way, shift, end])


def _check_length(old: int, new: int) -> None:
    if max(old, new) > LIMIT:
        raise BundleError(f"a delta of {max(old, new)} bytes, {LIMIT} are allowed")


def _plain(level: int) -> "ZstdCompressor":
    import zstandard

    return zstandard.ZstdCompressor(level=level)


def _keyed(old: bytes, size: int, level: int) -> "ZstdCompressor":
    """Compresses with `old` as dictionary, which stays in sight to the end of the new file."""
    import zstandard

    parameters = zstandard.ZstdCompressionParameters.from_level(
        level,
        window_log=max(10, (len(old) + size).bit_length()),
        enable_ldm=True,
        source_size=size,
        dict_size=len(old),
    )
    return zstandard.ZstdCompressor(dict_data=_dictionary(old), compression_params=parameters)


def _opener(keyed: bytes | None, size: int) -> "ZstdDecompressor":
    import zstandard

    window = max(1024, 4 * (size + len(keyed or b"")))
    dictionary = None if keyed is None else _dictionary(keyed)
    return zstandard.ZstdDecompressor(
        dict_data=dictionary, max_window_size=1 << window.bit_length()
    )


def _dictionary(old: bytes) -> "ZstdCompressionDict":
    import zstandard

    return zstandard.ZstdCompressionDict(old, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
