"""A window's sketch as a few numbers a feature, each of which can be forecast from its own past.

mean     of the values, in the subject's own row sd
spread   log of their variance over the usual one, with a floor at 5 % (a stuck sensor is finite)
rank1    Neyman's smooth components: mean of the j-th orthonormal Legendre polynomial of a value's
rank2    rank (mid-rank of its bin, in an even mix of training and own rows): location, spread and
rank3    skew where a few values rule the moments; bounded
missing  arcsine of the root of the share of missing rows (Anscombe 1948: constant variance)
rare     the same of the share of rows in bins that hold next to nothing in training and in the
         subject's own first windows: out of range, between codes, never seen
rows     log of rows a second: one for the subject, after its features

Bins are not merged and nothing is compared with training: each number is compared with the
subject's own past. Source of the components: Neyman (1937), Rayner & Best (1989).
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]
BOOL = npt.NDArray[np.bool_]

NAMES = ("mean", "spread", "rank1", "rank2", "rank3", "missing", "rare")
ROWS = "rows"
MEAN, SPREAD, RANK1, MISSING, RARE = 0, 1, 2, 5, 6
CHANNELS = len(NAMES)

#: Share of rows that a feature's rare bins may hold together.
RARE_SHARE = 0.0005
#: Changes that are too small to matter at a tolerance of 1 row sd: in row sd, log variance, row sd
#: of a rank, radians, log rows.
PER_TOLERANCE = np.array([1.0, 2.0, 1.0, 1.0, 1.0, 0.4, 0.4])
ROWS_PER_TOLERANCE = 4.0
#: Least sd of a channel times the root of n: a fraction of what chance alone gives.
FLOORS = np.array([0.1, 0.3, 0.1, 0.1, 0.1, 0.25, 0.25])
ROWS_FLOOR = 0.05
#: Sd of a channel times the root of n where rows are drawn at random (of missing and rare ones, of
#: which there are next to none, the least); of the log of rows.
CHANCE = np.array([1.0, 1.5, 1.0, 1.0, 1.0, 0.25, 0.25])
ROWS_CHANCE = 0.1
#: Most that one window may say, as a normal score. Missing and rare rows were never seen before and
#: come in clusters: one window alone is no alarm, three are.
CAPS = np.array([np.inf] * 5 + [4.0, 4.0])
#: And of rows: a machine that is busy for one window is no alarm, for two it is.
ROWS_CAP = 5.5
#: A value so many row sd away may not rule the moments alone, or among so small a share of rows:
#: it is a rare row.
FAR, FEW = 10.0, 0.002
#: A mean is not told apart beyond so many row sd.
FARTHEST = 1e6
#: Share of the usual variance below which spread tells no smaller one.
SPREAD_FLOOR = 0.05


class Windows(NamedTuple):
    """One window of each of B subjects of one release: F features in W bins.

    position  float64 (B,): number of the window in order of arrival; the state keeps it
    at        float64 (B,): start, Unix seconds; local: the same on the site's clock (seconds of
              local time as if it were UTC); window_s: length in seconds
    counts    (B, F, W): rows in each bin, without missing ones
    missing   (B, F): rows without a value
    n, mean, m2, low, high   (B, F): count, mean, sum of squared deviations, least and largest of
              the values; mean, m2, low and high are NaN where they could not be held
    """

    position: F64
    at: F64
    local: F64
    window_s: F64
    counts: npt.NDArray
    missing: npt.NDArray
    n: npt.NDArray
    mean: F64
    m2: F64
    low: F64
    high: F64

    def take(self, which: npt.NDArray) -> "Windows":
        """The windows of some subjects."""
        return Windows(*(array[which] for array in self))


class Lens(NamedTuple):
    """How the windows of B subjects are read, fixed by training and their own first windows.

    training  (F, W): shares of training rows in the bins
    own       (B, F, W): shares of the subject's first rows
    rare      (B, F): bins are rare up to this share in training and own rows; NaN: none is
    centre    float64 (B, F): mean of the first rows; unit: their sd
    """

    training: F64
    own: npt.NDArray
    rare: npt.NDArray
    centre: F64
    unit: F64


class Reading(NamedTuple):
    """Series of B subjects, S = 7 F + 1: features' channels in order, then rows.

    values     (B, S): NaN where a window says nothing
    floor      (B, S): least sd; chance (B, S): sd where rows are drawn at random
    tolerance  (S,): change that is too small to matter
    cap        (B, S): most that this window may say, as a normal score
    """

    values: F64
    floor: F64
    chance: F64
    tolerance: F64
    cap: F64


def read(lens: Lens, windows: Windows, tolerance: float) -> Reading:
    """The windows' channels. tolerance: in row sd, of a shift of the mean."""
    n = np.asarray(windows.n, np.float64)
    rows = n + windows.missing
    b, f = n.shape
    some = np.where(n > 0, n, np.nan)
    rare = np.where(_is_rare(lens), windows.counts, 0).sum(-1)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        off = (windows.mean - lens.centre) / lens.unit
        variance = windows.m2 / np.maximum(some - 1, 1) / np.square(lens.unit)
        spread = np.where(n > 1, np.log(variance + SPREAD_FLOOR), np.nan)
    reach = np.maximum(np.abs(windows.low - lens.centre), np.abs(windows.high - lens.centre))
    ruled = (reach > FAR * lens.unit) & (rare > 0) & (rare <= np.maximum(FEW * n, 1))
    ranks = _ranks(lens, windows.counts) / some[..., None]
    values = np.empty((b, f, CHANNELS))
    values[..., MEAN] = np.where(ruled, np.nan, off)
    values[..., SPREAD] = np.where(ruled, np.nan, spread)
    values[..., RANK1 : RANK1 + 3] = ranks
    values[..., MISSING] = _arcsine(windows.missing, rows)
    values[..., RARE] = _arcsine(rare, n)
    values[~np.isfinite(values)] = np.nan
    np.clip(values, -FARTHEST, FARTHEST, out=values)
    root = np.sqrt(np.maximum(n, 1))[..., None]
    off, here = _off_commonest(lens, windows.counts, n)
    cap = np.tile(CAPS, (b, f, 1))
    cap[..., :MISSING] = np.sqrt(2 * np.maximum(here, off * n))[..., None]
    chance = np.tile(CHANCE, (b, f, 1))
    chance[..., SPREAD] = np.maximum(CHANCE[SPREAD], np.sqrt(1 / np.maximum(off, 0.01)))
    whole = rows.max(-1) if f else np.zeros(b)
    rate = np.log(np.maximum(whole, 0.5) / windows.window_s)
    return Reading(
        _with_rows(values, rate[:, None]),
        _with_rows(FLOORS / root, ROWS_FLOOR),
        _with_rows(chance / root, ROWS_CHANCE),
        tolerances(f, tolerance),
        _with_rows(cap, ROWS_CAP),
    )


