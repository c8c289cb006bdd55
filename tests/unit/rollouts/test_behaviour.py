"""Behaviour gates: error rates on simulated fleets, and what is said when data is missing."""

import math

import msgspec
import numpy as np
import pytest
from scipy.special import betainc, betaln

from shoal.controller.rollouts import behaviour, rollouts
from shoal.controller.rollouts.behaviour import Hourly
from shoal.controller.rollouts.behaviour_records import (
    METRICS,
    BehaviourGate,
    Counts,
    HourCounts,
    Panel,
)
from shoal.controller.rollouts.records import RolloutPlan, StagePlan
from shoal.errors import InputError

ERRORS = BehaviourGate(metric="errors")


def counts(trials, events):
    ravel = [np.broadcast_to(one, np.shape(events)).ravel().tolist() for one in (trials, events)]
    return Counts(trials=ravel[0], events=ravel[1])


def panel_of(past, canaries=5, rows=400):
    """past: events (D, H) of the metric errors; nothing is known of the others."""
    none = Counts(trials=[0] * past.size, events=[0] * past.size)
    devices = [f"d-{i}" for i in range(len(past))]
    return Panel(
        release="m@2", canary=devices[:canaries], control=devices[canaries:], first_hour=0,
        hours=past.shape[1], slow_bin=[-1] * len(past),
        past={**dict.fromkeys(METRICS, none), "errors": counts(rows, past)},
    )  # fmt: skip


def hours_of(now, rows=400):
    """now: events (D, T)."""
    none = Counts(trials=[0] * len(now), events=[0] * len(now))
    return [
        HourCounts(
            hour=3_600 * t,
            counts={**dict.fromkeys(METRICS, none), "errors": counts(rows, events)},
        )
        for t, events in enumerate(now.T)
    ]


def fleet(seed, ratio=1.0, canaries=50, control=200, rate=0.01, hours=12, rows=400):
    """Panel and hours of a fleet whose devices differ by CV 0.5 and have bursts by the hour."""
    rng = np.random.default_rng(seed)
    devices = canaries + control
    rates = rate * rng.gamma(4, 0.25, (devices, 1)) * rng.gamma(4, 0.25, (devices, 72 + hours))
    rates[:canaries, 72:] *= ratio
    events = rng.binomial(rows, np.minimum(rates, 1))
    return panel_of(events[:, :72], canaries, rows), hours_of(events[:, 72:], rows)


def judge(panel, hours, *gates, running=range(500), expired=False):
    gates = gates or (ERRORS,)
    return behaviour.judge(
        "canary", 7.0, panel, hours, gates, running=list(running), expired=expired
    )


def first(panel, hours, outcome):
    """The hour after which the outcome is this; 0 for never."""
    looks = range(1, len(hours) + 1)
    return next((t for t in looks if judge(panel, hours[:t]).outcome == outcome), 0)


def test_a_release_that_is_no_worse_is_let_through_and_one_twice_as_bad_is_stopped():
    good = [fleet(seed) for seed in range(5)]
    assert not any(first(*one, "FAILED") for one in good)
    assert all(0 < first(*one, "PASSED") <= 6 for one in good)
    bad = [fleet(seed, ratio=2.0) for seed in range(5)]
    assert all(1 <= first(*one, "FAILED") <= 2 for one in bad)


def test_the_e_value_is_a_likelihood_ratio_mixed_over_ratios_as_for_a_beta_mixture_of_shares():
    x, y, ours, theirs = 60.0, 200.0, 20.0, 200.0
    hourly = Hourly(*(np.array([one]) for one in (x, y, ours, theirs)))
    found = behaviour.ln_e(hourly, 1.25, 1.0, above=True)
    theta = 1.25 * ours / (1.25 * ours + theirs)
    a, b = 20 * theta, 20 * (1 - theta)
    beta = betaln(a + x, b + y) + math.log1p(-betainc(a + x, b + y, theta)) - betaln(a, b)
    beta -= math.log1p(-betainc(a, b, theta)) + x * math.log(theta) + y * math.log1p(-theta)
    assert found == pytest.approx(beta, abs=1.0)  # two priors, one likelihood
    assert behaviour.ln_e(hourly, 1.25, 1.0, above=False) < -1


