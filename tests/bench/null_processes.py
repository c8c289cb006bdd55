"""Rows of machines that run as usual: whatever a drift decision finds in them is a false alarm.

A kind is a law of one feature; its features are independent, those of one device share the number
of rows and the windows that are not sent. Every row is drawn (float32) and goes through the
product's own sketch: nothing of a window is approximated.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
from scipy.signal import lfilter

from bench.feature_windows import RowCounter, Watched, Windows
from shoal.sketch import F32, F64, I64, Reference, reference_of

HOUR, DAY = 3_600.0, 86_400.0
#: Features of a device.
FEATURES = 8
#: Rows that a reference is made of; devices of the fleet that the budget is for.
TRAINING_ROWS, DEVICES = 20_000, 10_000
#: 2026-01-05 00:00 UTC, the Monday on which all of it begins.
MONDAY = 1_767_571_200.0


class Signal(Protocol):
    """Some features of one law."""

    def rows(self, t: F64) -> F32:
        """Values (rows, features) at times `t` (rows,), ascending from call to call, in seconds.

        0 is Monday 00:00 of the site's clock.
        """
        ...


class White:
    """Independent values about a level that the time decides; `shape` makes others of them."""

    def __init__(
        self,
        rng: np.random.Generator,
        many: int,
        level: Callable[[F64], F64] | None = None,
        shape: Callable[[F32, np.random.Generator], F32] | None = None,
        spread: float = 0.0,
    ) -> None:
        self.rng, self.many, self.level, self.shape = rng, many, level, shape
        self.offset = (spread * rng.standard_normal(many)).astype(np.float32)

    def rows(self, t: F64) -> F32:
        x = noise(self.rng, t, self.many)
        if self.shape:
            x = self.shape(x, self.rng)
        if self.level:
            x = x + self.level(t).astype(np.float32)[:, None]
        return x + self.offset


class Autoregressive:
    """x = phi x' + sqrt(1 - phi²) e from row to row."""

    def __init__(self, rng: np.random.Generator, many: int, phi: float) -> None:
        self.rng, self.phi = rng, phi
        self.last = rng.standard_normal(many).astype(np.float32)

    def rows(self, t: F64) -> F32:
        e = noise(self.rng, t, len(self.last))
        root, back = np.float32(np.sqrt(1 - self.phi**2)), np.float32(-self.phi)
        start = (self.phi * self.last)[None].astype(np.float32)
        x, _ = lfilter(np.array([root]), np.array([1, back], np.float32), e, axis=0, zi=start)
        self.last = x[-1].astype(np.float32)
        return np.asarray(x, np.float32)


class Volatile:
    """GARCH(1, 1) from row to row, unconditional variance 1 (Bollerslev 1986)."""

    def __init__(
        self, rng: np.random.Generator, many: int, shock: float = 0.08, kept: float = 0.91
    ) -> None:
        self.rng, self.shock, self.kept = rng, np.float32(shock), np.float32(kept)
        self.variance = np.ones(many, np.float32)

    def rows(self, t: F64) -> F32:
        e = noise(self.rng, t, len(self.variance))
        base = 1 - self.shock - self.kept
        for row in e:
            row *= np.sqrt(self.variance)
            self.variance = base + self.shock * np.square(row) + self.kept * self.variance
        return e


class Switching:
    """Features that go from state to state, each in its own time.

    next_state  (rng, states) -> the states that follow, and how many seconds each lasts
    levels, sds of the states
    """

    def __init__(
        self,
        rng: np.random.Generator,
        many: int,
        next_state: Callable[[np.random.Generator, I64], tuple[I64, F64]],
        levels: tuple[float, ...],
        sds: tuple[float, ...],
    ) -> None:
        self.rng, self.next_state = rng, next_state
        self.levels, self.sds = np.array(levels, np.float32), np.array(sds, np.float32)
        self.state, lasts = next_state(rng, rng.integers(0, len(levels), many))
        self.until = rng.random(many) * lasts
        self.started = False

    def rows(self, t: F64) -> F32:
        if not self.started:
            self.until, self.started = self.until + t[0], True
        x = noise(self.rng, t, len(self.state))
        todo = np.zeros(len(self.state), np.int64)  # rows of this call that are done, a feature
        at = np.arange(len(t))[:, None]
        states = np.broadcast_to(self.state, x.shape).copy()
        while True:
            over = np.flatnonzero(self.until <= t[-1])
            if not len(over):
                break
            todo[over] = np.searchsorted(t, self.until[over])
            self.state[over], lasts = self.next_state(self.rng, self.state[over])
            states[:, over] = np.where(at >= todo[over], self.state[over], states[:, over])
            self.until[over] += lasts
        return x * self.sds[states] + self.levels[states]


class Kind(NamedTuple):
    """A law. begin_s: second of the week at which its devices begin.

    absent    share of windows that a device does not send, one by one and as outages of hours
    uneven    whether the number of rows differs between devices and from window to window
    clock     what the site's clock shows, as far as the controller knows, from seconds of the week
    trained   hours of the day from which training rows are
    """

    signal: Callable[[np.random.Generator, int], Signal]
    begin_s: float = 0.0
    absent: bool = False
    uneven: bool = False
    clock: Callable[[F64], F64] = np.asarray
    trained: tuple[float, float] = (0.0, 24.0)


