"""What is used for drift elsewhere, on the same windows: each window against the training data."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from scipy import stats

from bench.feature_windows import BOOL, Watched, Windows
from shoal.sketch import F64, I64

LEVEL, PSI = 0.05, 0.1


class Threshold:
    """Alarms while a statistic of the window says so; a finding is the first such window.

    alarmed   (training (W,), counts (N, W)) -> (N,)
    """

    first = 0

    def __init__(self, watched: Watched, alarmed: Callable[[I64, I64], BOOL]) -> None:
        self.training, self.alarmed = watched.training, alarmed
        self.standing = np.zeros((watched.devices, len(watched.training)), bool)

    @classmethod
    def of(cls, alarmed: Callable[[I64, I64], BOOL], watched: Watched, _: float) -> "Threshold":
        """As a rule is made: these have no budget."""
        return cls(watched, alarmed)

    def observe(self, at: float, local: float, windows: Windows) -> BOOL:
        """Every device's feature j is compared with the training data of feature 0: one law."""
        counts = windows.counts.reshape(-1, windows.counts.shape[-1])
        told = self.alarmed(self.training[0], counts).reshape(self.standing.shape)
        now = np.where(windows.n > 0, told, self.standing)
        begun, self.standing = now & ~self.standing, now
        return np.pad(begun, ((0, 0), (0, 1)))


def psi(training: I64, counts: I64) -> BOOL:
    """Population stability index over tenths of the training data, above 0.1."""
    p, q = (np.maximum(_shares(_tenths(c, training)), 1e-4) for c in (counts, training))
    return np.asarray(((p - q) * np.log(p / q)).sum(-1) > PSI)


def kolmogorov(training: I64, counts: I64) -> BOOL:
    """Two-sample Kolmogorov-Smirnov test at the sketch's edges: never more than on the rows."""
    p, q = (_shares(c).cumsum(-1) for c in (counts, training))
    n, m = counts.sum(-1), training.sum()
    distance = np.abs(p - q).max(-1)
    return discoveries(stats.kstwobign.sf(distance * np.sqrt(n * m / np.maximum(n + m, 1))))


def chi_squared(training: I64, counts: I64) -> BOOL:
    """Pearson's test of the window's tenths against those of the training data."""
    now, usual = _tenths(counts, training), _tenths(training, training)
    expected = _shares(usual) * now.sum(-1, keepdims=True)
    off = np.square(now - expected) / np.maximum(expected, 1e-9)
    return discoveries(stats.chi2.sf(off.sum(-1), max(len(usual) - 1, 1)))


def discoveries(p: F64) -> BOOL:
    """Benjamini & Hochberg (1995) over all features of a window, at LEVEL."""
    order = np.argsort(p)
    below = np.flatnonzero(p[order] <= LEVEL * np.arange(1, len(p) + 1) / len(p))
    found = np.zeros(len(p), bool)
    found[order[: below[-1] + 1 if len(below) else 0]] = True
    return found


def _tenths(counts: I64, training: I64) -> F64:
    """Counts of adjacent bins, put together until each holds a tenth of the training rows."""
    group, held, groups = 0, 0, []
    for rows in training:
        groups.append(group)
        held += rows
        if held >= training.sum() / 10 - 0.5:
            group, held = group + 1, 0
    whole = max(group, 1)
    into = np.eye(whole)[np.minimum(groups, whole - 1)]
    return np.asarray(counts @ into)


def _shares(counts: npt.NDArray) -> F64:
    return np.asarray(counts / np.maximum(counts.sum(-1, keepdims=True), 1))


PEERS: dict[str, Callable[[I64, I64], BOOL]] = {
    "PSI > 0.1": psi,
    "Kolmogorov-Smirnov, BH 5 %": kolmogorov,
    "chi-squared, BH 5 %": chi_squared,
}
