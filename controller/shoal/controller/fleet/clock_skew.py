"""Devices' clocks beside the controller's: when a window really began, and what to say of them.

A device whose clock is wrong goes on measuring; its windows are kept, at the time that can best
be said: put right by the difference that the device itself has measured, else at their arrival
when they claim to come from the future or from another age. Such a window is not sure of its
bucket, and is left out of its site's.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from shoal.controller.alerts.text import Draft
from shoal.wire import WindowReport

#: A device's clock is believed this far from ours; else the time of arrival stands in.
SANE_S = 400 * 86_400
_NAMED = 4


class Began(NamedTuple):
    """When a window began by the controller's clock, Unix seconds; whether that is sure."""

    at: float
    sure: bool


class Clock(NamedTuple):
    """A device's clock: `skew_s` ahead, give or take `error_s`."""

    device: str
    skew_s: float
    error_s: float


def place(report: WindowReport, now: float, limit_s: float) -> Began:
    """When a window that arrived at `now` began. limit_s: how far ahead a clock may be."""
    sure, at = report.health.clock_synced, report.window_start_s
    if not sure and isinstance(report.health.clock, msgspec.Struct):
        at -= report.health.clock.skew_s
    if not now - SANE_S < at <= now + limit_s:
        return Began(max(0.0, now - report.window_s), False)
    return Began(min(at, now) if not sure else at, sure)


def columns(facts: Mapping[str, Any]) -> dict[str, float]:
    """What an inventory's facts say of the clock, as columns; none where they say nothing."""
    said = {name: facts.get(name) for name in ("clock_skew_s", "clock_error_s")}
    numbers = {k: float(v) for k, v in said.items() if isinstance(v, int | float)}
    fit = len(numbers) == 2 and all(abs(v) < 2**33 for v in numbers.values())
    return numbers if fit and numbers["clock_error_s"] >= 0 else {}


def is_off(clock: Clock, limit_s: float) -> bool:
    """Whether it is off by more than `limit_s` beyond doubt.

    >>> is_off(Clock("cam-1", -93.0, 0.2), 30.0), is_off(Clock("cam-1", 31.0, 2.0), 30.0)
    (True, False)
    """
    return clock.error_s >= 0 and abs(clock.skew_s) - clock.error_s > limit_s


def key(site: str) -> str:
    """Key of the alert of a site's clocks."""
    return f"clock/{site}"


def draft(site: str, off: Sequence[Clock], of: int, limit_s: float) -> Draft:
    """Alert of the clocks of a site that are off; `of` devices there have told of theirs."""
    worst = sorted(off, key=lambda one: (-abs(one.skew_s), one.device))
    named = ", ".join(f"{one.device} by {_words(one.skew_s)}" for one in worst[:_NAMED])
    more = f" and {len(off) - _NAMED} more" if len(off) > _NAMED else ""
    everybody = len(off) == of > 1
    return Draft(
        key=key(site),
        kind="device",
        severity="warning",
        title=f"Clocks at {site or 'no site'} are wrong",
        detail=(
            f"{len(off)} of {of} devices are off by more than {limit_s:g} s: {named}{more}. Their "
            "windows are put right as far as that can be, and count for themselves, not for "
            "their site."
        ),
        next_step=(
            "All of them say so: look at this controller's own clock first (timedatectl)"
            if everybody
            else "Enable time synchronisation on the device (timedatectl set-ntp true), or set it"
        ),
        site=site,
    )


def clock_words(skew_s: float, error_s: float) -> str:
    """A device's clock, for a person.

    >>> clock_words(0.2, 0.3), clock_words(-93.4, 0.1)
    ('right to 0.5 s', '-93 s from the controller')
    """
    if abs(skew_s) <= max(1.0, error_s):
        return f"right to {abs(skew_s) + error_s:.1f} s"
    return f"{_words(skew_s)} from the controller"


def _words(skew_s: float) -> str:
    """
    >>> _words(93.4), _words(-7200.0), _words(-172800.0)
    ('+93 s', '-2 h', '-2 d')
    """
    size, unit = next(
        (size, unit)
        for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s"))
        if abs(skew_s) >= 2 * size or size == 1
    )
    return f"{math.copysign(round(abs(skew_s) / size), skew_s):+.0f} {unit}"
