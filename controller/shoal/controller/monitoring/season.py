"""Phase of the day: regressors of a daily cycle, and the hour that says what was seen before.

Times here are seconds of the site's own clock (local time as if it were UTC), so daylight saving
and days of rest are where people see them. Monday is day 0; 1970-01-01 was a Thursday.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]

DAY_S = 86_400.0
HARMONICS = 3
#: Half hours in a day, and hours of a day of work and of one of rest.
HALVES, HOURS = 48, 48
#: Prior precision of the first harmonic, in units of the forecast's error variance: the k-th has
#: k**4 times as much (smooth days). And of a level, which is almost unknown.
RIDGE, FLAT = 1e-3, 1e-6
_THURSDAY = 3


def size(cycle: bool) -> int:
    """Number of regressors: 14 with a daily cycle, 1 without."""
    return 2 * (1 + 2 * HARMONICS) if cycle else 1


def regressors(local: F64, rest_days: Sequence[int], cycle: bool) -> F64:
    """Regressors (B, p) at times (B,): level and harmonics of the day, and both again on days of
    rest.

    >>> regressors(np.array([0.0]), (5, 6), True)[0, :4]
    array([1., 1., 1., 1.])
    """
    if not cycle:
        return np.ones((len(local), 1))
    angle = 2 * np.pi * (local[:, None] % DAY_S) / DAY_S * np.arange(1, HARMONICS + 1)
    day = np.concatenate([np.ones((len(local), 1)), np.cos(angle), np.sin(angle)], axis=1)
    return np.concatenate([day, day * resting(local, rest_days)[:, None]], axis=1)


def ridge(cycle: bool) -> F64:
    """Prior precision (p, p) of the regressors' coefficients."""
    if not cycle:
        return np.array([[FLAT]])
    smooth = RIDGE * np.tile(np.arange(1.0, HARMONICS + 1) ** 4, 2)
    return np.diag([FLAT, *smooth, RIDGE, *smooth])


def resting(local: F64, rest_days: Sequence[int]) -> npt.NDArray[np.bool_]:
    """Whether each time is on a day of rest.

    >>> resting(np.array([0.0, 2 * DAY_S]), (5, 6)).tolist()
    [False, True]
    """
    weekday = (np.floor(local / DAY_S).astype(np.int64) + _THURSDAY) % 7
    return np.isin(weekday, np.asarray(tuple(rest_days), np.int64))


def hour_of(local: F64, rest_days: Sequence[int]) -> I64:
    """Hour of the day, 0-23, of a day of rest 24-47."""
    hour = (local % DAY_S // 3_600).astype(np.int64)
    return hour + 24 * resting(local, rest_days)


def half_of(local: F64) -> I64:
    """Half hour of the day, 0-47."""
    return (local % DAY_S // 1_800).astype(np.int64)


def day_of(local: F64) -> F64:
    """Number of the local day."""
    return np.asarray(np.floor(local / DAY_S), np.float64)
