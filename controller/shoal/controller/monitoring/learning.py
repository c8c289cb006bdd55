"""What a window teaches: daily cycle, persistence, spread, and long-run variance of surprises."""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from shoal.controller.monitoring.bets import MEMORY
from shoal.controller.monitoring.drift_state import LAGS, SCALES, Table

Array = npt.NDArray[Any]

#: Days that the season remembers; windows until surprises count.
MEMORY_DAYS, SETTLE = 21.0, 32
#: Windows of a burst that teach; windows that "recent" is.
LONGEST, RECENT = 16, 36


class Judged(NamedTuple):
    """A window and how it was forecast; B subjects, S series, p regressors.

    g, gain    (B, p): regressors, and G⁻¹g; leverage (B, 1): g'G⁻¹g
    residual   (B, S): off the daily cycle; error (B, S): off the forecast; width (B, S): sd of the
               error over its usual sd (B, S)
    z, score   (B, S): surprise, and as a normal score
    known      (B, S): the window says something; move: and no alarm stands; calm: no suspicion
    late       (B, 1): it came after a later one; windows (B, 1): number of windows judged so far
    window_s   (B, 1): its length
    """

    g: Array
    gain: Array
    leverage: Array
    residual: Array
    error: Array
    width: Array
    sd: Array
    z: Array
    score: Array
    known: Array
    move: Array
    calm: Array
    late: Array
    windows: Array
    window_s: Array

    @property
    def rate(self) -> Array:
        """(B, 1): weight of this window among those that are remembered."""
        return np.asarray(1 / np.minimum(self.windows, MEMORY))


def learn(table: Table, new: Judged, ridge: Array) -> None:
    """Update the states; ridge (p, p): what is believed of the daily cycle beforehand."""
    _learn_cycle(table, new, ridge)
    _learn_spread(table, new)
    _learn_persistence(table, new)
    r = new.residual
    alarm = table["age"] / new.window_s  # windows: what was before it is not recent
    since = np.where(alarm > 0, np.maximum(alarm, 1), new.windows)
    recent = np.where(new.known, 1 / np.minimum(since, RECENT), 0)[..., None]
    table["lately"] += (np.stack([r, np.square(r)], axis=-1) - table["lately"]) * recent
    settled = (new.windows > SETTLE) & new.known
    slow, score = table["slow"], np.clip(new.score, -6, 6)[..., None]
    slow += settled[..., None] * (score - slow) * (2 / (SCALES + 1))
    learnt = (new.rate * (settled & new.move))[..., None]
    table["long_run"] += learnt * (SCALES * np.square(slow) - table["long_run"])


def accept(table: Table, which: Array) -> None:
    """Where series `which` (B, S) lately were becomes their normal."""
    if not which.any():
        return
    level, square = table["lately"][which].T
    spare = np.maximum(square - level**2, 0)
    table["centre"][which] += level
    table["lagged"][which] -= level[:, None]
    table["second"][which] = np.maximum(table["second"][which], spare)
    table["total"][which] = np.maximum(table["total"][which], spare)
    table["lately"][which] = np.stack([np.zeros_like(level), spare], axis=-1)
    table["log_r"][which], table["held"][which], table["slow"][which] = -np.inf, 0, 0
    table["quiet"][which], table["age"][which] = 0, 0


def slopes(packed: Array, y: Array, ridge: Array) -> Array:
    """Solve symmetric 3 x 3 systems: (B, S, 3).

    packed   (B, S, 6): upper triangles; y (B, S, 3); ridge (B, S): added to the diagonals
    """
    a, b, c, d, e, f = np.moveaxis(packed / ridge[..., None], -1, 0).astype(np.float64)
    a, d, f = a + 1, d + 1, f + 1
    x, y, z = np.moveaxis(y / ridge[..., None], -1, 0).astype(np.float64)
    p, q, r = d * f - e * e, c * e - b * f, b * e - c * d
    s, t, u = a * f - c * c, b * c - a * e, a * d - b * b
    whole = np.maximum(a * p + b * q + c * r, 1e-9)
    found = [p * x + q * y + r * z, q * x + s * y + t * z, r * x + t * y + u * z]
    return np.asarray(np.stack(found, axis=-1) / whole[..., None])


def _learn_cycle(table: Table, new: Judged, ridge: Array) -> None:
    young = new.windows <= 30
    bound = np.where(young, np.inf, 4 * new.sd * new.width) + np.abs(new.residual - new.error)
    kept = np.where(new.move, np.clip(new.residual, -bound, bound), 0)
    table["beta"] += kept[..., None] * (new.gain / (1 + new.leverage))[:, None, :]
    keep = (1 - np.minimum(new.window_s / (MEMORY_DAYS * 86_400), 1))[..., None]
    gram = keep * table["gram"] + new.g[:, :, None] * new.g[:, None, :] + (1 - keep) * ridge
    told = np.any(new.known, axis=1, keepdims=True)[..., None]
    table["gram"] = np.where(told, gram, table["gram"])


def _learn_spread(table: Table, new: Judged) -> None:
    """Variance and kurtosis; what happens under suspicion waits until it has fallen."""
    young, usual = new.windows <= 30, np.square(new.sd)
    ratio = np.maximum(table["total"] / np.maximum(table["second"], 1e-30), 1)
    error2, residual2 = np.square(new.error / new.width), np.square(new.residual)
    error2 = np.where(young, error2, np.minimum(error2, 16 * usual))
    residual2 = np.where(young, residual2, np.minimum(residual2, 16 * usual * ratio))
    z2 = np.square(np.clip(new.z, -12, 12))
    settled = new.windows > SETTLE
    z2, z4 = np.where(settled, z2, 1), np.where(settled, z2 * z2, 3)
    held = table["held"]
    room = (held[..., 4] < LONGEST) & new.move
    held += room[..., None] * np.stack([error2, z2, z4, residual2, np.ones_like(z2)], axis=-1)
    due = new.move & new.calm
    n = held[..., 4]
    gained = np.where(due, np.minimum(new.rate * n, 1), 0)
    for i, name in enumerate(("second", "second_z", "fourth", "total")):
        table[name] += gained * (held[..., i] / np.maximum(n, 1) - table[name])
    table["held"] = np.where(due[..., None], 0, held)


def _learn_persistence(table: Table, new: Judged) -> None:
    lagged = table["lagged"]
    most = 4 * np.sqrt(np.maximum(table["total"], np.square(new.sd)))
    most = np.where(new.windows <= 30, np.inf, most)  # one jump teaches no persistence
    r = np.clip(new.residual, -most, most)[..., None]
    a, b, c = np.moveaxis(lagged, -1, 0)
    squares = np.stack([a * a, a * b, a * c, b * b, b * c, c * c], axis=-1)
    hold, moved = (1 - new.rate)[..., None], (new.move & new.calm & ~new.late)[..., None]
    table["har"] = np.where(moved, hold * table["har"] + squares, table["har"])
    table["har_y"] = np.where(moved, hold * table["har_y"] + lagged * r, table["har_y"])
    known = (new.known & ~new.late)[..., None]
    lagged += known * (r - lagged) * (2 / (np.array(LAGS) + 1.0))
