"""What a person can do to a baseline: learn it anew, or take what lately was as the normal.

A site's series are sums of its devices' surprises, and near 0 where nothing changes: once the
devices' own levels are accepted, a site has no level of its own to move to, and begins at 0.
"""

from collections.abc import Collection

import numpy as np
import numpy.typing as npt

from shoal.controller.monitoring import channels, drift_state, learning
from shoal.controller.monitoring.drift_state import State, Table

BOOL = npt.NDArray[np.bool_]
#: Arrays of a series that a site begins anew with.
_OF_SERIES = (
    "centre", "beta", "lagged", "har", "har_y", "second", "total", "second_z", "fourth", "held",
    "slow", "long_run", "log_r", "peak", "quiet", "age", "lately",
)  # fmt: skip


def reset(state: State, position: float) -> State:
    """A subject of which nothing is known, from the window after `position` on."""
    return drift_state.empty(state.layout, max(position, state.position))


def accept(state: State, features: Collection[int] | None = None) -> State:
    """The state after a person said that where it lately was is its normal.

    features   indices, the last one for the rows; None: all. Their alarms end.
    """
    table = Table([state])
    which = series_of(state, features)[None]
    if state.layout.features:
        _take_newest(table, which & (table["quiet"] == 0))
        learning.accept(table, which)
    else:
        fresh = Table([drift_state.empty(state.layout)])
        for name in _OF_SERIES:
            table[name][which] = fresh[name][which]
    table["quiet"], table["age"] = (np.where(which, 0, table[n]) for n in ("quiet", "age"))
    return table.states()[0]


def _take_newest(table: Table, which: BOOL) -> None:
    """Let the newest few windows say where series `which` (1, S) are. In alarm they are where they
    have been since; of others the recent windows may be from before the change."""
    level = table["lagged"][which][:, 1]
    square = np.square(level) + table["second"][which]
    table["lately"][which] = np.stack([level, square], axis=-1)


def in_alarm(state: State) -> list[int]:
    """Indices of the features in alarm, the last one for the rows."""
    alarmed = np.flatnonzero(Table([state])["quiet"][0] > 0)
    return sorted({int(i) // channels.CHANNELS for i in alarmed})


def series_of(state: State, features: Collection[int] | None) -> BOOL:
    """(S,): series of these features; of all for None."""
    series = state.layout.series
    group = np.arange(series) // channels.CHANNELS
    return np.ones(series, bool) if features is None else np.isin(group, list(features))
