"""A change in one channel as words that a person can act on."""

import numpy as np

from shoal.controller.monitoring import channels

#: Name of the series of rows among a subject's features.
ROWS = "(rows)"


def in_words(channel: str, change: float, expected: float | None, rows: float) -> str:
    """What a change says.

    channel    one of channels.NAMES, or channels.ROWS
    change     from the forecast, and expected: the forecast, both in the channel's unit; None:
               it is not known, as for several devices together
    rows       rows in the window

    >>> in_words("mean", -0.52, 0.0, 60)
    'mean down by 0.52 sd'
    >>> in_words("rows", -0.916, 0.0, 24)
    'rows at 40 % of the usual number'
    """
    up = change > 0
    if channel == "mean":
        return f"mean {'up' if up else 'down'} by {abs(change):.2g} sd"
    if channel == "spread":
        return _spread(change, expected)
    if channel in ("missing", "rare"):
        if expected is None:
            more = "more" if up else "fewer"
            return f"{more} rows {'missing' if channel == 'missing' else 'with values never seen'}"
        then, now = (channels.share_of(v, rows) for v in (expected, expected + change))
        what = "rows missing" if channel == "missing" else "rows with values never seen before"
        return f"{_percent(now)} of {what}, {_percent(then)} before"
    if channel == channels.ROWS:
        return f"rows at {100 * np.exp(min(change, 10.0)):.0f} % of the usual number"
    return {
        "rank1": "values higher in their range" if up else "values lower in their range",
        "rank2": "more values at both ends" if up else "more values in the middle",
        "rank3": "the shape of the distribution changed",
    }[channel]


def _spread(change: float, expected: float | None) -> str:
    floor = channels.SPREAD_FLOOR
    expected = np.log1p(floor) if expected is None else expected
    then, now = (max(float(np.exp(v)) - floor, 0.0) for v in (expected, expected + change))
    if now <= 1e-3 * then:
        return "stuck: the values do not vary any more"
    return f"spread {np.sqrt(now / max(then, 1e-3)):.2g} times the usual"


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %"
