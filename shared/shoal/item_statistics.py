"""Cheap statistics of one image, sound, list of tokens, text or vector: what changes when a lens is
dirty, a microphone clips or a vocabulary is another one.

The cost does not grow with the item: of a large one a fixed part is read. An item for which a
statistic does not exist (an image of no pixels) has NaN there, and a Sketch counts that as missing.
"""

import functools
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]

#: brightness, contrast   mean and standard deviation of the light, 0 (black) to 255 (white)
#: sharpness              log of the mean squared Laplacian; noise: its median absolute value
#: clipped                share of pixels within 2 % of black or white
#: blocks                 steps across every 8th column over all steps: what strong JPEG leaves
#: direction              log of horizontal over vertical steps
#: left-right ... diagonal  lowest cosine components of the light on 8 x 8 cells, without its level
#:                        and contrast: dirt, vignetting, a turned camera
#: pixels, aspect         log of height x width, and of width over height
IMAGE = (
    "brightness", "contrast", "sharpness", "noise", "clipped", "blocks", "direction", "left-right",
    "top-bottom", "middle", "diagonal", "red-green", "blue-yellow", "saturation", "pixels",
    "aspect",
)  # fmt: skip
#: Those of IMAGE that need three channels, and those that need a free height or width.
COLOUR, SIZE = IMAGE[11:14], IMAGE[14:]
#: level, low, mid, high  dB; centroid, rolloff: shares of half the sample rate
AUDIO = (
    "level", "peak", "offset", "crossings", "centroid", "rolloff", "flatness", "low", "mid", "high",
    "clipped",
)  # fmt: skip
#: unseen: share of tokens that are none of the reference's most frequent ones, by their hash
TOKENS = (
    "length", "distinct", "repeats", "commonest", "unseen", *(f"bucket{i}" for i in range(8))
)  # fmt: skip
TEXT = (
    "length", "words", "letters", "digits", "foreign", "unseen", *(f"bucket{i}" for i in range(8))
)  # fmt: skip
#: p0 to p3: projections on fixed random signs; p0p1, p2p3: their products, which show a change of
#: how values go together; count: elements
NUMBERS = (
    "mean", "norm", "largest", "zeros", "missing", "p0", "p1", "p2", "p3", "p0p1", "p2p3", "count",
)  # fmt: skip

#: Pixels on a side of the grid that light and colour are read from, and of the middle in full
#: resolution; least height and width.
_GRID, _MIDDLE, _LEAST_SIDE = 64, 128, 8
#: Samples of a frame, and frames of a sound; least samples.
_FRAME, _FRAMES, _LEAST_SAMPLES = 512, 8, 16
#: Tokens, characters and numbers that are read of one item, at most.
MOST_READ = 4_096
#: Hashes are 0 to HASHES - 1: many tokens share one, so none is told from it.
HASHES = 1 << 12
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
_SIGNS_SEED = 20_261_130


