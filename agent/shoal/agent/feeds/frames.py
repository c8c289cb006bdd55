"""What a source gives and what a sink takes: readings with their time, quality and asset."""

import enum
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from shoal.errors import InputError
from shoal.sketch import F32

#: Tags of one asset: who publishes ever new names does not fill the memory.
TAGS = 16_384


class Quality(enum.IntEnum):
    """How far a value can be believed; the worst of several is their max()."""

    GOOD = 0
    UNCERTAIN = 1
    BAD = 2


class Frame(NamedTuple):
    """Readings of one asset at one moment (or several rows of them, one after the other).

    time_s   Unix seconds, UTC, of the source's clock
    names    of the columns; () when `rows` is a tensor with the model's columns in its order
    rows     float (n, len(names)), NaN for what is missing or bad; for a tensor (n, F)
    quality  of the whole; BAD when nothing in it can be used
    asset    what was measured: "pump-3"; "" where the source watches only one
    labels   true class or value of each row, as text; None where nobody knows
    """

    time_s: float
    names: tuple[str, ...]
    rows: npt.NDArray
    quality: Quality = Quality.GOOD
    asset: str = ""
    labels: Sequence[str] | None = None


class Prediction(NamedTuple):
    """One answer of a model, for sinks.

    time_s   of the frame it answers; asset and quality are the frame's too
    labels   names of the classes; ("value",) for regression
    scores   float32 (C,): probabilities by class, or the one value
    label    the class that was predicted, "" for regression
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
        """Name -> value, as sinks write it: "value", or "label", "score" and each class's own."""
        if not self.label:
            return {"value": float(self.scores[0])}
        each = {f"score/{name}": float(p) for name, p in zip(self.labels, self.scores, strict=True)}
        return {"label": self.label, "score": float(self.scores.max()), **each}


class FeedHealth(msgspec.Struct, frozen=True, kw_only=True):
    """How one source or sink is doing.

    kind        name of the plugin
    up          whether it is connected, or its file or folder is there
    count       frames given, or predictions taken, since the start
    dropped     that were lost: a queue was full, or nothing could be made of them
    bad         values whose quality was bad
    reconnects  connections after the first
    lag_s       age of the newest frame when it came, by the source's clock; -1 before the first
    waiting     predictions kept until the server is back
    error       why it is not up, "" while it is
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
    """One tag as it was last seen. value: NaN where it is no number."""

    value: float
    time_s: float
    quality: Quality = Quality.GOOD


class Latest:
    """The latest value of each tag, where a source tells only what changed.

    >>> latest = Latest()
    >>> latest.put("t", Value(21.5, 100.0)); latest.put("p", Value(1.0, 101.0, Quality.BAD))
    >>> frame = latest.frame("pump-3"); frame.names, frame.rows.tolist(), frame.quality.name
    (('t', 'p'), [[21.5, nan]], 'UNCERTAIN')

    names   tags that every frame has, missing until they are heard; more come as they come
    """

    def __init__(self, names: Sequence[str] = ()) -> None:
        self._values = {name: Value(np.nan, 0.0, Quality.BAD) for name in names}
        self._names = tuple(self._values)

    def put(self, name: str, value: Value) -> None:
        """Take in what a tag says now; InputError for one tag too many."""
        if len(self._values) >= TAGS and name not in self._values:
            raise InputError(f"more than {TAGS} tags of one asset; the next is {name[:100]!r}")
        self._values[name] = value
        if len(self._values) != len(self._names):
            self._names = tuple(self._values)

    def spoil(self, quality: Quality) -> None:
        """Nothing is known any more: the connection, or the device behind it, is gone."""
        self._values = {k: v._replace(quality=max(v.quality, quality)) for k, v in
                        self._values.items()}  # fmt: skip

    def frame(self, asset: str) -> Frame:
        """Every tag as it is now, at the time of the newest."""
        newest = max((value.time_s for value in self._values.values()), default=0.0)
        return _frame(newest, self._names, list(self._values.values()), asset)


def frame_of(
    time_s: float,
    values: Mapping[str, float],
    *,
    asset: str = "",
    qualities: Mapping[str, Quality] | None = None,
) -> Frame:
    """One row of named values; those that `qualities` calls bad are missing.

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
