"""Bets against "nothing changed": surprises as normal scores, their e-detector, and the alarm."""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from shoal.controller.monitoring.drift_state import DELTAS, SCALES, Table

Array = npt.NDArray[Any]

#: How often the number of windows of a size must have been seen before that size is bet on.
AWAKE = 12
#: Windows that the spread of surprises remembers; windows that what the fleet saw counts for.
MEMORY, FLEET_WEIGHT = 2_000, 500
#: Near misses: from where, and the weight of the belief that their mean excess is 1. Windows that
#: an alarm lasts after its last evidence.
NEAR, WEIGHT, HOLD = 4.0, 5.0, 32


def degrees_of_freedom(table: Table, fleet_excess: Array, t: Array) -> Array:
    """(B, S): degrees of freedom of the t law of surprises, after t (B, 1) windows."""
    t = np.maximum(t, 8)
    own = table["fourth"] / np.square(np.maximum(table["second_z"], 1)) - 3
    n = np.minimum(t, MEMORY)
    excess = (n * np.maximum(own, 0) + FLEET_WEIGHT * fleet_excess) / (n + FLEET_WEIGHT)
    return np.minimum(4 + 6 / (excess + np.sqrt(24 / n)), np.maximum(t - 8.0, 2.0))


def normal_score(z: Array, freedom: Array) -> Array:
    """Normal score of a t variate (Wallace 1959)."""
    size = np.sqrt(freedom * np.log1p(np.square(z) / freedom))
    return np.asarray(np.copysign(size * (8 * freedom + 1) / (8 * freedom + 3), z))


def bet(table: Table, sides: Array, t: Array, awake: int, persistence: Array) -> Array:
    """(B, S): log of the e-detector after this window.

    sides         (B, S, 2): scores up and down, NaN where nothing is known
    t             (B, 1): windows so far; persistence (B, S): least long-run variance
    """
    blocks = t[..., None] / SCALES
    v = np.maximum(table["long_run"], persistence[..., None]) * (1 + np.sqrt(2 / blocks))
    step = DELTAS * sides[..., None] / np.sqrt(v)[:, :, None, :] - np.square(DELTAS) / 2
    old = table["log_r"]
    grown = np.where(np.isnan(step), old, np.logaddexp(0, old) + np.nan_to_num(step))
    log_r = np.where((blocks >= awake)[:, :, None, :], grown, -np.inf)
    table["log_r"] = log_r
    top = log_r.max((2, 3))
    safe = np.where(np.isfinite(top), top, 0)
    with np.errstate(divide="ignore"):
        return np.asarray(safe + np.log(np.exp(log_r - safe[..., None, None]).mean((2, 3))))


class Decision(NamedTuple):
    """hit: above the threshold now; alarmed: in alarm; threshold; each (B, S)."""

    hit: Array
    alarmed: Array
    threshold: Array


def decide(
    table: Table, log_e: Array, log_a: float, stretch: Array, ready: Array, window_s: Array
) -> Decision:
    """Compare with the threshold, and count near misses. ready, window_s: (B,).

    Excursions of log E over NEAR have a mean excess of 1 where the bet is fair; where it is
    measured larger, the threshold is raised as much.
    """
    believed = (WEIGHT * stretch + table["excess"]) / (WEIGHT + table["misses"])
    threshold = log_a * np.maximum(believed, 1)
    hit = (log_e > threshold) & ready[:, None]
    quiet = np.where(hit, HOLD, np.maximum(table["quiet"] - 1, 0))
    table["log_r"][hit] = -np.inf
    peak = np.where(hit, 0, np.maximum(table["peak"], log_e))
    over = (log_e < 1) & (peak > 0)
    missed = over & (peak > NEAR) & (quiet == 0)
    table["misses"] += missed
    table["excess"] += np.where(missed, np.minimum(peak, log_a) - NEAR, 0)
    table["peak"] = np.where(over, 0, peak)
    table["age"] = np.where(quiet > 0, table["age"] + window_s[:, None], 0)
    table["quiet"] = quiet
    return Decision(hit, quiet > 0, threshold)