def tolerances(features: int, tolerance: float) -> F64:
    """(S,): changes that are too small to matter."""
    return tolerance * np.append(np.tile(PER_TOLERANCE, features), ROWS_PER_TOLERANCE)


def rare_up_to(training: F64, own: npt.NDArray) -> F64:
    """(B, F): the largest share of a bin so that all bins up to it hold RARE_SHARE at most."""
    both = np.sort(np.maximum(training, own), axis=-1)
    held = np.cumsum(both, axis=-1)
    fits = held <= RARE_SHARE
    # equal shares are rare together or not at all
    after = np.concatenate([both[..., 1:], np.full((*both.shape[:-1], 1), np.inf)], axis=-1)
    whole = fits & (after > both)
    return np.where(whole, both, np.nan).max(-1, initial=-np.inf, where=whole)


def shares(counts: npt.NDArray) -> F64:
    """Counts (..., W) as shares; zero where nothing was counted."""
    return np.asarray(counts / np.maximum(counts.sum(-1, keepdims=True), 1), np.float64)


def share_of(value: float, rows: float) -> float:
    """Inverse of the arcsine: the share of `rows` that a missing or rare channel tells of.

    >>> round(share_of(float(_arcsine(np.array(5.0), np.array(100.0))), 100), 3)
    0.05
    """
    angle = float(np.clip(value + _of_none(np.asarray(rows)), 0, np.pi / 2))
    return max((float(np.sin(angle)) ** 2 * (rows + 0.75) - 0.375) / max(rows, 1), 0.0)


def _with_rows(of_features: F64, of_rows: F64 | float) -> F64:
    """(B, F, 7) and a number for the rows (B, 1) as series (B, S)."""
    b = len(of_features)
    last = np.broadcast_to(np.asarray(of_rows, np.float64), (b, 1))
    return np.concatenate([of_features.reshape(b, -1), last], axis=1)


def _off_commonest(lens: Lens, counts: npt.NDArray, n: F64) -> tuple[F64, F64]:
    """(B, F) each: usual share of rows off the commonest bin, and such rows in this window.

    Where nearly all rows are of one bin, few others carry mean and spread. That none of m expected
    ones comes has a chance of exp(-m), whatever the sd of earlier windows: a window says as many
    nats at most as such rows are in it, or should be. And the log of their variance is as unsure
    as that of a Bernoulli variate, whose kurtosis is about 1 / share.
    """
    commonest = np.argmax(lens.training + lens.own, axis=-1)[..., None]
    least = np.minimum(lens.training, lens.own)
    share = 1 - np.take_along_axis(least, commonest, axis=-1)[..., 0]
    here = n - np.take_along_axis(counts, commonest, axis=-1)[..., 0]
    return np.asarray(np.clip(share, 0, 1), np.float64), np.asarray(here, np.float64)


def _is_rare(lens: Lens) -> BOOL:
    return np.maximum(lens.training, lens.own) <= lens.rare[..., None]


def _ranks(lens: Lens, counts: npt.NDArray) -> F64:
    """(B, F, 3): sums over rows of the Legendre polynomials of their bins' mid-ranks."""
    mix = (lens.training + lens.own) / 2
    x = 2 * np.cumsum(mix, axis=-1) - mix - 1
    square = x * x
    first = (counts * x).sum(-1)
    second = (counts * (3 * square - 1)).sum(-1)
    third = (counts * (5 * square - 3) * x).sum(-1)
    return np.stack([3**0.5 * first, 5**0.5 / 2 * second, 7**0.5 / 2 * third], axis=-1)


def _arcsine(part: npt.NDArray, whole: npt.NDArray) -> F64:
    """Anscombe's angle of a share, less that of no row at all: 0 whatever the number of rows."""
    share = (part + 0.375) / (np.maximum(whole, 0) + 0.75)
    angle = np.arcsin(np.sqrt(share)) - _of_none(whole)
    return np.asarray(np.where(whole > 0, angle, np.nan), np.float64)


def _of_none(whole: npt.NDArray) -> F64:
    return np.asarray(np.arcsin(np.sqrt(0.375 / (np.maximum(whole, 0) + 0.75))), np.float64)