class Moment(NamedTuple):
    """Start of a window: Unix seconds, and the same as the site's clock shows them."""

    at: float
    local: float


class Rows(NamedTuple):
    """values (rows, D x F); kept (D,): rows that the device has; sent (D,) bool."""

    values: F32
    kept: I64
    sent: npt.NDArray[np.bool_]


class Fleet:
    """`devices` of a kind, window after window of `rows` rows in `window_s` seconds.

    Of several kinds, feature j of every device is of the j-th; begin, clock and what concerns whole
    devices are those of the first.

    >>> fleet = Fleet("iid", devices=2, rows=60, window_s=60.0, seed=0)
    >>> moment, rows = fleet.window()
    >>> moment.at - MONDAY, rows.values.shape, fleet.sketched(rows).n.shape
    (0.0, (60, 16), (2, 8))
    """

    def __init__(
        self, kind: str | Sequence[str], *, devices: int, rows: int, window_s: float, seed: int
    ) -> None:
        names = [kind] * FEATURES if isinstance(kind, str) else list(kind)
        self.features, self.kind = len(names), KINDS[names[0]]
        self.devices, self.rows, self.window_s = devices, rows, window_s
        self.rng = np.random.Generator(np.random.SFC64([seed, list(KINDS).index(names[0]), 1]))
        self.parts, columns = [], {}
        for name in dict.fromkeys(names):
            mine = np.flatnonzero(np.array(names) == name)
            signal = KINDS[name].signal(self.rng, devices * len(mine))
            at = (np.arange(devices)[:, None] * self.features + mine).ravel()
            self.parts.append((signal, at))
            self.training = _training(KINDS[name], seed)
            columns[name] = reference_of({"x": self.training}).features[0]
        reference = Reference(features=[columns[name] for name in names])
        self.counter = RowCounter(reference, devices)
        pace = np.exp(0.6 * self.rng.standard_normal(devices)) if self.kind.uneven else 1.0
        self.pace = rows * pace * np.ones(devices)
        self.most = int(3 * rows) if self.kind.uneven else rows
        self.back_at = np.zeros(devices)
        self.passed = 0

    @property
    def watched(self) -> Watched:
        return Watched(self.devices, self.counter.training, self.window_s, DEVICES)

    def window(self) -> tuple[Moment, Rows]:
        """The next window: when it starts, and its rows."""
        at = self.kind.begin_s + self.passed * self.window_s
        self.passed += 1
        t = at + np.arange(self.most) / self.most * self.window_s
        kept = np.full(self.devices, self.rows)
        if self.kind.uneven:
            kept = np.clip(self.rng.poisson(self.pace), 3, self.most)
        clock = float(self.kind.clock(np.array([at]))[0])
        values = np.empty((self.most, self.devices * self.features), np.float32)
        for signal, columns in self.parts:
            values[:, columns] = signal.rows(t)
        return Moment(MONDAY + at, MONDAY + clock), Rows(values, kept, self._sent(at))

    def sketched(self, rows: Rows) -> Windows:
        """The windows that the devices send."""
        return self.counter.count(*rows)

    def _sent(self, at: float) -> npt.NDArray[np.bool_]:
        """Every tenth window is lost, and each device is away twice a day for an hour or so."""
        if not self.kind.absent:
            return np.ones(self.devices, bool)
        leaves = self.rng.random(self.devices) < 2 * self.window_s / DAY
        away_s = self.rng.exponential(HOUR, self.devices)
        self.back_at = np.where(leaves, np.maximum(self.back_at, at + away_s), self.back_at)
        return (self.back_at <= at) & (self.rng.random(self.devices) >= 0.1)


def _training(kind: Kind, seed: int) -> F64:
    """Rows of other devices of the kind, spread over two weeks that begin after a day."""
    rng = np.random.default_rng([seed, 2])
    signal = kind.signal(rng, 64)
    times = DAY + np.arange(0, 14 * DAY, 600.0)
    begin, end = kind.trained
    times = times[(times % DAY / HOUR >= begin) & (times % DAY / HOUR < end)]
    values = np.concatenate([signal.rows(t) for t in np.array_split(times, 48)]).ravel()
    return rng.choice(values, min(TRAINING_ROWS, len(values)), replace=False).astype(np.float64)


def noise(rng: np.random.Generator, t: F64, many: int) -> F32:
    return rng.standard_normal((len(t), many), dtype=np.float32)


# ------------------------------------------------------------------------------------- levels


def wave(t: F64) -> F64:
    """One period a day."""
    return np.sin(2 * np.pi * t / DAY)