def test_under_the_boundary_the_expected_e_value_is_at_most_one_whatever_the_exposures():
    rng = np.random.default_rng(3)
    ours, theirs = rng.uniform(1, 30, 6), rng.uniform(5, 90, 6)
    values = [
        math.exp(
            behaviour.ln_e(
                Hourly(rng.poisson(1.25 * ours) * 1.0, rng.poisson(theirs) * 1.0, ours, theirs),
                1.25, 1.0, above=True,
            )
        )
        for _ in range(3_000)
    ]  # fmt: skip
    assert np.mean(values) < 1.15
    assert np.mean(np.array(values) > 20) < 1 / 20


def test_a_release_five_times_worse_is_never_safe_however_much_data_underflows():
    panel, hours = fleet(1, ratio=5.0, rows=40_000)
    [metric] = judge(panel, hours).metrics
    assert metric.state == "WORSE"
    assert metric.ln_safe < -100
    assert 4.5 < metric.ratio < 5.5


def test_what_happens_to_all_devices_is_no_reason_to_stop():
    panel, hours = fleet(2)
    worse = [
        msgspec.structs.replace(
            one,
            counts={
                name: msgspec.structs.replace(c, events=[4 * n for n in c.events])
                for name, c in one.counts.items()
            },
        )
        for one in hours
    ]
    assert not first(panel, worse, "FAILED")


def test_errors_that_never_were_and_still_are_not_pass_by_the_acceptable_rate():
    panel, hours = panel_of(np.zeros((20, 72), int)), hours_of(np.zeros((20, 8), int))
    assert first(panel, hours, "PASSED")
    now = np.zeros((20, 8), int)
    now[:5] = 20
    assert first(panel, hours_of(now), "FAILED") == 1


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("silent", "3 of 5 devices have sent no windows with the release"),
        ("new", "no device of the stage runs it and has windows in the 72 h before"),
        ("alone", "no device with another release has windows in the 72 h before"),
        ("labels", "no device of the stage runs it and has labelled rows"),
        ("short", "more of such traffic"),
    ],
)
def test_missing_data_is_never_success_and_is_named(change, says):
    events = np.random.default_rng(0).binomial(400, 0.01, (20, 74))
    past, now = events[:, :72], events[:, 72:]
    panel, hours = panel_of(past), hours_of(now)
    gate = ERRORS
    if change == "silent":
        rows = np.full(20, 400)
        rows[:3] = 0
        hours = [
            msgspec.structs.replace(
                one, counts=one.counts | {"errors": counts(rows, np.minimum(events[:, 0], rows))}
            )
            for one in hours
        ]
    if change == "new":
        panel.past["errors"].trials[: 5 * 72] = [0] * (5 * 72)
        panel.past["errors"].events[: 5 * 72] = [0] * (5 * 72)
    if change == "alone":
        panel, hours = panel_of(past[:5]), hours_of(now[:5])
    if change == "labels":
        gate = BehaviourGate(metric="accuracy")
    seen = judge(panel, hours, gate, expired=True)
    assert seen.outcome == "INCONCLUSIVE"
    assert says in seen.why


def test_dispersion_finds_devices_that_drift_for_half_a_day_and_leaves_chance_alone():
    rng = np.random.default_rng(5)
    rows = np.full((100, 72), 400.0)
    assert behaviour.dispersion(rows, rng.poisson(4.0, (100, 72)) * 1.0) < 1.2
    drifting = np.repeat(rng.gamma(4, 0.25, (100, 6)), 12, axis=1)
    assert behaviour.dispersion(rows, rng.poisson(4.0 * drifting) * 1.0) > 8


@pytest.mark.parametrize(
    ("metrics", "stages", "says"),
    [
        (["mood"], 2, "errors, latency, accuracy"),
        (["errors", "errors"], 2, "once"),
        (["errors"], 1, "--stage first:percent=10 --stage rest"),
    ],
)
def test_gates_that_cannot_be_judged_are_refused(metrics, stages, says):
    plan = RolloutPlan(
        release="m@2",
        stages=[StagePlan(name=f"s-{i}") for i in range(stages)],
        gates=[BehaviourGate(metric=name) for name in metrics],
    )
    with pytest.raises(InputError) as refused:
        rollouts.start(None, actor="ana", plan=plan)
    assert says in refused.value.hint
