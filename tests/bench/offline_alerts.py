"""False offline alerts and the delay of true ones, for fleets that are silent in many ways.

Each device is observed for `days` of training and then for `judged` days, in which nothing fails:
every time it is overdue is a false alert. Then it fails at a random time of its usual hours, and
the delay is how long it takes until it is overdue.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from shoal.controller.conditions.rhythm import DAY_S, HOUR_S, Limits, Rhythm

Gaps = Callable[[np.random.Generator, float], list[tuple[float, float]]]
LEAST_S, MOST_S = 300.0, 7 * DAY_S


class Result(NamedTuple):
    """false_per_day of a fleet of `devices`; delays in hours: median and 90 %."""

    name: str
    devices: int
    false_per_day: float
    delay_h: float
    delay_90_h: float


def steady(rng: np.random.Generator, days: float) -> list[tuple[float, float]]:
    """A restart of some minutes every third day."""
    at = np.sort(rng.uniform(0, days, rng.poisson(days / 3))) * DAY_S
    return [(a, a + s) for a, s in zip(at, rng.uniform(120, 600, len(at)), strict=True)]


def heavy_tailed(rng: np.random.Generator, days: float) -> list[tuple[float, float]]:
    """A weak radio: ten gaps a day, Pareto with exponent 1.5 from 2 minutes on."""
    at = np.sort(rng.uniform(0, days, rng.poisson(10 * days))) * DAY_S
    return [(a, a + s) for a, s in zip(at, 120 * (1 + rng.pareto(1.5, len(at))), strict=True)]


def duty_cycled(rng: np.random.Generator, days: float) -> list[tuple[float, float]]:
    """Wakes every six hours, give or take ten minutes, for a minute; misses one wake in fifty."""
    gaps, at = [], rng.uniform(0, 6 * HOUR_S)
    while at < days * DAY_S:
        wakes = 1 + (rng.random() < 0.02)
        end = at + wakes * 6 * HOUR_S + rng.normal(0, 600)
        gaps.append((at, end))
        at = end + 60
    return gaps


def shop(rng: np.random.Generator, days: float, holidays: float = 0.0) -> list[tuple[float, float]]:
    """Open from 8 to 18 h, give or take twenty minutes, closed on Sundays."""
    gaps, last = [], 0.0
    for day in range(int(days)):
        if day % 7 == 6 or rng.random() < holidays:
            continue
        opens = (day * 24 + 8) * HOUR_S + rng.normal(0, 1200)
        gaps.append((last, opens))
        last = (day * 24 + 18) * HOUR_S + rng.normal(0, 1200)
    return gaps


def shop_with_holidays(rng: np.random.Generator, days: float) -> list[tuple[float, float]]:
    """A shop that is closed on one more day of sixty, which nobody announces."""
    return shop(rng, days, 1 / 60)


FLEETS: dict[str, Gaps] = {
    "steady": steady, "heavy-tailed": heavy_tailed, "duty-cycled": duty_cycled, "shop": shop,
    "shop with holidays": shop_with_holidays,
}  # fmt: skip


def simulate(
    name: str, *, devices: int, days: float = 28, judged: float = 28, seed: int = 1, fleet: int = 0
) -> Result:
    """Simulate `devices` of a fleet of `fleet` (0: as many)."""
    rng = np.random.default_rng(seed)
    rate = 1.0 / (fleet or devices)
    limits = Limits(LEAST_S, MOST_S, rate, LEAST_S / 2)
    false, delays = 0, []
    for _ in range(devices):
        rhythm = Rhythm.new(0.0)
        for start, end in FLEETS[name](rng, days + judged):
            if end - start < limits.noted_s:
                continue
            false += start > days * DAY_S and rhythm.due(start, limits) < end
            rhythm.gap(max(start, rhythm.until_s), end, limits.noted_s)
        fails = rhythm.until_s + rng.uniform(0, 4) * HOUR_S if "shop" in name else rhythm.until_s
        rhythm.spoke(fails)
        delays.append((rhythm.due(fails, limits) - fails) / HOUR_S)
    scale = (fleet or devices) / devices
    median, most = np.quantile(delays, [0.5, 0.9])
    return Result(name, fleet or devices, float(false * scale / judged), float(median), float(most))


def main() -> None:
    for name in FLEETS:
        for fleet in (100, 10_000):
            print(simulate(name, devices=100, fleet=fleet))


if __name__ == "__main__":
    main()
