"""What is usual for a subject, read from its state, in the units of its features."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from shoal.controller.monitoring import channels, season
from shoal.controller.monitoring.channels import MEAN, MISSING, RARE, SPREAD
from shoal.controller.monitoring.drift_state import State, Table

F64 = npt.NDArray[np.float64]
#: A Monday, 00:00: the hours of a day of work.
_MONDAY = 4 * season.DAY_S
_HOURS: F64 = _MONDAY + 3_600.0 * np.arange(24, dtype=np.float64)


class Usual(NamedTuple):
    """Usual values of F features, each (F,), NaN where nothing is known; a site has none.

    mean, sd       of the rows, on the mean over a day
    swing          how far the mean moves up and down over a day of work
    missing, rare  shares of rows without a value, and with values never seen at first
    rows           a window: one number
    """

    mean: F64
    sd: F64
    swing: F64
    missing: F64
    rare: F64
    rows: float


def usual(state: State, window_s: float) -> Usual | None:
    """What is usual by a device's state; None of a site, whose series have no unit."""
    features = state.layout.features
    if not features:
        return None
    table = Table([state])
    g = season.regressors(_HOURS, (), state.layout.cycle)
    centre = table["centre"][0].astype(np.float64)
    by_hour = centre + g @ table["beta"][0].T.astype(np.float64)
    level = by_hour.mean(0)
    of_mean = by_hour[:, MEAN : -1 : channels.CHANNELS]
    rows = float(np.exp(np.clip(level[-1], -50, 50)) * window_s)
    of = level[:-1].reshape(features, channels.CHANNELS)
    unit = table.unit[0]
    with np.errstate(over="ignore", invalid="ignore"):
        variance = np.maximum(np.exp(of[:, SPREAD]) - channels.SPREAD_FLOOR, 0)
        sd = unit * np.sqrt(variance)
        mean = table.centre_of_rows[0] + unit * of[:, MEAN]
    known = max(rows, 1.0) if np.isfinite(rows) else 1.0
    return Usual(
        mean,
        sd,
        unit * (of_mean.max(0) - of_mean.min(0)),
        np.array([_share(one, known) for one in of[:, MISSING]]),
        np.array([_share(one, known) for one in of[:, RARE]]),
        rows,
    )


def _share(angle: float, rows: float) -> float:
    return channels.share_of(float(angle), rows) if np.isfinite(angle) else float("nan")
