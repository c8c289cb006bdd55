"""State of a drift decision: a fixed number of numbers for each subject, as bytes and as arrays.

A subject has S = 7 F + 1 series (channels.py). Nothing else of its past is kept: about 64 float32 a
series, so 20 kB for 8 features.
"""

import functools
import struct
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from shoal.controller.monitoring import season
from shoal.errors import StorageError

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]

#: Numbers of windows that the moving averages of residuals look back on.
LAGS = (1, 6, 36)
#: Sizes of a change, in sd of a surprise, and the number of windows over which each is told.
DELTAS = np.array([0.5, 1.0, 2.0, 4.0, 7.0], np.float32)
SCALES = np.array([64, 16, 4, 1, 1], np.float32)

_HEAD = struct.Struct("<4sBBHHH")
_MAGIC, VERSION = b"SHDR", 1


class Layout(NamedTuple):
    """Shape of a state. features F and bins W of a device, both 0 for a site; S series.

    cycle   whether a daily cycle is forecast
    """

    features: int
    bins: int
    series: int
    cycle: bool

    @property
    def groups(self) -> int:
        """Features, and one more for the rows."""
        return -(-self.series // 7)


class State(NamedTuple):
    """State of one subject.

    clock    float64: see CLOCK, then centre (F,) and unit (F,) of the features' means
    numbers  float32: the arrays that `_shapes` lists
    """

    layout: Layout
    clock: F64
    numbers: F32

    @property
    def position(self) -> float:
        """Number of the last window that was applied, in order of arrival."""
        return float(self.clock[POSITION])

    @property
    def seen(self) -> int:
        """Windows that were applied."""
        return int(self.clock[SEEN])

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return int(self.clock.nbytes + self.numbers.nbytes)

    def to_bytes(self) -> bytes:
        """Serialise for the database: a version byte, the layout, both arrays little endian."""
        features, bins, series, cycle = self.layout
        head = _HEAD.pack(_MAGIC, VERSION, cycle, features, bins, series)
        return head + self.clock.astype("<f8").tobytes() + self.numbers.astype("<f4").tobytes()

    @classmethod
    def from_bytes(cls, data: bytes) -> "State":
        """Inverse of to_bytes; StorageError for other bytes, or those of another version."""
        if len(data) < _HEAD.size:
            raise StorageError(f"drift state of {len(data)} bytes is cut short")
        magic, version, cycle, features, bins, series = _HEAD.unpack_from(data)
        if magic != _MAGIC or version != VERSION:
            raise StorageError(f"drift state of version {version} is not of version {VERSION}")
        layout = Layout(features, bins, series, bool(cycle))
        clock = len(CLOCK) + 2 * features
        length = _length(layout)
        if len(data) != _HEAD.size + 8 * clock + 4 * length:
            raise StorageError(f"drift state of {len(data)} bytes has not the length it claims")
        return cls(
            layout,
            np.frombuffer(data, "<f8", clock, _HEAD.size).astype(np.float64),
            np.frombuffer(data, "<f4", length, _HEAD.size + 8 * clock).astype(np.float32),
        )


#: clock: start of the newest window (Unix s), position, windows seen, late windows in a row.
CLOCK = ("at", "position", "seen", "late")
AT, POSITION, SEEN, LATE = range(4)


class Table:
    """States of B subjects of one layout as arrays with a leading axis B, views of one block.

    The block is a copy: writing to it changes no State.
    """

    def __init__(self, states: Sequence[State]) -> None:
        self.layout = states[0].layout
        if any(one.layout != self.layout for one in states):
            raise ValueError("states of different layouts in one table")
        self.clock = np.stack([one.clock for one in states])
        self.block = np.stack([one.numbers for one in states])
        features, head = self.layout.features, len(CLOCK)
        self.centre_of_rows = self.clock[:, head : head + features]
        self.unit = self.clock[:, head + features :]
        self._arrays = {
            name: self.block[:, start : start + _size(shape)].reshape(len(states), *shape)
            for name, (start, shape) in _places(self.layout).items()
        }

    def __getitem__(self, name: str) -> F32:
        return self._arrays[name]

    def __setitem__(self, name: str, value: npt.ArrayLike) -> None:
        self._arrays[name][...] = value

    def states(self) -> list[State]:
        """The subjects' states, as they are now."""
        return [
            State(self.layout, clock.copy(), numbers.copy())
            for clock, numbers in zip(self.clock, self.block, strict=True)
        ]


def empty(layout: Layout, position: float = 0.0) -> State:
    """State of a subject of which no window was seen."""
    clock = np.zeros(len(CLOCK) + 2 * layout.features)
    clock[AT], clock[POSITION] = -np.inf, position
    clock[len(CLOCK) :] = np.nan
    numbers = np.zeros(_length(layout), np.float32)
    table = Table([State(layout, clock, numbers)])
    table["gram"] = season.ridge(layout.cycle)
    table["first_day"] = table["today"] = np.nan
    table["centre"] = np.nan
    table["second_z"], table["fourth"], table["long_run"] = 1, 3, 1
    table["log_r"] = -np.inf
    if not layout.features:
        table["centre"], table["second"], table["total"] = 0, 1, 1
    return table.states()[0]


def _shapes(layout: Layout) -> Mapping[str, tuple[int, ...]]:
    """Arrays of a state.

    own, counted   rows of the first windows in the bins, later their shares; values among them,
                   later whether the unit is in doubt: see first_windows
    rare_up_to     share up to which a bin is rare; in the first windows: see first_windows
    gram           information about the daily cycle; first_day: day on which an hour was first seen
    busy           squared surprise at each half hour: of earlier days, and of today
    today          local day of the newest window
    centre, beta   level and daily cycle; lagged, har, har_y: residuals' persistence
    second, total  variance of the forecast's error, and of the residual without persistence
    second_z, fourth     moments of surprises; held: what waits under suspicion (5 sums)
    slow, long_run       long-run variance of surprises; log_r: the bets
    peak, misses, excess near misses; quiet, age: alarm; lately: recent residual and its square
    """
    f, w, s, cycle = layout
    p, lags, sizes = season.size(cycle), len(LAGS), len(DELTAS)
    return {
        "own": (f, w),
        "counted": (f,),
        "rare_up_to": (f,),
        "gram": (p, p),
        "first_day": (season.HOURS if cycle else 0,),
        "busy": (2, layout.groups, season.HALVES if cycle else 0),
        "today": (1,),
        "centre": (s,),
        "beta": (s, p),
        "lagged": (s, lags),
        "har": (s, lags * (lags + 1) // 2),
        "har_y": (s, lags),
        "second": (s,),
        "total": (s,),
        "second_z": (s,),
        "fourth": (s,),
        "held": (s, 5),
        "slow": (s, sizes),
        "long_run": (s, sizes),
        "log_r": (s, 2, sizes),
        "peak": (s,),
        "misses": (s,),
        "excess": (s,),
        "quiet": (s,),
        "age": (s,),
        "lately": (s, 2),
    }


@functools.lru_cache(maxsize=64)
def _places(layout: Layout) -> Mapping[str, tuple[int, tuple[int, ...]]]:
    places, start = {}, 0
    for name, shape in _shapes(layout).items():
        places[name] = start, shape
        start += _size(shape)
    return places


@functools.lru_cache(maxsize=64)
def _length(layout: Layout) -> int:
    return sum(map(_size, _shapes(layout).values()))


def _size(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape, dtype=np.int64))


def hours_covered(state: State) -> int:
    """Hours of the day, of days of work and of rest, that were seen; -1 if no cycle is forecast."""
    if not state.layout.cycle:
        return -1
    start, shape = _places(state.layout)["first_day"]
    return int(np.isfinite(state.numbers[start : start + _size(shape)]).sum())


def own_shares(state: State) -> F32:
    """Shares (F, W) of the subject's first rows in the bins."""
    start, shape = _places(state.layout)["own"]
    counts = state.numbers[start : start + _size(shape)].reshape(shape)
    return np.asarray(counts / np.maximum(counts.sum(-1, keepdims=True), 1e-30), np.float32)
