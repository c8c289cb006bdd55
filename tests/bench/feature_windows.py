"""Windows of many devices at once, as the product's own sketch tells them."""

from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from shoal.sketch import F32, F64, I64, Reference, Sketch

BOOL = npt.NDArray[np.bool_]


class Watched(NamedTuple):
    """Devices of one release that are watched together.

    training   int64 (F, W): training rows in the bins of a device's F features, zero padded
    subjects   devices of the fleet for which the budget is
    """

    devices: int
    training: I64
    window_s: float
    subjects: int


class Windows(NamedTuple):
    """One window of D devices of F features.

    sent           (D,) bool: whether the device sent it
    counts         int64 (D, F, W)
    missing, n     int64 (D, F); mean, m2, low, high: float64 (D, F)
    """

    sent: BOOL
    counts: I64
    missing: I64
    n: I64
    mean: F64
    m2: F64
    low: F64
    high: F64


class Rule(Protocol):
    """A decision about every feature of some devices, window after window."""

    #: Windows in which it says nothing.
    first: int

    def observe(self, at: float, local: float, windows: Windows) -> BOOL:
        """(D, F + 1): features of which a finding begins with these windows; the last: their rows.

        at, local   Unix seconds of their start, and the same as the site's clock shows them
        """
        ...


class RowCounter:
    """Sketches rows of D devices that share the reference of F features.

    >>> from shoal.sketch import reference_of
    >>> counter = RowCounter(reference_of({"x": np.arange(100.0)}), devices=2)
    >>> counter.count(np.ones((5, 2), np.float32), np.array([5, 3]), np.ones(2, bool)).n.ravel()
    array([5, 3])
    """

    def __init__(self, reference: Reference, devices: int) -> None:
        self.devices, self.features = devices, len(reference.features)
        self.reference = Reference(features=reference.features * devices)
        self.training = training_counts(reference)

    def count(self, values: F32, kept: I64, sent: BOOL) -> Windows:
        """values (rows, D x F): each device has the first kept (D,), or none where not sent."""
        mine = np.where(sent, np.minimum(kept, len(values)), 0)
        if (mine < len(values)).any():
            there = np.arange(len(values))[:, None] < np.repeat(mine, self.features)
            values = np.where(there, values, np.float32(np.nan))
        sketch = Sketch(self.reference)
        sketch.update(values)
        shape = (self.devices, self.features)
        missing = sketch.missing.reshape(shape) - (len(values) - mine)[:, None]
        moments = [x.reshape(shape) for x in (sketch.mean, sketch.m2, sketch.low, sketch.high)]
        counts = sketch.counts.reshape(*shape, -1)
        return Windows(sent, counts, missing, sketch.n.reshape(shape), *moments)


def training_counts(reference: Reference) -> I64:
    """Training rows in each bin, (F, W)."""
    width = max(len(one.edges) for one in reference.features) + 1
    table = np.zeros((len(reference.features), width), np.int64)
    for line, one in zip(table, reference.features, strict=True):
        line[: len(one.edges) + 1] = one.counts[:-1]
    return table
