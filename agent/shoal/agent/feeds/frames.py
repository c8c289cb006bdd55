"""Frames (readings from a source) and predictions (for a sink), with time, quality and asset."""

import enum
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from shoal.errors import InputError
from shoal.sketch import F32

#: Most tags of one asset: bounds the memory when names keep changing.
TAGS = 16_384


class Quality(enum.IntEnum):
    """Quality of a value; the worst of several is their max()."""

    GOOD = 0
    UNCERTAIN = 1
    BAD = 2


class Frame(NamedTuple):
    """Readings of one asset at one moment (or several rows of them, one after the other).

    time_s   Unix seconds, UTC, of the source's clock
    names    of the columns; () when `rows` is a tensor with the model's columns in its order
    rows     float (n, len(names)), NaN for what is missing or bad; for a tensor (n, F)
    quality  of the whole frame; BAD when no value is usable
    asset    what was measured: "pump-3"; "" where the source has only one
    labels   true class or value of each row, as text; None when unknown
    """

    time_s: float
    names: tuple[str, ...]
    rows: npt.NDArray
    quality: Quality = Quality.GOOD
    asset: str = ""
    labels: Sequence[str] | None = None


class Prediction(NamedTuple):
    """One prediction of a model, for sinks.

    time_s   of the frame; asset and quality are the frame's too
    labels   names of the classes; ("value",) for regression
    scores   float32 (C,): probabilities by class, or the one value
    label    the predicted class, "" for regression
    """

    time_s: float
    asset: str
    model: str
    release: str
    quality: Quality
    labels: tuple[str, ...]
    scores: F32
    label: str

    @property
    def values(self) -> dict[str, float | str]:
        """Name -> value, as sinks write it: "value", or "label", "score" and each "score/CLASS"."""
        if not self.label:
            return {"value": float(self.scores[0])}
        each = {f"score/{name}": float(p) for name, p in zip(self.labels, self.scores, strict=True)}
        return {"label": self.label, "score": float(self.scores.max()), **each}


class FeedHealth(msgspec.Struct, frozen=True, kw_only=True):
    """State and counters of one source or sink.

    kind        name of the plugin
    up          whether it is connected, or its file or folder exists
    count       frames emitted, or predictions written, since the start
    dropped     frames or predictions lost: a full queue, or unreadable
    bad         values of bad quality
    reconnects  connections after the first
    lag_s       age of the newest frame on arrival, by the source's clock; -1 before the first
    waiting     predictions stored until the server is back
    error       why it is not up, or what it cannot read while it is; "" when all is well
    """

    name: str
    kind: str
    up: bool = False
    count: int = 0
    dropped: int = 0
    bad: int = 0
    reconnects: int = 0
    lag_s: float = -1.0
    waiting: int = 0
    error: str = ""


class Value(NamedTuple):
    """The last value of one tag. value: NaN where it is no number."""

    value: float
    time_s: float
    quality: Quality = Quality.GOOD


class LatestValues:
    """The latest value of each tag, for a source that sends only changes.

    >>> latest = LatestValues()
    >>> latest.put("t", Value(21.5, 100.0)); latest.put("p", Value(1.0, 101.0, Quality.BAD))
    >>> frame = latest.frame("pump-3"); frame.names, frame.rows.tolist(), frame.quality.name
    (('t', 'p'), [[21.5, nan]], 'UNCERTAIN')

    names   tags that every frame has, missing until their first value; others are added
    """

    def __init__(self, names: Sequence[str] = ()) -> None:
        self._values = {name: Value(np.nan, 0.0, Quality.BAD) for name in names}
        self._names = tuple(self._values)

    def put(self, name: str, value: Value) -> None:
        """Set the value of a tag; InputError beyond TAGS tags."""
        if len(self._values) >= TAGS and name not in self._values:
            raise InputError(f"more than {TAGS} tags of one asset; the next is {name[:100]!r}")
        self._values[name] = value
        if len(self._values) != len(self._names):
            self._names = tuple(self._values)

    def degrade(self, quality: Quality) -> None:
        """Set every quality to `quality` or worse: the connection, or the device, is gone."""
        self._values = {k: v._replace(quality=max(v.quality, quality)) for k, v in
                        self._values.items()}  # fmt: skip

    def frame(self, asset: str) -> Frame:
        """A frame of the latest value of every tag, at the time of the newest."""
        newest = max((value.time_s for value in self._values.values()), default=0.0)
        return _frame(newest, self._names, list(self._values.values()), asset)


def frame_of(
    time_s: float,
    values: Mapping[str, float],
    *,
    asset: str = "",
    qualities: Mapping[str, Quality] | None = None,
) -> Frame:
    """A frame of one row of named values; those of bad quality are missing.

    >>> frame_of(1.0, {"a": 1, "b": 2}, qualities={"b": Quality.BAD}).rows.tolist()
    [[1.0, nan]]
    """
    known = qualities or {}
    read = [Value(v, time_s, known.get(name, Quality.GOOD)) for name, v in values.items()]
    return _frame(time_s, tuple(values), read, asset)


def _frame(time_s: float, names: tuple[str, ...], values: list[Value], asset: str) -> Frame:
    bad = Quality.BAD
    row = np.array([[np.nan if v.quality is bad else v.value for v in values]], np.float64)
    usable = [v.quality for v in values if v.quality is not bad]
    quality = bad
    if usable:
        quality = max(usable) if len(usable) == len(values) else Quality.UNCERTAIN
    return Frame(time_s, names, row, quality, asset)
