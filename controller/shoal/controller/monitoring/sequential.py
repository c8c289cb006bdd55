"""Drift decision: has one of a subject's numbers moved away from its own past?

One rule for every channel of every feature, with a state of fixed size and nothing read again.

forecast   y_t = season(t)·beta + sum_k b_k·m_k + error: a recursive ridge regression on the phase
           of the day, days of rest apart, and moving averages of its residuals over 1, 6 and 36
           windows (HAR, Corsi 2009), both learnt one window after another. After a gap, or for a
           window that comes late, persistence fades and the error's variance grows as for a first
           order autoregression.
coverage   Leverage h = g'G⁻¹g widens the forecast for a phase that was hardly seen. In an hour that
           was never seen on an earlier day, values that stay within what training and first windows
           hold cannot be told from the cycle: mean, spread, ranks and rows do not alarm there.
           Missing rows, and values never seen before, do.
surprise   z = error / (sd·√(variance + h)) · √min(1, rows / usual), divided by what is usual at
           this half hour (a shift that begins at 8 surprises every day), and brought to a normal
           score u through a t law with degrees of freedom from the past surprises' kurtosis.
bet        Shiryaev-Roberts sums R <- (1 + R)·exp(δ·u(±z - τ)/√v - δ²/2) for δ small to large; v is
           the measured long-run variance at the scale on which δ works, τ the tolerance. The mean
           over δ and signs is an e-detector: its average run length without a change is at least
           the threshold, whatever the horizon (Shin, Ramdas & Rinaldo 2023).
alarm      log E above `log_threshold`, raised by the series' own near misses. In alarm nothing is
           learnt; it ends 32 windows after its last evidence, and after a day where the series is
           now becomes its normal, except for missing, rare and stuck values.

How it is called:

    rules = Rules(first=96, cycle=True, rest_days=(5, 6), tolerance=0.05)
    layout = device_layout(F, W, rules)              # F features in W bins
    states = [drift_state.empty(layout), ...]        # one for each subject
    fleet = Fleet.unknown()                          # one for each release
    log_a = log_threshold(1.0, subjects=10_000, features=F, window_s=60)
    states, outcome = observe(states, windows, training_shares, rules, fleet, log_a)
    fleet = fleet.after(states)                      # now and then: what the whole fleet saw

`observe` takes one window of each of B subjects (channels.Windows) and returns new states; the
given ones are not changed. `outcome.began` (B, F + 1) says which features begin to alarm (the last:
rows), `outcome.alarmed` (B, S) which series are in alarm.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from shoal.controller.monitoring import bets, channels, first_windows, surprises
from shoal.controller.monitoring.channels import Lens, Reading, Windows
from shoal.controller.monitoring.drift_state import POSITION, SEEN, Layout, State, Table
from shoal.controller.monitoring.surprises import Outcome, Rules, Times, channel_of

F64 = npt.NDArray[np.float64]
BOOL = npt.NDArray[np.bool_]

#: Most that a device's surprise counts in its site's; least sd of the site's mean surprise.
SITE_CAP, SITE_FLOOR = 8.0, 0.7
#: Sizes of a change from which it is severe: row sd, log variance, row sd of ranks, radians (about
#: 10 % of rows), log rows.
SEVERE = np.array([1.0, 1.4, 1.0, 1.0, 1.0, 0.25, 0.25, 0.7])


class Fleet(NamedTuple):
    """What all subjects of a release saw, by channel (8,): excess kurtosis, and how far near misses
    stretch the threshold."""

    excess: F64
    stretch: F64

    @classmethod
    def unknown(cls) -> "Fleet":
        """Before anything was seen."""
        return cls(np.zeros(8), np.ones(8))

    def after(self, states: Sequence[State], weight: float = 1.0) -> "Fleet":
        """Moved by `weight` towards what these subjects, of one layout, saw."""
        if not states:
            return self
        table = Table(states)
        channel = channel_of(table.layout.series)
        own = table["fourth"] / np.square(np.maximum(table["second_z"], 1)) - 3
        size = np.bincount(channel, minlength=8)
        excess = np.bincount(channel, np.maximum(own, 0).mean(0), 8) / np.maximum(size, 1)
        missed = np.bincount(channel, table["misses"].sum(0), 8)
        over = np.bincount(channel, table["excess"].sum(0), 8)
        stretch = np.maximum((bets.WEIGHT + over) / (bets.WEIGHT + missed), 1)
        return Fleet(
            self.excess + weight * (excess - self.excess),
            self.stretch + weight * (stretch - self.stretch),
        )


def device_layout(features: int, bins: int, rules: Rules) -> Layout:
    """Layout of a device's state: F features of W bins."""
    return Layout(features, bins, channels.CHANNELS * features + 1, rules.cycle)