def image(pixels: npt.NDArray[Any], low: float, high: float) -> F32:
    """IMAGE of `pixels` (H, W) or (H, W, C), any number dtype; `low` is black, `high` white.

    Light and colour are read from about 64 x 64 pixels of all of it, fine structure from the
    middle 128 x 128.
    """
    height, width = pixels.shape[:2]
    if height < _LEAST_SIDE or width < _LEAST_SIDE:
        return np.full(len(IMAGE), np.nan, np.float32)
    scale = np.float32(255 / (high - low))
    grid = pixels[:: max(1, height // _GRID), :: max(1, width // _GRID)]
    y, x = max(0, height - _MIDDLE) // 2, max(0, width - _MIDDLE) // 2
    middle = pixels[y : y + _MIDDLE, x : x + _MIDDLE]
    with np.errstate(all="ignore"):
        grid, middle = ((part.astype(np.float32) - low) * scale for part in (grid, middle))
        light = _luma(grid)
        return np.array(
            [
                light.mean(),
                light.std(),
                *_structure(_luma(middle), x),
                *_pattern(light),
                *_colour(grid),
                np.log(height * width),
                np.log(width / height),
            ],
            np.float32,
        )


def _luma(part: F32) -> F32:
    """Light (H, W) of an image of one, three or more channels; alpha is left out."""
    if part.ndim == 2:
        return part
    return part[..., :3] @ _LUMA if part.shape[2] >= 3 else part[..., 0]


def _structure(light: F32, left: int) -> tuple[Any, ...]:
    """Sharpness, noise, clipped, blocks, direction of the middle, which begins at column `left`."""
    across, down = np.abs(np.diff(light, axis=1)), np.abs(np.diff(light, axis=0))
    around = light[1:-1, :-2] + light[1:-1, 2:] + light[:-2, 1:-1] + light[2:, 1:-1]
    laplacian = np.abs(around - 4 * light[1:-1, 1:-1])
    some = laplacian.ravel()[::4]
    steps = across.mean() + 1e-6
    return (
        np.log1p(np.square(laplacian).mean()),
        np.partition(some, len(some) // 2)[len(some) // 2],
        ((light > 250) | (light < 5)).mean(),
        across[:, (7 - left) % 8 :: 8].mean() / steps,
        np.log(steps / (down.mean() + 1e-6)),
    )


def _pattern(light: F32) -> tuple[Any, ...]:
    """Left-right, top-bottom, middle, diagonal of the light (H, W)."""
    height, width = (side // 8 for side in light.shape)
    cells = light[: height * 8, : width * 8].reshape(8, height, 8, width).mean((1, 3))
    cells = (cells - cells.mean()) / (cells.std() + 1)
    places = np.arange(8) + 0.5
    first, second = np.cos(np.pi * places / 8), np.cos(np.pi * places / 4)
    return (
        (cells @ first).mean(),
        (first @ cells).mean(),
        -(cells * (second + second[:, None])).mean(),
        first @ cells @ first / 64,
    )


def _colour(grid: F32) -> tuple[Any, ...]:
    """Red-green, blue-yellow, saturation; 0 without three channels."""
    if grid.ndim == 2 or grid.shape[2] < 3:
        return 0.0, 0.0, 0.0
    red, green, blue = grid[..., 0], grid[..., 1], grid[..., 2]
    top, bottom = (f(f(red, green), blue) for f in (np.maximum, np.minimum))
    return (red - green).mean(), (blue - (red + green) / 2).mean(), (top - bottom).mean()


@functools.cache
def _hann(length: int) -> F32:
    return np.hanning(length).astype(np.float32)


def audio(samples: npt.NDArray[Any], full_scale: float) -> F32:
    """AUDIO of `samples` (n,), any number dtype, whose largest possible value is `full_scale`.

    Of a long sound eight frames of 512 are read, at equal distances.
    """
    if len(samples) < _LEAST_SAMPLES:
        return np.full(len(AUDIO), np.nan, np.float32)
    length = min(_FRAME, len(samples))
    starts = np.linspace(0, len(samples) - length, min(_FRAMES, len(samples) // length))
    with np.errstate(all="ignore"):
        x = np.stack([samples[int(at) : int(at) + length] for at in starts]).astype(np.float32)
        x /= np.float32(full_scale)
        power = np.square(np.abs(np.fft.rfft(x * _hann(length)))).mean(0) + 1e-12
        total, places = power.sum(), np.linspace(0, 1, len(power))
        bands = [power[int(a * len(power)) : int(b * len(power)) or 1].sum()
                 for a, b in ((0, 1 / 16), (1 / 16, 1 / 4), (1 / 4, 1))]  # fmt: skip
        size = np.abs(x)
        rolloff = np.searchsorted(np.cumsum(power), 0.85 * total) / len(power)
        return np.array(
            [
                10 * np.log10(np.square(x).mean() + 1e-10),
                size.max(),
                x.mean(),
                (x[:, 1:] * x[:, :-1] < 0).mean(),
                (places * power).sum() / total,
                rolloff,
                np.log(power).mean() - np.log(power.mean()),
                *(10 * np.log10(np.array(bands) / total + 1e-10)),
                (size > 0.99).mean(),
            ],
            np.float32,
        )


def hashes_of_ids(ids: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Hash of each integer, 0 to HASHES - 1 (Knuth's multiplicative hash)."""
    spread = ids.astype(np.int64).astype(np.uint64) * np.uint64(2_654_435_761)
    return (spread >> np.uint64(16)).astype(np.int64) & (HASHES - 1)


def hashes_of_words(words: Sequence[str]) -> npt.NDArray[np.int64]:
    """Hash of each word, 0 to HASHES - 1 (CRC-32)."""
    found = [zlib.crc32(word.encode("utf-8", "replace")) & (HASHES - 1) for word in words]
    return np.array(found, np.int64)


def tokens(ids: npt.NDArray[Any], known: npt.NDArray[np.bool_], padding: int | None) -> F32:
    """TOKENS of integers `ids` (n,), without those that equal `padding`.

    known   bool (HASHES,): hashes of the reference's most frequent tokens
    """
    ids = ids[:MOST_READ]
    real = ids if padding is None else ids[ids != padding]
    if not len(real):
        return np.array([0, *[np.nan] * (len(TOKENS) - 1)], np.float32)
    hashes = hashes_of_ids(real)
    times = np.unique(real, return_counts=True)[1]
    n = len(real)
    repeats = (real[1:] == real[:-1]).mean() if n > 1 else 0.0
    return np.array(
        [n, len(times) / n, repeats, times.max() / n, *_shares(hashes, known)], np.float32
    )


def words_of(texts: Sequence[Any]) -> list[str]:
    """The words of texts (str, or bytes of UTF-8), of MOST_READ characters at most."""
    return _joined(texts).split()


def text(texts: Sequence[Any], known: npt.NDArray[np.bool_]) -> F32:
    """TEXT of texts (str, or bytes of UTF-8) that are one item; `known` as in `tokens`."""
    whole = _joined(texts)
    words = whole.split()
    n = max(1, len(whole))
    shares = _shares(hashes_of_words(words), known) if words else [np.nan] * 9
    return np.array(
        [
            len(whole),
            len(words),
            sum(map(str.isalpha, whole)) / n,
            sum(map(str.isdigit, whole)) / n,
            sum(character > "\x7f" for character in whole) / n,
            *shares,
        ],
        np.float32,
    )


def _joined(texts: Sequence[Any]) -> str:
    parts, left = [], MOST_READ
    for one in texts[:MOST_READ]:
        part = one[:left] if isinstance(one, str) else bytes(one[:left]).decode("utf-8", "replace")
        parts.append(part)
        left -= len(part) + 1
        if left <= 0:
            break
    return " ".join(parts)


def _shares(hashes: npt.NDArray[np.int64], known: npt.NDArray[np.bool_]) -> list[float]:
    """Share of unknown hashes, then of each of eight buckets."""
    buckets = np.bincount(hashes & 7, minlength=8) / len(hashes)
    return [1 - float(known[hashes].mean()), *map(float, buckets)]


@functools.cache
def _signs() -> F64:
    """Signs (4, MOST_READ) of the projections; raw PCG64 output is the same in every numpy."""
    bits = np.random.PCG64(_SIGNS_SEED).random_raw(4 * MOST_READ // 64)
    raw = np.unpackbits(np.asarray(bits).astype("<u8").view(np.uint8))
    return (raw.reshape(4, MOST_READ) * 2.0 - 1.0).astype(np.float64)


def numbers(values: npt.NDArray[Any]) -> F32:
    """NUMBERS of `values` of any shape and number dtype; NaN and infinities count as missing.

    Of many values MOST_READ at equal distances are read. Projections: Achlioptas, Database-friendly
    random projections, 2003.
    """
    flat = values.ravel() if values.flags.c_contiguous else values.reshape(-1)
    some = flat[:: -(-len(flat) // MOST_READ) or 1].astype(np.float64)
    n = len(some)
    if not n:
        return np.array([*[np.nan] * (len(NUMBERS) - 1), 0], np.float32)
    finite = np.isfinite(some)
    kept = np.where(finite, some, 0.0)
    with np.errstate(all="ignore"):
        p = _signs()[:, :n] @ kept / np.sqrt(n)
        return np.array(
            [
                kept.mean(),
                np.sqrt(kept @ kept),
                np.abs(kept).max(),
                (some == 0).mean(),
                1 - finite.mean(),
                *p,
                p[0] * p[1],
                p[2] * p[3],
                len(flat),
            ],
            np.float32,
        )


def single_values(values: npt.NDArray[Any]) -> F32:
    """Each of a few values (n,) as it is."""
    return values.reshape(-1).astype(np.float32)
