"""Clock skew of devices: the start of a window by the controller's clock.

A device with a wrong clock keeps measuring and its windows are kept. The start of a window is
corrected by the skew that the device measured; a window that claims to come from the future or
from years ago is placed at its arrival. The time bucket of such a window is uncertain, so it is
left out of its site's.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from shoal.controller.conditions.clocks import offset
from shoal.wire import WindowReport

#: Largest plausible difference between a device's time and ours, seconds; beyond it, the time of
#: arrival is used.
PLAUSIBLE_S = 400 * 86_400


class WindowStart(NamedTuple):
    """Start of a window by the controller's clock, Unix seconds. synced: the time is certain."""

    at: float
    synced: bool


def window_start(report: WindowReport, now: float, limit_s: float) -> WindowStart:
    """Start of a window that arrived at `now`. limit_s: how far ahead a clock may be."""
    synced, at = report.health.clock_synced, report.window_start_s
    if not synced and isinstance(report.health.clock, msgspec.Struct):
        at -= report.health.clock.skew_s
    if not now - PLAUSIBLE_S < at <= now + limit_s:
        return WindowStart(max(0.0, now - report.window_s), False)
    return WindowStart(min(at, now) if not synced else at, synced)


def skew_columns(facts: Mapping[str, Any]) -> dict[str, float]:
    """Device columns for the clock in an inventory's facts; empty when absent or implausible."""
    given = {name: facts.get(name) for name in ("clock_skew_s", "clock_error_s")}
    numbers = {k: float(v) for k, v in given.items() if isinstance(v, int | float)}
    complete = len(numbers) == 2 and all(abs(v) < 2**33 for v in numbers.values())
    return numbers if complete and numbers["clock_error_s"] >= 0 else {}


def describe_clock(skew_s: float, error_s: float) -> str:
    """Text for a device's clock.

    >>> describe_clock(0.2, 0.3), describe_clock(-93.4, 0.1)
    ('right to 0.5 s', '-93 s from the controller')
    """
    if abs(skew_s) <= max(1.0, error_s):
        return f"right to {abs(skew_s) + error_s:.1f} s"
    return f"{offset(skew_s)} from the controller"
