"""One step of the drift decision: forecast, surprise, bet, decide, learn. See sequential.py."""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from shoal.controller.monitoring import bets, channels, learning, season
from shoal.controller.monitoring.channels import Reading
from shoal.controller.monitoring.drift_state import AT, LATE, SEEN, Table

Array = npt.NDArray[Any]
F64 = npt.NDArray[np.float64]
BOOL = npt.NDArray[np.bool_]

#: First windows that tell how the others are read.
LENS = 24
#: While the bet stands above this, persistence is not learnt, and spread and kurtosis are put by
#: until it has fallen: otherwise a change would teach that changes are usual before it is found.
SUSPECT = 2.0
#: An alarm that stood for so long has said it.
ACCEPT_S = 86_400.0
#: Surprises below this are no event of the clock; how much of one is left a day later.
EVENT, EVENT_KEPT = 5.0, 0.7
#: Spread of a series that is stuck, in log variance below the usual.
STUCK = -2.0
#: Late windows in a row after which a device's clock is taken to have been set back.
SET_BACK = 32
#: Windows that what is known of a site beforehand counts for: its devices' surprises together are
#: 0 and of variance 1 where nothing changes.
SITE_PRIOR = 96
#: Windows that the spread of rows drawn at random counts for, until fewer is believed.
TRUSTED = 12
#: Largest ratio of a residual's variance to that of its forecast's error.
MOST_PERSISTENT = 1e4

#: Arrays of a state that are what is usual; the others are what lately happened.
LEARNT = (
    "gram", "first_day", "busy", "today", "centre", "beta", "har", "har_y", "second", "total",
    "second_z", "fourth", "held", "long_run", "misses", "excess",
)  # fmt: skip

#: Channels, rows last, that may follow a daily cycle unseen, and those that a day accepts.
_CYCLIC = np.array([True, True, True, True, True, False, False, True])
_ACCEPTED = np.array([True, True, True, True, True, False, False, True])