def site_layout(features: int, rules: Rules) -> Layout:
    """Layout of a site's state."""
    return Layout(0, 0, channels.CHANNELS * features + 1, rules.cycle)


def log_threshold(per_day: float, *, subjects: int, features: int, window_s: float) -> float:
    """Log of the threshold at which all series together alarm `per_day` times a day at most."""
    series = max(1, subjects) * (channels.CHANNELS * max(1, features) + 1)
    return float(np.log(max(1.0, series * (86_400 / window_s) / per_day)))


def observe(
    states: Sequence[State],
    windows: Windows,
    training: F64,
    rules: Rules,
    fleet: Fleet,
    log_a: float,
    frozen: BOOL | None = None,
) -> tuple[list[State], Outcome]:
    """Apply one window to each of B devices.

    training   float64 (F, W): shares of training rows
    frozen     (B,): devices whose normal stays as it is; None: no device
    """
    table = Table(states)
    new = table.clock[:, SEEN] < rules.lens
    if new.any():
        first_windows.add(table, windows, training, rules.lens, np.flatnonzero(new))
    first_windows.mend_units(table, windows, ~new)
    lens = Lens(training, table["own"], table["rare_up_to"], table.centre_of_rows, table.unit)
    reading = channels.read(lens, windows, rules.tolerance)
    times = Times(windows.at, windows.local, windows.window_s)
    outcome = surprises.step(
        table, times, reading, rules, excess=fleet.excess, stretch=fleet.stretch, log_a=log_a,
        frozen=frozen,
    )  # fmt: skip
    table.clock[:, POSITION] = windows.position
    return table.states(), outcome


def observe_sites(
    states: Sequence[State],
    times: Times,
    terms: Sequence[F64],
    rules: Rules,
    fleet: Fleet,
    log_a: float,
    frozen: BOOL | None = None,
) -> tuple[list[State], Outcome]:
    """Apply one bucket of time to each of B sites.

    terms    three arrays (B, S): sums of `site_terms` over the members' windows in the bucket
    frozen   (B,): sites whose normal stays as it is; None: no site

    The outcome's change is that of a member, in the channel's unit.
    """
    surprise, tau, members = terms
    table = Table(states)
    root = np.sqrt(np.maximum(members, 1))
    values = np.where(members > 0, surprise / root, np.nan)
    features = table.layout.series // channels.CHANNELS
    caps = np.append(np.tile(channels.CAPS, features), np.inf)
    floor = np.full(values.shape, SITE_FLOOR)
    reading = Reading(values, floor, floor, tau / root, np.broadcast_to(caps, values.shape))
    outcome = surprises.step(
        table, times, reading, rules, excess=fleet.excess, stretch=fleet.stretch, log_a=log_a,
        frozen=frozen,
    )  # fmt: skip
    table.clock[:, POSITION] = times.at
    unit = channels.tolerances(features, rules.tolerance) * root / np.maximum(tau, 1e-12)
    change = outcome.change * np.where(members > 0, unit, np.nan)
    return table.states(), outcome._replace(change=change)


def site_terms(outcome: Outcome) -> tuple[F64, F64, F64]:
    """(surprise, tau, members), each (B, S): what windows of devices add to their site's bucket."""
    known = outcome.half_ready[:, None] & np.isfinite(outcome.change)
    surprise = np.clip(outcome.surprise, -SITE_CAP, SITE_CAP)
    return np.where(known, surprise, 0.0), np.where(known, outcome.tau, 0.0), known.astype(float)


def severity(outcome: Outcome) -> F64:
    """(B, S): how far a series moved, 1 is severe; 0 where it is not known."""
    change = np.abs(outcome.change) / SEVERE[channel_of(outcome.change.shape[1])]
    return np.where(np.isfinite(change), change, 0)
