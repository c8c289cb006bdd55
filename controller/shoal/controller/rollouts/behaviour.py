"""Behaviour gates: whether the devices with a new release do worse than those without.

Each device is compared with its own past, and the canaries with the devices that serve another
release in the same hours: what happens to all of them (a busy hour, a bad batch) cancels.

    rate_i = (events_i + 2) / (trials_i + 2/m)       own past, shrunk to the panel's mean rate m
    E      = sum of rate_i * trials of an hour       expected events: c canaries, 0 control
    theta  = r*E_c / (r*E_c + E_0)                   share of canaries in an hour's events, ratio r
    ln e   = ln sum_j w_j exp(1/phi sum_h ln Bin(x_h; n_h, theta_h(r_j)) / Bin(.; theta_h(rho)))

e is a test martingale under "the ratio is at most rho" if all r_j > rho, and under "at least rho"
if all r_j < rho: it may be looked at as often as one likes (Ramdas et al., Game-theoretic
statistics and safe anytime-valid inference, 2023; Ville's inequality). Mixing over r instead of
theta keeps that when devices come and go and theta changes from hour to hour. phi is the largest
Pearson dispersion of the past over blocks of hours (McCullagh and Nelder, Generalized Linear
Models, 1989, section 4.5): bursts and drifts of single devices make it large. A short past is
uncertain: rho moves by its standard error, up to call a release worse and down to call it safe.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from shoal.controller.rollouts.behaviour_records import (
    METRICS,
    BehaviourGate,
    Counts,
    Evidence,
    HourCounts,
    MetricEvidence,
    Panel,
    Side,
)
from shoal.errors import InputError

#: Version of the formulas: a receipt names it.
FORMULA = "behaviour/1"
#: Chance to call a release worse that is not, all metrics of a stage together.
ALPHA = 0.01
#: Chance to call one safe that is worse than the tolerance, for each metric.
ALPHA_SAFE = 0.05
#: Events by which a device's rate is shrunk to the mean.
SHRINK = 2.0
#: Lengths of blocks, in hours, over which the dispersion of the past is taken.
BLOCKS = (1, 4, 12, 24)
#: Share of the canaries that has to send rows before a release can be called safe.
REPORTING = 0.8
#: Standard errors of the past by which the tolerance moves.
MARGIN = 1.645
#: And at most by this factor's logarithm: more says nothing.
MAX_LN_MARGIN = 5.0
#: Alternatives: ln(r/rho) in the middle of 60 steps up to 3, weighted as a half normal of sd 0.7.
_LN_RATIOS = (np.arange(60) + 0.5) * (3.0 / 60)
_LN_WEIGHTS = -0.5 * (_LN_RATIOS / 0.7) ** 2
_LN_WEIGHTS -= math.log(float(np.exp(_LN_WEIGHTS).sum()))
_DIGITS = 6
F64 = npt.NDArray[np.float64]


class Reference(NamedTuple):
    """What the past says of D devices.

    rate   (D,) events a trial, shrunk; NaN without a past; phi: dispersion
    error  standard error of ln(E_c/E_0)
    past   events in percent of trials: canaries, control
    """

    rate: F64
    phi: float
    error: float
    past: tuple[float, float]


class Hourly(NamedTuple):
    """Events and expected events by hour, (T,) each: x of canaries, y of control."""

    x: F64
    y: F64
    expected_x: F64
    expected_y: F64


def check_gates(gates: Sequence[BehaviourGate]) -> None:
    """InputError for gates that cannot be judged."""
    metrics = [one.metric for one in gates]
    if unknown := next((name for name in metrics if name not in METRICS), ""):
        raise InputError(f"gate {unknown!r:.40}", f"use {', '.join(METRICS)}")
    if len(set(metrics)) < len(metrics):
        raise InputError("two gates of one metric", "give each metric once")
    for one in gates:
        if not 1.05 <= one.tolerance <= 10 or not one.acceptable_pct < 100:
            raise InputError(
                f"gate {one.metric}: tolerance is 1.05 to 10, acceptable_pct is below 100",
                f"for example tolerance 1.5: {one.metric} may be half as frequent again",
            )


def judge(
    stage: str,
    at: float,
    panel: Panel,
    hours: Sequence[HourCounts],
    gates: Sequence[BehaviourGate],
    *,
    running: Sequence[int],
    expired: bool,
) -> Evidence:
    """Look at all metrics of a stage.

    running   indexes of the canaries that have finished and run the release
    expired   the stage's time to analyse is over: what is open then is inconclusive
    """
    found = [_metric(panel, hours, running, one, len(gates)) for one in gates]
    worse = [one for one in found if one.state == "WORSE"]
    left = [one for one in found if one.state != "SAFE"]
    if worse:
        outcome, why = "FAILED", "; ".join(map(_worse, worse))
    elif not left:
        outcome, why = "PASSED", "; ".join(map(_safe, found))
    else:
        outcome = "INCONCLUSIVE" if expired else "WAIT"
        why = "; ".join(f"{one.metric}: {one.missing}" for one in left)
    return Evidence(stage=stage, at=at, outcome=outcome, why=why, metrics=found)


def reference(panel: Panel, metric: str, acceptable: float = 0.0) -> Reference:
    """Rates and dispersion of the past. acceptable: a rate below it counts as it."""
    of_canary = len(panel.canary)
    shape = (of_canary + len(panel.control), panel.hours)
    trials, events = _arrays(panel.past[metric], shape)
    n, s = trials.sum(1), events.sum(1)
    mean = max(s.sum() / max(n.sum(), 1.0), acceptable, 1e-9)
    with np.errstate(divide="ignore", invalid="ignore"):
        rate = np.where(n > 0, (s + SHRINK) / (n + SHRINK / mean), np.nan)
        past = [100 * s[part].sum() / n[part].sum() for part in _parts(of_canary)]
    rate = np.maximum(rate, acceptable)
    phi = dispersion(trials, events)
    known = [s[part].sum() + SHRINK * (n[part] > 0).sum() for part in _parts(of_canary)]
    error = math.sqrt(sum(phi / max(one, 1.0) for one in known))
    return Reference(rate, phi, error, (float(past[0]), float(past[1])))


def dispersion(trials: F64, events: F64) -> float:
    """Largest Pearson dispersion of events (D, H) over BLOCKS, at least 1."""
    found = [1.0]
    for length in BLOCKS:
        blocks = events.shape[1] // length
        if blocks < 2:
            continue
        shape = (len(events), blocks, length)
        n = trials[:, -blocks * length :].reshape(shape).sum(2)
        y = events[:, -blocks * length :].reshape(shape).sum(2)
        own = y.sum(1, keepdims=True) / np.maximum(n.sum(1, keepdims=True), 1)
        common = y.sum(0) / np.maximum((own * n).sum(0), 1e-12)
        expected = own * n * common
        used = expected > 0
        free = used.sum() - used.any(1).sum() - used.any(0).sum() + 1
        if free > 0:
            found.append(float(((y - expected)[used] ** 2 / expected[used]).sum() / free))
    return max(found)


def ln_e(hourly: Hourly, ratio: float, phi: float, *, above: bool) -> float:
    """Log of the e-value against "the ratio is at most `ratio`", or at least unless `above`."""
    used = (hourly.expected_x > 0) & (hourly.expected_y > 0)
    x, y = hourly.x[used], hourly.y[used]
    odds = hourly.expected_x[used] / hourly.expected_y[used]
    ln_r = math.log(ratio) + (_LN_RATIOS if above else -_LN_RATIOS)
    other = np.log1p(np.exp(ln_r)[:, None] * odds) - np.log1p(ratio * odds)
    ln_likelihood = (ln_r - math.log(ratio)) * x.sum() - (other * (x + y)).sum(1)
    return _ln_sum(ln_likelihood / phi + _LN_WEIGHTS)


def ln_e_below(events: float, trials: float, acceptable: float, phi: float) -> float:
    """Log of the e-value against "the rate of the canaries is at least acceptable"."""
    if acceptable <= 0:
        return -math.inf
    less = np.exp(-_LN_RATIOS) - 1
    return _ln_sum((-_LN_RATIOS * events - acceptable * trials * less) / phi + _LN_WEIGHTS)


def hours_more(hourly: Hourly, ratio: float, phi: float, ln_safe: float) -> float:
    """Hours of the same traffic that would show a release safe that is as good as the old one."""
    used = (hourly.expected_x > 0) & (hourly.expected_y > 0)
    if ratio <= 1 or not used.any():
        return math.inf
    odds = hourly.expected_x[used] / hourly.expected_y[used]
    fair, bound = odds / (1 + odds), ratio * odds / (1 + ratio * odds)
    gain = fair * np.log(fair / bound) + (1 - fair) * np.log((1 - fair) / (1 - bound))
    an_hour = float(((hourly.x + hourly.y)[used] * gain).sum()) / phi / used.sum()
    need = math.log(1 / ALPHA_SAFE) + 1 - min(ln_safe, 0.0)
    return max(need / an_hour - used.sum(), 1.0) if an_hour > 0 else math.inf


# --- one metric ---------------------------------------------------------------------------------


def _metric(
    panel: Panel,
    hours: Sequence[HourCounts],
    running: Sequence[int],
    gate: BehaviourGate,
    metrics: int,
) -> MetricEvidence:
    past = reference(panel, gate.metric, gate.acceptable)
    of_canary, known = len(panel.canary), ~np.isnan(past.rate)
    devices = of_canary + len(panel.control)
    awaited = known.copy()
    awaited[:of_canary] &= np.isin(np.arange(of_canary), running)
    tables = [_arrays(one.counts[gate.metric], (devices,)) for one in hours]
    trials = np.array([n for n, _ in tables]).reshape(len(hours), devices) * known
    events = np.array([x for _, x in tables]).reshape(len(hours), devices) * known
    expected = trials * np.nan_to_num(past.rate)
    canary, control = _parts(of_canary)
    hourly = Hourly(
        events[:, canary].sum(1), events[:, control].sum(1),
        expected[:, canary].sum(1), expected[:, control].sum(1),
    )  # fmt: skip
    sides = [
        Side(
            devices=int(awaited[part].sum()),
            reporting=int((awaited[part] & (trials[:, part].sum(0) > 0)).sum()),
            trials=int(trials[:, part].sum()),
            events=int(events[:, part].sum()),
            expected=_round(expected[:, part].sum()),
            past_pct=_round(before),
            now_pct=_round(100 * events[:, part].sum() / max(trials[:, part].sum(), 1)),
        )
        for part, before in zip((canary, control), past.past, strict=True)
    ]
    margin = math.exp(min(MARGIN * past.error, MAX_LN_MARGIN))
    ln_worse = ln_e(hourly, gate.tolerance * margin, past.phi, above=True)
    ln_safe = max(
        ln_e(hourly, gate.tolerance / margin, past.phi, above=False),
        ln_e_below(sides[0].events, sides[0].trials, gate.acceptable, past.phi),
    )
    one = MetricEvidence(
        metric=gate.metric, state="OPEN", tolerance=gate.tolerance, canary=sides[0],
        control=sides[1], ratio=_round(_ratio(*sides)), ln_worse=_round(ln_worse),
        worse_at=_round(math.log(metrics / ALPHA)), ln_safe=_round(ln_safe),
        safe_at=_round(math.log(1 / ALPHA_SAFE)), dispersion=_round(past.phi),
    )  # fmt: skip
    return _decided(
        one, panel, gate, hours_more(hourly, gate.tolerance / margin, past.phi, ln_safe)
    )


def _decided(one: MetricEvidence, panel: Panel, gate: BehaviourGate, more: float) -> MetricEvidence:
    """The state of a metric, and what is missing."""
    canary, control = one.canary, one.control
    if one.ln_worse >= one.worse_at and canary.now_pct > 100 * gate.acceptable:
        return _replaced(one, "WORSE", "")
    past = f"in the {panel.hours} h before the stage began"
    if not canary.devices:
        missing = f"no device of the stage runs it and has {_unit(one)} {past}"
        return _replaced(one, "MISSING", missing)
    if not control.devices:
        missing = f"no device with another release has {_unit(one)} {past} to compare with"
        return _replaced(one, "MISSING", missing)
    silent = canary.devices - canary.reporting
    if silent > (1 - REPORTING) * canary.devices:
        missing = f"{silent} of {canary.devices} devices have sent no {_unit(one)} with the release"
        return _replaced(one, "MISSING", missing)
    if not control.reporting:
        missing = f"no device with another release has sent {_unit(one)} since"
        return _replaced(one, "MISSING", missing)
    if one.ln_safe >= one.safe_at:
        return _replaced(one, "SAFE", "")
    return _replaced(one, "OPEN", f"{_measured(one)}; {_needed(more)}")


def _replaced(one: MetricEvidence, state: str, missing: str) -> MetricEvidence:
    return msgspec.structs.replace(one, state=state, missing=missing)


def _needed(more: float) -> str:
    """How much more data would decide."""
    if not math.isfinite(more):
        return "the past is too short to decide by: use more canaries or a higher tolerance"
    if more > 24 * 30:
        return "more than 30 days of such traffic are needed: use more canaries"
    return f"about {math.ceil(more)} h more of such traffic decide, or more canaries"


def _measured(one: MetricEvidence) -> str:
    return (
        f"{one.ratio:.2f} times as frequent as on {one.control.reporting} other devices, "
        f"tolerance {one.tolerance:g}"
    )


def _worse(one: MetricEvidence) -> str:
    return (
        (
            f"{one.metric} are {_measured(one)}: {one.canary.events} of {one.canary.trials} "
            f"({one.canary.now_pct:.3g} %, before {one.canary.past_pct:.3g} %) on "
            f"{one.canary.reporting} devices"
        )
        .replace("accuracy are", "wrong predictions are")
        .replace("latency are", "slow calls are")
    )


def _safe(one: MetricEvidence) -> str:
    return f"{one.metric} no worse ({one.canary.now_pct:.3g} %, before {one.canary.past_pct:.3g} %)"


def _unit(one: MetricEvidence) -> str:
    return "labelled rows" if one.metric == "accuracy" else "windows"


def _ratio(canary: Side, control: Side) -> float:
    """Events as a multiple of the expected, canaries against control; 0 if unknown."""
    if not canary.expected or not control.expected:
        return 0.0
    mine, others = canary.events / canary.expected, control.events / control.expected
    return mine / others if others else (math.inf if mine else 1.0)


def _parts(of_canary: int) -> tuple[slice, slice]:
    return slice(0, of_canary), slice(of_canary, None)


def _arrays(counts: Counts, shape: tuple[int, ...]) -> tuple[F64, F64]:
    return (
        np.array(counts.trials, np.float64).reshape(shape),
        np.array(counts.events, np.float64).reshape(shape),
    )


def _ln_sum(terms: F64) -> float:
    """Log of the sum of exponentials: an underflow is a small number, never a floor."""
    top = float(terms.max())
    return top + math.log(float(np.exp(terms - top).sum()))


def _round(value: float) -> float:
    """To six digits after the point: the same on every processor. Infinite or NaN: ±1e9, 0."""
    if math.isnan(value):
        return 0.0
    return round(min(max(float(value), -1e9), 1e9), _DIGITS)
