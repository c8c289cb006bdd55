"""Drift test: has a feature's distribution moved away from the subject's own baseline?

A tolerance test on the Hellinger distance (Freeman and Tukey's statistic with Anscombe's 3/8)
between the bins of one or more windows and those of a baseline, which is the subject's own first
K windows of the release. Distances below the tolerance ψ0 are too small to matter and never
alarm, whatever the number of rows. The variance of the statistic is not assumed multinomial: it
is estimated between the baseline's windows (second-order Rao and Scott correction), so
autocorrelated rows do not alarm. p = P(χ'²_ν(n_h·ψ0·ν/t1) > T·ν/t1).

Extensions of this formula (DESIGN section 8):

- Two moments understate the far tail when a few directions hold most of the spread, as they do
  for autocorrelated rows. A third is matched (Hall, Buckley and Eagleson): T ~ b + a·χ'²_h with
  a = t3/t2, h = t2³/t3², b = t1 - a·h. For equal eigenvalues that is the formula above.
- The traces are themselves estimates, from only K windows. The reference is therefore the
  noncentral F with h·(K-1) degrees of freedom below (Thomas and Rao): the same for large K, and
  it keeps its level for K = 12.
- The traces are never below the multinomial's. A replayed finite pool of rows varies *less* than
  chance between windows, and would alarm at the first new row.
- Where the baseline is long enough (six merges), the traces are also estimated between windows
  merged as in the test: a process slower than a window shows only there.
- A feature that sits in one bin is tested as that bin against the rest.
- A subject of several devices (a site) is compared with the baseline of *these* devices, weighted
  by their current rows: a device that is switched off is no drift.

Sources: Rao & Scott (1981, 1984); Thomas & Rao (1987); Buckley & Eagleson (1988); Anscombe (1948).
"""

import io
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from shoal.controller.monitoring.saddlepoint import log_tail
from shoal.errors import StorageError

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]

#: One window of a subject: device -> counts, int64 (F, W), of F features in W bins. Every row is in
#: one bin of each feature, missing values in a bin of their own.
Counts = Mapping[str, I64]

#: Expected rows of a merged bin; with fewer the lower tail is inaccurate.
EXPECTED = 20
#: A test with less than this share of the usual rows is not made.
LEAST_SHARE = 0.5
#: Merged windows needed to estimate the variance between them.
LEAST_MERGES = 6
_SHIFT = 0.375


class Baseline(NamedTuple):
    """Fitted baseline of a subject. S scales, D devices, F features, W bins.

    members   names of the D devices
    counts    int64 (D, F, W): counts of each device
    scales    numbers of windows merged for a test
    groups    int64 (S, F, W): merged bin of each bin, at each scale
    sizes     int64 (S, F): number of merged bins
    shape     float64 (4, S, F): a, h, b of the statistic's null distribution b + a·χ²_h, and the
              degrees of freedom of its estimate
    rows      median rows of a window, of all devices together
    """

    members: tuple[str, ...]
    counts: I64
    scales: tuple[int, ...]
    groups: I64
    sizes: I64
    shape: F64
    rows: float

    def to_bytes(self) -> bytes:
        """Serialise as compressed npz, for the database."""
        out = io.BytesIO()
        np.savez_compressed(
            out,
            members=np.array(self.members),
            counts=self.counts,
            scales=np.array(self.scales),
            groups=self.groups.astype(np.uint8),
            sizes=self.sizes.astype(np.uint8),
            shape=self.shape,
            rows=np.array(self.rows),
        )
        return out.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> "Baseline":
        """Inverse of to_bytes; StorageError for other bytes."""
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as kept:
                return cls(
                    tuple(str(m) for m in kept["members"]),
                    kept["counts"],
                    tuple(int(s) for s in kept["scales"]),
                    kept["groups"].astype(np.int64),
                    kept["sizes"].astype(np.int64),
                    kept["shape"],
                    float(kept["rows"]),
                )
        except (ValueError, KeyError, OSError) as error:
            raise StorageError(f"baseline cannot be read: {error}") from error