class Rules(NamedTuple):
    """What the operator sets.

    first      windows before the first alarm
    cycle      whether a daily cycle is forecast; rest_days: days of the week apart, Monday is 0
    tolerance  smallest change that matters, in row sd of a shift of the mean
    """

    first: int = 96
    cycle: bool = True
    rest_days: tuple[int, ...] = (5, 6)
    tolerance: float = 0.05

    @property
    def lens(self) -> int:
        """First windows that are not judged."""
        return max(1, min(LENS, self.first // 4))

    @property
    def awake(self) -> int:
        """Spans of a size of change that must have been seen before it is bet on."""
        return min(bets.AWAKE, max(1, self.first - self.lens))


class Times(NamedTuple):
    """When B windows began: at (Unix s), local (s of the site's clock), window_s; each (B,)."""

    at: F64
    local: F64
    window_s: F64


class Outcome(NamedTuple):
    """What one window of each of B subjects said; S series, G = F + 1 groups (features, rows).

    log_e      (B, S): log of the e-detector; threshold (B, S): above it, an alarm
    hit        (B, S): above it now; alarmed (B, S): in alarm
    began      (B, G): a feature that begins to alarm
    change     (B, S): how far the series moved from its forecast by the clock, in its channel's
               unit; NaN where it is not known. expected (B, S): that forecast, in the same unit
    surprise   (B, S): z as it was bet on, 0 where nothing is known; tau (B, S): the tolerance in
               the same unit
    ready      (B,): enough windows were seen; half_ready: half of that, a site may count it
    covered    (B,): this hour was seen on an earlier day
    """

    log_e: F64
    threshold: F64
    hit: BOOL
    alarmed: BOOL
    began: BOOL
    change: F64
    expected: F64
    surprise: F64
    tau: F64
    ready: BOOL
    half_ready: BOOL
    covered: BOOL


class Forecast(NamedTuple):
    """cycle (B, S): by the clock; persistent (B, S): off it, by recent residuals; sd (B, S): usual
    error; width (B, S): this error's sd over it; square (B, S): φ² of the residuals;
    g, gain (B, p), leverage (B, 1): of the regressors; late (B, 1)."""

    cycle: Array
    persistent: Array
    sd: Array
    width: Array
    square: Array
    g: Array
    gain: Array
    leverage: Array
    late: Array


def channel_of(series: int) -> npt.NDArray[np.int64]:
    """Channel of each series: 0 to 6 as in channels.NAMES, 7 for rows."""
    channel = np.arange(series) % channels.CHANNELS
    channel[-1] = channels.CHANNELS
    return channel


def step(
    table: Table,
    times: Times,
    reading: Reading,
    rules: Rules,
    *,
    excess: Array,
    stretch: Array,
    log_a: float,
    frozen: BOOL | None = None,
) -> Outcome:
    """Apply one reading of each subject to `table`, in place.

    excess, stretch   (8,): prior kurtosis and stretched threshold by channel; log_a: the threshold
    frozen            (B,): subjects that learn nothing from it
    """
    kept = _kept(table, frozen)
    channel = channel_of(table.layout.series)
    seen = table.clock[:, SEEN] + 1
    of_site = not table.layout.features
    first = 0 if of_site else rules.lens
    judged, ready = seen > first, seen > rules.first
    windows = np.maximum(seen - first, 1)[:, None] + (SITE_PRIOR if of_site else 0)
    known = np.isfinite(reading.values) & judged[:, None]
    fresh = np.isnan(table["centre"]) & known
    table["centre"] = np.where(fresh, reading.values, table["centre"])
    drawn = np.where(fresh, np.square(reading.chance), 0)  # of a feature that comes late, too
    table["second"], table["total"] = (np.maximum(table[n], drawn) for n in ("second", "total"))

    made = _forecast(table, times, reading, rules, windows)
    residual = np.where(known, reading.values - table["centre"] - made.cycle, 0)
    error = np.where(known, residual - made.persistent, 0)
    usual, covered = _by_the_clock(table, times.local, rules, channel)
    scale = made.sd * made.width * usual / np.sqrt(_share(table, reading))
    z = np.clip(error / scale, -1e4, 1e4)
    doubted = scale * _doubt(made.sd, reading, windows)
    said_z, tau = np.clip(error / doubted, -1e4, 1e4), np.minimum(reading.tolerance / doubted, 1e4)
    freedom = bets.degrees_of_freedom(table, excess[channel], windows)
    sides = [bets.normal_score(side * said_z - tau, freedom) for side in (1, -1)]
    scores = np.minimum(np.stack(sides, axis=-1), reading.cap[..., None])
    unseen = ~covered[:, None] & _CYCLIC[channel] & ~_beyond(table, reading)
    scores = np.where(unseen[..., None], np.minimum(scores, 0), scores)
    scores = np.where(known[..., None], scores, np.nan)
    log_e = bets.bet(
        table, scores, windows, rules.awake, _persistence_of_rare(made.square, windows)
    )

    before = table["quiet"] > 0
    said = bets.decide(table, log_e, log_a, stretch[channel], ready, times.window_s)
    recent = np.where(before, table["lately"][..., 0], table["lagged"][..., 1])
    recent = np.where(np.abs(z) < 4, recent, residual)
    judged_window = learning.Judged(
        made.g, made.gain, made.leverage, residual, error, made.width, made.sd, z,
        bets.normal_score(z, freedom), known, known & ~before, log_e < SUSPECT, made.late, windows,
        times.window_s[:, None],
    )  # fmt: skip
    learning.learn(table, judged_window, season.ridge(rules.cycle))
    _note_by_the_clock(
        table, times.local, np.where(judged_window.move, z * usual, 0), rules, channel
    )
    _accept_old_alarms(table, channel, frozen)
    _restore(table, frozen, kept)
    _turn_clock(table, times.at, seen, made.late[:, 0])
    return Outcome(
        log_e, said.threshold, said.hit, said.alarmed, groups(said.hit) & ~groups(before),
        np.where(known, recent, np.nan), made.cycle + table["centre"],
        np.clip(said_z, -reading.cap, reading.cap),
        np.broadcast_to(tau, z.shape), ready, 2 * seen > rules.first, covered,
    )  # fmt: skip


def groups(series: Array) -> Array:
    """(B, S) -> (B, G): the largest, or whether any, of a feature's series."""
    features = series.shape[1] // channels.CHANNELS
    folded = series[:, :-1].reshape(len(series), features, channels.CHANNELS)
    return np.concatenate([folded.max(-1), series[:, -1:]], axis=1)


def _forecast(
    table: Table, times: Times, reading: Reading, rules: Rules, windows: Array
) -> Forecast:
    g = season.regressors(times.local, rules.rest_days, rules.cycle)
    gain = np.linalg.solve(table["gram"].astype(np.float64), g[..., None])[..., 0]
    leverage = np.maximum((g * gain).sum(-1), 0)[:, None]
    usual = np.maximum(table["second"], np.square(reading.floor))
    slopes = learning.slopes(table["har"], table["har_y"], 10 * usual)
    last = np.where(np.isfinite(table.clock[:, AT]), table.clock[:, AT], times.at - times.window_s)
    late = (times.at <= last)[:, None]
    gap = np.clip(np.round((times.at - last) / times.window_s), 1, 1e6)[:, None]
    ratio = np.clip(table["total"] / np.maximum(table["second"], 1e-30), 1, MOST_PERSISTENT)
    ratio = np.where(windows > learning.SETTLE, ratio, 1)
    square = 1 - 1 / ratio
    faded = np.where(late, 0, square ** ((gap - 1) / 2))
    grown = np.where(late, ratio, np.minimum(ratio * (1 - square**gap), gap))
    return Forecast(
        cycle=np.einsum("bp,bsp->bs", g, table["beta"]),
        persistent=faded * (slopes * table["lagged"]).sum(-1),
        sd=np.sqrt(usual),
        width=np.sqrt(np.maximum(grown, 1) + leverage),
        square=square,
        g=g,
        gain=gain,
        leverage=leverage,
        late=late,
    )


def _doubt(sd: Array, reading: Reading, windows: Array) -> Array:
    """(B, S), 1 or more: by how much a surprise is divided before it is bet on.

    A few windows may be alike by chance, or because their rows are taken in turn: the sd of rows
    drawn at random counts for TRUSTED windows, where it is more. What is learnt of surprises is
    of undivided ones, whose law does not change as the doubt fades.
    """
    drawn = np.square(reading.chance / np.maximum(sd, 1e-30))
    return np.asarray(np.sqrt(np.maximum((TRUSTED * drawn + windows) / (TRUSTED + windows), 1)))


def _share(table: Table, reading: Reading) -> Array:
    """(B, 1): rows over the usual number, at most 1. Of devices: a site's values are surprises."""
    if not table.layout.features:
        return np.ones((len(table.clock), 1))
    fewer = reading.values[:, -1:] - table["centre"][:, -1:]
    return np.asarray(np.exp(np.clip(np.nan_to_num(fewer), -7, 0)))


def _by_the_clock(table: Table, local: F64, rules: Rules, channel: Array) -> tuple[Array, BOOL]:
    """(B, S): surprise that is usual about this half hour on earlier days, at least 1; and (B,):
    whether this hour was seen on an earlier day."""
    if not rules.cycle:
        return np.ones((1, 1)), np.ones(len(local), bool)
    each, day = np.arange(len(local)), season.day_of(local)
    turned = table["today"][:, 0] != day
    if turned.any():
        earlier, today = table["busy"][turned, 0], table["busy"][turned, 1]
        table["busy"][turned, 0] = np.maximum(EVENT_KEPT * earlier, today)
        table["busy"][turned, 1] = 0
        table["today"][turned, 0] = day[turned]
    half = season.half_of(local)
    around = [table["busy"][each, 0, :, (half + i) % season.HALVES] for i in (-1, 0, 1)]
    most = np.sqrt(np.maximum(np.max(around, axis=0), 1))
    usual = np.where(_CYCLIC[channel], most[:, np.arange(len(channel)) // channels.CHANNELS], 1)
    hour = season.hour_of(local, rules.rest_days)
    first = table["first_day"][each, hour]
    table["first_day"][each, hour] = np.where(np.isnan(first), day, first)
    return usual, np.asarray(first < day)


def _note_by_the_clock(table: Table, local: F64, z: Array, rules: Rules, channel: Array) -> None:
    """Remember large surprises by the half hour; they count from tomorrow on."""
    if not rules.cycle:
        return
    large = np.where(_CYCLIC[channel] & (np.abs(z) > EVENT), np.square(np.clip(z, -50, 50)), 0)
    each, half = np.arange(len(local)), season.half_of(local)
    table["busy"][each, 1, :, half] = np.maximum(table["busy"][each, 1, :, half], groups(large))


def _beyond(table: Table, reading: Reading) -> BOOL:
    """(B, S): series of features most of whose rows were never seen: no hour explains them."""
    found = np.zeros(reading.values.shape, bool)
    if table.layout.features:
        angle = np.nan_to_num(reading.values[:, channels.RARE : -1 : channels.CHANNELS])
        found[:, :-1] = np.repeat(np.square(np.sin(angle)) > 0.5, channels.CHANNELS, axis=1)
    return found


def _persistence_of_rare(square: Array, windows: Array) -> Array:
    """(B, S): least long-run variance. Rare rows are too few to measure theirs, and come in
    clusters where the feature is autocorrelated: (1 + φ) / (1 - φ) of its mean, as far as φ² is
    more than chance gives in so many windows."""
    chance = 1 + 2 * np.sqrt(2 / np.minimum(windows, bets.MEMORY))
    phi = np.sqrt(np.clip(1 - chance * (1 - square), 0, 0.9999))
    factor = np.ones(phi.shape)
    of_mean = phi[:, channels.MEAN : -1 : channels.CHANNELS]
    factor[:, channels.RARE : -1 : channels.CHANNELS] = (1 + of_mean) / (1 - of_mean)
    return factor


def _accept_old_alarms(table: Table, channel: Array, frozen: BOOL | None) -> None:
    """An alarm that stood a day becomes the normal; not missing, rare or stuck values, and nothing
    of a frozen subject."""
    stuck = (channel == channels.SPREAD) & (table["lately"][..., 0] < STUCK)
    old = (table["age"] >= ACCEPT_S) & _ACCEPTED[channel] & ~stuck
    learning.accept(table, old if frozen is None else old & ~frozen[:, None])


def _kept(table: Table, frozen: BOOL | None) -> dict[str, Array]:
    """What frozen subjects have learnt."""
    if frozen is None or not frozen.any():
        return {}
    return {name: table[name][frozen] for name in LEARNT}


def _restore(table: Table, frozen: BOOL | None, kept: dict[str, Array]) -> None:
    for name, value in kept.items():
        table[name][frozen] = value


def _turn_clock(table: Table, at: F64, seen: F64, late: BOOL) -> None:
    table.clock[:, SEEN] = seen
    table.clock[:, LATE] = np.where(late, table.clock[:, LATE] + 1, 0)
    back = table.clock[:, LATE] > SET_BACK
    table.clock[:, AT] = np.where(back, at, np.maximum(at, table.clock[:, AT]))