def weekend(t: F64) -> npt.NDArray[np.bool_]:
    return (t // DAY) % 7 >= 5


def worked(t: F64) -> F64:
    """Machines that run from 8 to 17 on weekdays, ten minutes to start: 2 sd more."""
    hour = (t % DAY) / HOUR
    on = np.clip((hour - 8) * 6, 0, 1) * np.clip((17 - hour) * 6, 0, 1)
    return np.where(weekend(t), 0, 2 * on)


def shifts(t: F64) -> F64:
    """Three shifts of eight hours from 6 o'clock, each with its own setting."""
    return np.array([-0.5, 0.0, 0.7])[(((t / HOUR - 6) // 8) % 3).astype(int)]


def summer_time(t: F64) -> F64:
    """A clock that goes on by an hour in the third night."""
    return np.where(t >= 2 * DAY + 2 * HOUR, t + HOUR, t)


def start_of_release(t: F64) -> F64:
    """3 sd low, and within hours as always."""
    return -3 * np.exp(-t / HOUR)


# ------------------------------------------------------------------------------------- shapes


def mostly_zero(e: F32, rng: np.random.Generator) -> F32:
    return np.where(rng.random(e.shape, np.float32) < 0.9, np.float32(0), np.abs(e) * 5)


def codes(e: F32, _: np.random.Generator) -> F32:
    return np.floor(e * 2)


def heavy(e: F32, rng: np.random.Generator) -> F32:
    """Student's t of 3 degrees of freedom."""
    chi = rng.standard_gamma(1.5, e.shape, np.float32) * 2
    return np.asarray(e / np.sqrt(chi / 3), np.float32)


# ------------------------------------------------------------------------------------- switching


def burst(rng: np.random.Generator, state: I64) -> tuple[I64, F64]:
    """An hour of quiet, then five minutes of another level, both in the mean."""
    after = 1 - state
    return after, rng.exponential(np.where(after == 1, 300.0, HOUR))


def recipe(rng: np.random.Generator, state: I64) -> tuple[I64, F64]:
    """Another of four products after half an hour, and three hours more in the mean."""
    after = (state + rng.integers(1, 4, len(state))) % 4
    return after, HOUR / 2 + rng.exponential(3 * HOUR, len(state))


def duty(rng: np.random.Generator, state: I64) -> tuple[I64, F64]:
    """A compressor: on for 22 and off for 15 minutes, give or take a twentieth."""
    after = 1 - state
    return after, np.where(after == 1, 22 * 60.0, 15 * 60.0) * rng.uniform(0.95, 1.05, len(state))


def _summer(rng: np.random.Generator, many: int) -> White:
    return White(rng, many, lambda t: wave(summer_time(t)))


_RECIPES = ((-1.0, -0.3, 0.4, 1.2), (1.0, 0.8, 1.2, 1.0))

#: Name -> its law. Those below the line were not known to whoever made the decision.
KINDS: dict[str, Kind] = {
    "iid": Kind(White),
    "offsets": Kind(lambda rng, n: White(rng, n, spread=1.0)),
    "AR(0.9)": Kind(lambda rng, n: Autoregressive(rng, n, 0.9)),
    "AR(0.999)": Kind(lambda rng, n: Autoregressive(rng, n, 0.999)),
    "diurnal 0.3 sd": Kind(lambda rng, n: White(rng, n, lambda t: 0.3 * wave(t))),
    "diurnal 1 sd": Kind(lambda rng, n: White(rng, n, wave)),
    "weekly": Kind(
        lambda rng, n: White(rng, n, lambda t: np.where(weekend(t), 0.3 * wave(t) - 0.5, wave(t))),
        begin_s=3 * DAY,
    ),
    "zero-inflated": Kind(lambda rng, n: White(rng, n, shape=mostly_zero)),
    "integer codes": Kind(lambda rng, n: White(rng, n, shape=codes)),
    "bursts": Kind(lambda rng, n: Switching(rng, n, burst, (0.0, 2.0), (1.0, 1.0))),
    "warm-up": Kind(lambda rng, n: White(rng, n, start_of_release)),
    # ---
    "recipes": Kind(lambda rng, n: Switching(rng, n, recipe, *_RECIPES)),
    "three shifts": Kind(lambda rng, n: White(rng, n, shifts)),
    "duty cycle of 37 minutes": Kind(
        lambda rng, n: Switching(rng, n, duty, (-0.6, 0.4), (1.0, 1.0))
    ),
    "volatility in clusters": Kind(Volatile),
    "daylight saving": Kind(_summer, clock=summer_time),
    "daylight saving, zone unknown": Kind(_summer),
    "windows missing": Kind(lambda rng, n: White(rng, n, wave), absent=True),
    "uneven rows": Kind(White, uneven=True),
    "worked hours": Kind(lambda rng, n: White(rng, n, worked)),
    "starts at 8 o'clock": Kind(lambda rng, n: White(rng, n, worked), begin_s=8 * HOUR),
    "trained in the morning": Kind(lambda rng, n: White(rng, n, wave), trained=(6.0, 12.0)),
    "diurnal 4 sd": Kind(lambda rng, n: White(rng, n, lambda t: 4 * wave(t))),
    "heavy tails": Kind(lambda rng, n: White(rng, n, shape=heavy)),
}  # fmt: skip