class Comparison(NamedTuple):
    """Comparison of windows with a baseline, all features at once.

    log10_p    float64 (F,): log10 of the p-value of the tolerance test
    hellinger  float64 (F,): distance, 0 to 1, not corrected for the number of rows
    rows       rows compared
    """

    log10_p: F64
    hellinger: F64
    rows: int


def fit(windows: Sequence[Counts], scales: Sequence[int]) -> Baseline:
    """Fit a baseline to three or more non-empty windows in order of time."""
    members = tuple(sorted({device for window in windows for device in window}))
    counts = np.stack([sum(w[d] for w in windows if d in w) for d in members])
    rows = float(np.median([_rows(window) for window in windows]))
    groups, sizes = zip(*(merge_bins(counts.sum(0), rows * s) for s in scales), strict=True)
    partial = Baseline(
        members, counts, tuple(scales), np.stack(groups), np.stack(sizes), np.empty(0), rows
    )
    shapes = [_shape(partial, windows, at) for at in range(len(scales))]
    return partial._replace(shape=np.stack(shapes, axis=1))


def compare(
    baseline: Baseline, windows: Sequence[Counts], at: int, tolerance: float
) -> Comparison | None:
    """Compare `windows`, merged, with the baseline at its scale number `at`.

    Devices absent from the baseline are left out. None when less than half of the usual rows
    remain: a small window is tested only merged with others.
    """
    known = set(baseline.members)
    merged = _merge([{d: c for d, c in w.items() if d in known} for w in windows])
    rows = _rows(merged)
    if rows < max(1.0, LEAST_SHARE * baseline.rows * baseline.scales[at]):
        return None
    off, n_h = _distance(baseline, merged, at)
    squared = np.square(off).sum(-1)
    a, h, b, freedom = baseline.shape[:, at]
    statistic = np.maximum(4 * n_h * squared - b, 0) / a
    log_p = log_tail(statistic, h, n_h * tolerance / a, freedom)
    return Comparison(log_p / np.log(10), np.sqrt(squared / 2), rows)


def log10_level(
    alarms_per_day: float, *, subjects: int, features: int, window_s: float, scales: int
) -> float:
    """log10 of the significance level of one test: the budget over all tests of a day."""
    tests = max(1, subjects) * max(1, features) * (86_400 / window_s) * max(1, scales)
    return float(np.log10(alarms_per_day / tests))


def psi(baseline: Baseline, windows: Sequence[Counts], at: int, training: I64) -> F64:
    """Population stability index (F,) against training counts (F, W), in the test's merged bins.

    An effect size for display, never the alarm: it grows as rows get fewer.
    """
    known = _merge(windows)
    current = np.asarray(sum(known.values()), np.int64)
    groups, sizes = baseline.groups[at], baseline.sizes[at]
    a, b = (_shares(_grouped(c, groups), sizes, 0.5) for c in (current, training))
    real = np.arange(a.shape[-1]) < sizes[:, None]
    a, b = np.where(real, a, 1), np.where(real, b, 1)
    return np.asarray(((a - b) * np.log(a / b)).sum(-1))


def merge_bins(counts: I64, rows: float) -> tuple[I64, I64]:
    """Merge adjacent bins until each holds `EXPECTED` of `rows` rows: groups (F, W), sizes (F,).

    counts   int64 (F, W): estimate of the shares

    >>> merge_bins(np.array([[50, 0, 30, 20], [0, 99, 1, 0]]), 100)
    (array([[0, 1, 1, 2],
           [0, 1, 0, 0]]), array([3, 2]))
    """
    shares = counts / np.maximum(counts.sum(-1, keepdims=True), 1)
    groups = np.zeros(counts.shape, np.int64)
    closed, held = np.zeros(len(counts), np.int64), np.zeros(len(counts))
    for b in range(counts.shape[1]):
        groups[:, b] = closed
        held += shares[:, b] * rows
        full = held >= EXPECTED - 1e-9
        closed += full
        held[full] = 0
    groups = np.minimum(groups, np.maximum(closed - 1, 0)[:, None])
    single = closed < 2
    mode = np.arange(counts.shape[1]) == counts.argmax(-1)[:, None]
    return np.where(single[:, None], mode, groups), np.where(single, 2, closed)


