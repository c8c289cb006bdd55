"""How a subject's windows are read: bins, centre and unit of its features, from its first windows.

The unit is the sd of all rows of the first windows. A few wild values there (two cells of 1e18)
make it so large that no mean and no spread would ever move again. They cannot be told from the few
rows that usually carry a feature, as in scores of a sure model, by these windows alone: so the unit
is kept, and taken anew once as many windows as BLIND have shown none like them.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from shoal.controller.monitoring import channels
from shoal.controller.monitoring.channels import MEAN, SPREAD, Windows
from shoal.controller.monitoring.drift_state import SEEN, Table, empty

Array = npt.NDArray[Any]
BOOL = npt.NDArray[np.bool_]

#: Windows in a row of an sd below NARROW units after which a unit that wild values made is wrong.
BLIND, NARROW = 24, 1 / 30
#: A value makes a window's variance where it carries so much of it; a window the unit, where it has
#: so much of the squares of all.
OF_WINDOW, OF_ALL = 0.2, 0.5
#: `counted` of a feature after its first windows: its unit is right; it is in doubt, less one for
#: each narrow window since.
RIGHT, DOUBT = 1.0, -1.0

#: Arrays of a series that begin anew with a unit.
_ANEW = (
    "centre", "beta", "lagged", "har", "har_y", "second", "total", "second_z", "fourth", "held",
    "slow", "long_run", "log_r", "peak", "lately",
)  # fmt: skip


def add(table: Table, windows: Windows, training: Array, lens: int, new: Array) -> None:
    """Add the windows of subjects `new` to what tells how others are read; close it after `lens`.

    Until then `unit` holds the sum of squares, and `rare_up_to` the largest one of a window that
    few rows make.
    """
    one = windows.take(new)
    beyond = np.where(training > 0, 0, one.counts)
    strange = beyond.sum(-1)
    few = (strange > 0) & (strange <= np.maximum(channels.FEW * one.n, 1))  # no usual rows
    known = np.isfinite(one.mean) & np.isfinite(one.m2) & (one.n > 0) & ~few
    n, mean = np.where(known, one.n, 0), np.where(known, one.mean, 0)
    old, centre, m2 = table["counted"][new], table.centre_of_rows[new], table.unit[new]
    centre, m2 = np.nan_to_num(centre), np.nan_to_num(m2)
    total = old + n
    share = n / np.maximum(total, 1)
    off = mean - centre
    centre = centre + off * share
    m2 = m2 + np.where(known, one.m2, 0) + off * off * old * share
    wild = np.maximum(table["rare_up_to"][new], np.where(known & _wild(one), one.m2, 0))
    table["rare_up_to"][new] = np.minimum(wild, np.finfo(np.float32).max)
    table["counted"][new] = total
    table["own"][new] += one.counts - np.where(few[..., None], beyond, 0)
    last = table.clock[new, SEEN] + 1 >= lens
    sd = np.sqrt(m2 / np.maximum(total - 1, 1))
    unit = np.where(_varies(sd, centre), sd, np.nan)
    table.centre_of_rows[new] = np.where(total > 0, centre, np.nan)
    table.unit[new] = np.where(total > 0, np.where(last[:, None], unit, m2), np.nan)
    done, doubt = new[last], wild[last] >= np.minimum(OF_ALL * m2[last], np.finfo(np.float32).max)
    own = channels.shares(table["own"][done])
    table["own"][done] = own
    table["counted"][done] = np.where(doubt & (m2[last] > 0), DOUBT, RIGHT)
    table["rare_up_to"][done] = channels.rare_up_to(training, own)


def mend_units(table: Table, windows: Windows, which: Array) -> None:
    """Take centre and unit of some features of subjects `which` (B,) from this window: of one that
    did not vary yet, or had no value; and of one whose unit wild values made.

    Until then ranks, missing and rare rows tell of it.
    """
    known = which[:, None] & np.isfinite(windows.m2) & (windows.n > 1)
    sd = np.sqrt(np.where(known, windows.m2, 0) / np.maximum(windows.n - 1, 1))
    known &= _varies(sd, windows.mean)
    late = known & np.isnan(table.unit)
    doubt = known & (table["counted"] < 0)
    if not late.any() and not doubt.any():
        return
    with np.errstate(invalid="ignore"):
        narrow = doubt & (sd < NARROW * table.unit)
    table["counted"] -= narrow
    wide = doubt & ~narrow
    table["counted"][wide] = np.where(_wild(windows), DOUBT, RIGHT)[wide]
    blind = table["counted"] <= DOUBT - BLIND
    table["counted"][blind] = RIGHT
    table["counted"][late] = np.where(_wild(windows), DOUBT, RIGHT)[late]
    table.unit[late | blind], table.centre_of_rows[late | blind] = (
        sd[late | blind], windows.mean[late | blind],
    )  # fmt: skip
    if blind.any():
        _begin_anew(table, blind)


def _begin_anew(table: Table, features: BOOL) -> None:
    """Forget what mean and spread of `features` (B, F) were in the unit before."""
    fresh = Table([empty(table.layout)])
    for channel in (MEAN, SPREAD):
        series = np.zeros((len(features), table.layout.series), bool)
        series[:, channel : -1 : channels.CHANNELS] = features
        for name in _ANEW:
            table[name][series] = np.broadcast_to(fresh[name], table[name].shape)[series]


def _wild(windows: Windows) -> BOOL:
    """(B, F): one value carries much of a window's variance."""
    with np.errstate(invalid="ignore", over="ignore"):
        low, high = np.abs(windows.low - windows.mean), np.abs(windows.high - windows.mean)
        reach = np.square(np.maximum(low, high))
        return np.asarray((windows.m2 > 0) & (reach >= OF_WINDOW * windows.m2))


def _varies(sd: Array, centre: Array) -> BOOL:
    """Whether an sd is more than what float32 cannot tell from none."""
    return np.asarray(sd > np.maximum(1e-6 * np.abs(centre), 1e-30))
