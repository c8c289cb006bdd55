"""Effect sizes for display, never the alarm: how far two distributions over bins are apart.

Both grow as rows get fewer, and say nothing about what is usual for a device.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]

#: Least share of training rows in a merged bin: about deciles, as the index is usually computed.
LEAST_SHARE = 0.1
_SHIFT = 0.5


def psi(counts: npt.NDArray[Any], training: npt.NDArray[Any]) -> F64:
    """Population stability index (F,) of counts (F, W) against training's, in merged bins.

    >>> even = np.full((1, 10), 100)
    >>> psi(even, even), psi(np.eye(10, dtype=int)[:1] * 1000, even).round(1)
    (array([0.]), array([6.8]))
    """
    groups, sizes = merge_bins(training)
    now, then = (_shares(_grouped(each, groups), sizes) for each in (counts, training))
    real = np.arange(now.shape[-1]) < sizes[:, None]
    now, then = np.where(real, now, 1), np.where(real, then, 1)
    return np.asarray(((now - then) * np.log(now / then)).sum(-1), np.float64)


def hellinger(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> F64:
    """Hellinger distance (F,), 0 to 1, of counts or shares (F, W) over the same bins."""
    p, q = (each / np.maximum(each.sum(-1, keepdims=True), 1e-300) for each in (a, b))
    return np.asarray(np.sqrt(np.square(np.sqrt(p) - np.sqrt(q)).sum(-1) / 2), np.float64)


def merge_bins(counts: npt.NDArray[Any]) -> tuple[I64, I64]:
    """Merge adjacent bins until each holds LEAST_SHARE: groups (F, W), sizes (F,).

    A feature that sits in one bin is that bin against the rest.

    >>> merge_bins(np.array([[10, 0, 6, 4, 80], [0, 99, 1, 0, 0]]))
    (array([[0, 1, 1, 1, 2],
           [0, 1, 0, 0, 0]]), array([3, 2]))
    """
    shares = counts / np.maximum(counts.sum(-1, keepdims=True), 1)
    groups = np.zeros(counts.shape, np.int64)
    closed, held = np.zeros(len(counts), np.int64), np.zeros(len(counts))
    for b in range(counts.shape[1]):
        groups[:, b] = closed
        held += shares[:, b]
        full = held >= LEAST_SHARE - 1e-9
        closed += full
        held[full] = 0
    groups = np.minimum(groups, np.maximum(closed - 1, 0)[:, None])
    single = closed < 2
    mode = np.arange(counts.shape[1]) == counts.argmax(-1)[:, None]
    return np.where(single[:, None], mode, groups), np.where(single, 2, closed)


def _shares(counts: F64, sizes: I64) -> F64:
    total = counts.sum(-1) + _SHIFT * sizes
    return np.asarray((counts + _SHIFT) / total[:, None], np.float64)


def _grouped(counts: npt.NDArray[Any], groups: I64) -> F64:
    """Counts (F, W) by merged bin, (F, G): one pass over all features' bins."""
    wide = int(groups.max(initial=0)) + 1
    where = groups + wide * np.arange(len(groups))[:, None]
    summed = np.bincount(where.ravel(), weights=counts.ravel(), minlength=wide * len(groups))
    return np.asarray(summed, np.float64).reshape(len(groups), wide)
