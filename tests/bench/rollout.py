"""Behaviour gates on simulated fleets: releases stopped that are no worse, and bad ones missed.

A window is 15 minutes, a device makes 100 calls in it, 1 % fail; 72 h of past, 12 h with the
release. Nulls: identical devices; rates that differ by a coefficient of variation of 0.5 and by the
time of day; the same with bursts (CV 1 by window); the same with drifts (AR(0.95), CV 0.5).
Control: nine devices a canary, at most 400. Beside ours, each looking at every window at 1 %: a z
test on all rows, a mixture SPRT on all rows, and a fixed threshold (half as frequent again as
control, after 100 rows).
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from bench.report import Aim, Found, Row
from shoal.controller.rollouts import behaviour
from shoal.controller.rollouts.behaviour import Hourly
from shoal.controller.rollouts.behaviour_records import Counts, Panel

F64 = npt.NDArray[np.float64]
CALLS, RATE, PAST, NOW, AN_HOUR = 100, 0.01, 288, 48, 4
NULLS = ("identical", "CV 0.5", "bursty", "AR(0.95)")
CANARIES, RATIOS = (5, 50, 500), (1.0, 1.25, 1.5, 2.0)
TOLERANCE, ACCEPTABLE = 1.25, 0.001
Z_AT_1_PCT = 2.3263
NOTES = {"0.1 % of releases stopped within 4 windows": "none were; a ratio needs a number"}
Times = tuple[int, int]


class Fleet(NamedTuple):
    """Failed calls of D devices by window, canaries first: past (D, PAST), now (D, NOW)."""

    canaries: int
    past: F64
    now: F64


def run(*, quick: bool) -> Found:
    """Every null, number of canaries and ratio; quick: one small corner."""
    nulls, sizes = (NULLS[1:3], (50,)) if quick else (NULLS, CANARIES)
    repetitions, of_bad = (4, 2) if quick else (100, 25)
    cases = [(null, size, ratio) for null in nulls for size in sizes for ratio in RATIOS]
    table = []
    for number, (null, size, ratio) in enumerate(cases):
        rng = np.random.default_rng(number)
        times = repetitions if ratio == 1 else of_bad
        fleets = [simulate(rng, null, ratio, size) for _ in range(times)]
        for name, gate in GATES.items():
            table.append(_row(null, size, ratio, name, [gate(one) for one in fleets]))
    return Found(rows=_rows(table), notes=NOTES, tables={"gates": table})


def simulate(rng: np.random.Generator, null: str, ratio: float, canaries: int) -> Fleet:
    """A fleet whose canaries fail `ratio` times as often with the release."""
    devices, windows = canaries + min(9 * canaries, 400), PAST + NOW
    rate = np.full((devices, windows), RATE)
    if null != "identical":
        rate *= rng.gamma(4.0, 0.25, (devices, 1))
        rate *= 1 + 0.3 * np.sin(2 * np.pi * np.arange(windows) / (24 * AN_HOUR))
    if null == "bursty":
        rate *= rng.gamma(1.0, 1.0, (devices, windows))
    if null == "AR(0.95)":
        rate *= _drift(rng, devices, windows)
    rate[:canaries, PAST:] *= ratio
    events = rng.binomial(CALLS, np.minimum(rate, 1.0)).astype(float)
    return Fleet(canaries, events[:, :PAST], events[:, PAST:])


def ours(fleet: Fleet) -> Times:
    """Window at which the gate stops, and at which it lets through; 0 for never."""
    devices = len(fleet.past)
    past = fleet.past.reshape(devices, -1, AN_HOUR).sum(2).astype(int)
    counts = Counts(trials=[CALLS * AN_HOUR] * past.size, events=past.ravel().tolist())
    panel = Panel(
        release="", canary=["c"] * fleet.canaries, control=["o"] * (devices - fleet.canaries),
        first_hour=0, hours=past.shape[1], slow_bin=[], past={"errors": counts},
    )  # fmt: skip
    reference = behaviour.reference(panel, "errors", ACCEPTABLE)
    margin = math.exp(behaviour.MARGIN * reference.error)
    expected, sides = reference.rate * CALLS, (slice(fleet.canaries), slice(fleet.canaries, None))
    stops = passes = 0
    for t in range(1, NOW + 1):
        starts = np.arange(0, t, AN_HOUR)
        windows = np.diff([*starts, t])
        events = [np.add.reduceat(fleet.now[side, :t].sum(0), starts) for side in sides]
        hourly = Hourly(*events, *(expected[side].sum() * windows for side in sides))
        worse = behaviour.ln_e(hourly, TOLERANCE * margin, reference.phi, above=True)
        safe = behaviour.ln_e(hourly, TOLERANCE / margin, reference.phi, above=False)
        stops = stops or t * (worse >= math.log(1 / behaviour.ALPHA))
        passes = passes or t * (safe >= math.log(1 / behaviour.ALPHA_SAFE))
        if stops or passes:
            break
    return stops, 0 if stops else passes


def naive_z(fleet: Fleet) -> Times:
    """One-sided z test of two shares over all rows, at every window."""
    z, _ = _z(fleet)
    return _first(z > Z_AT_1_PCT), 0


def sprt(fleet: Fleet) -> Times:
    """Mixture SPRT on all rows (Johari et al., 2017), half normal with sd of half the rate."""
    z, variance = _z(fleet)
    tau = (0.5 * RATE) ** 2
    ln_e = 0.5 * np.log(variance / (variance + tau)) + z**2 * tau / (2 * (variance + tau))
    return _first((ln_e + math.log(2) >= math.log(1 / behaviour.ALPHA)) & (z > 0)), 0


def fixed_threshold(fleet: Fleet) -> Times:
    """Stop when the canaries' rate is half as high again as control's, after 100 rows."""
    canary, control = _rates(fleet)
    rows = np.arange(1, NOW + 1) * CALLS * fleet.canaries
    return _first((canary > 1.5 * control) & (rows >= 100)), 0


GATES: dict[str, Callable[[Fleet], Times]] = {
    "ours": ours,
    "z on rows": naive_z,
    "mSPRT on rows": sprt,
    "fixed 1.5": fixed_threshold,
}


def _drift(rng: np.random.Generator, devices: int, windows: int) -> F64:
    noise = rng.standard_normal((devices, windows))
    for t in range(1, windows):
        noise[:, t] = 0.95 * noise[:, t - 1] + math.sqrt(1 - 0.95**2) * noise[:, t]
    sd = math.sqrt(math.log(1.25))
    drift: F64 = np.exp(sd * noise - sd * sd / 2)
    return drift


def _rates(fleet: Fleet) -> tuple[F64, F64]:
    rows = np.arange(1, NOW + 1) * CALLS
    canary, control = fleet.now[: fleet.canaries], fleet.now[fleet.canaries :]
    return (
        canary.sum(0).cumsum() / (rows * len(canary)),
        control.sum(0).cumsum() / (rows * len(control)),
    )


def _z(fleet: Fleet) -> tuple[F64, F64]:
    """z and variance of the difference of shares, at every window."""
    canary, control = _rates(fleet)
    rows = np.arange(1, NOW + 1) * CALLS
    ours, others = rows * fleet.canaries, rows * (len(fleet.now) - fleet.canaries)
    both = (canary * ours + control * others) / (ours + others)
    variance = np.maximum(both * (1 - both) * (1 / ours + 1 / others), 1e-18)
    return (canary - control) / np.sqrt(variance), variance


def _first(crossed: npt.NDArray[np.bool_]) -> int:
    return int(np.argmax(crossed)) + 1 if crossed.any() else 0


def _row(null: str, size: int, ratio: float, gate: str, found: list[Times]) -> dict[str, Any]:
    stops = [stop for stop, _ in found if stop]
    passes = [through for _, through in found if through]
    return {
        "null": null, "canaries": size, "ratio": ratio, "gate": gate, "fleets": len(found),
        "stopped_pct": round(100 * len(stops) / len(found), 1),
        "within_4_pct": round(100 * sum(stop <= 4 for stop in stops) / len(found), 1),
        "windows_to_stop": float(np.median(stops)) if stops else None,
        "passed_pct": round(100 * len(passes) / len(found), 1),
        "windows_to_pass": float(np.median(passes)) if passes else None,
    }  # fmt: skip


def _rows(table: list[dict[str, Any]]) -> list[Row]:
    """Good releases that are not stopped, and bad ones that are within four windows, beside z."""
    rows = []
    for ratio, column, what, aim in (
        (1.0, "stopped_pct", "good releases not stopped", Aim(at_least=99.0)),
        (2.0, "within_4_pct", "twice as bad, stopped within 4 windows", Aim(at_least=50.0)),
    ):
        for mine in table:
            if (mine["gate"], mine["ratio"]) != ("ours", ratio):
                continue
            key = [mine[name] for name in ("null", "canaries", "ratio")]
            z = next(
                one
                for one in table
                if one["gate"] == "z on rows"
                and [one[name] for name in ("null", "canaries", "ratio")] == key
            )
            ours, raw = (
                max(100 - one[column] if ratio == 1 else one[column], 0.1) for one in (mine, z)
            )
            rows.append(
                Row(
                    what=f"{what}, {mine['null']}, {mine['canaries']} canaries", unit="%",
                    ours=ours, against="z test on rows", raw=raw, ratio=ours / raw,
                    over=ours - raw, aim=aim.text("%"), held=aim.holds(ours),
                )
            )  # fmt: skip
    return rows