def _shape(partial: Baseline, windows: Sequence[Counts], at: int) -> F64:
    """(4, F): a, h, b and their degrees of freedom, at one scale."""
    scale, k = partial.scales[at], len(windows)
    traces, freedom = _traces(partial, windows, at), np.full(len(partial.sizes[at]), k - 1.0)
    if scale > 1 and k // scale >= LEAST_MERGES:
        starts = range(0, k - scale + 1, scale)
        slower = _traces(partial, [_merge(windows[i : i + scale]) for i in starts], at)
        wider = slower[0] > traces[0]
        traces = np.where(wider, slower, traces)
        freedom = np.where(wider, len(starts) - 1.0, freedom)
    t1, t2, t3 = traces
    a, h = t3 / t2, t2**3 / t3**2
    return np.stack([a, h, t1 - a * h, h * freedom])


def _traces(partial: Baseline, windows: Sequence[Counts], at: int) -> F64:
    """(3, F): unbiased tr V, tr V², tr V³ of z = 2√n(√p̃ - √q̃) between windows."""
    z = np.stack([2 * np.sqrt(_rows(w)) * _distance(partial, w, at)[0] for w in windows])
    n = len(windows) - 1.0
    v = np.einsum("kfg->fgk", z) @ np.einsum("kfg->fkg", z) / n
    s1, s2 = np.trace(v, axis1=1, axis2=2), np.square(v).sum((1, 2))
    s3 = ((v @ v) * v).sum((1, 2))
    t2 = n**2 / ((n - 1) * (n + 2)) * (s2 - s1**2 / n)
    t3 = n**4 / ((n - 1) * max(n - 2, 1) * (n + 2) * (n + 4))
    t3 = t3 * (s3 - 3 * s2 * s1 / n + 2 * s1**3 / n**2)
    least = np.maximum(partial.sizes[at] - 1.0, 1.0)
    t1 = np.maximum(s1, least)
    t2 = np.clip(t2, np.maximum(least, t1**2 / least), t1**2)
    return np.stack([t1, t2, np.clip(t3, t2**2 / t1, t2**1.5)])


def _distance(baseline: Baseline, window: Counts, at: int) -> tuple[F64, float]:
    """√p̃ - √q̃, (F, G), of a window and the expectation for its devices; and n_h."""
    index = [baseline.members.index(d) for d in window]
    past = baseline.counts[index]
    n_each = np.array([int(c[0].sum()) for c in window.values()], np.float64)
    m_each = past[:, 0].sum(-1)
    n = n_each.sum()
    weight = n_each / n
    m = 1 / np.sum(weight**2 / m_each)
    expected = np.einsum("d,dfw->fw", weight / m_each, past) * m
    groups, sizes = baseline.groups[at], baseline.sizes[at]
    now = np.asarray(sum(window.values()))
    p, q = (_shares(_grouped(c, groups), sizes, _SHIFT) for c in (now, expected))
    real = np.arange(p.shape[-1]) < sizes[:, None]
    return np.where(real, np.sqrt(p) - np.sqrt(q), 0), float(n * m / (n + m))


def _shares(counts: F64, sizes: I64, shift: float) -> F64:
    total = counts.sum(-1) + shift * sizes
    return (counts + shift) / total[:, None]


def _grouped(counts: npt.NDArray, groups: I64) -> F64:
    """Counts (F, W) by merged bin, (F, G): one pass over all features' bins."""
    wide = int(groups.max()) + 1
    where = groups + wide * np.arange(len(groups))[:, None]
    summed = np.bincount(where.ravel(), weights=counts.ravel(), minlength=wide * len(groups))
    return np.asarray(summed, np.float64).reshape(len(groups), wide)


def _merge(windows: Sequence[Counts]) -> dict[str, I64]:
    merged: dict[str, I64] = {}
    for window in windows:
        for device, counts in window.items():
            merged[device] = merged[device] + counts if device in merged else counts
    return merged


def _rows(window: Counts) -> int:
    return sum(int(c[0].sum()) for c in window.values())
