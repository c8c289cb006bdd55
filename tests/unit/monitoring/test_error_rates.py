"""The drift decision keeps its budget where nothing changes and finds what does: a short version.

`make bench-monitoring` is the long one; what it found stands in docs/drift-error-rates.md. Seeds
are fixed: a failure here repeats.
"""

from functools import partial

import numpy as np
import pytest

from bench.drift_peers import PEERS, Threshold, discoveries
from bench.drift_rule import product
from bench.error_rates import Pace, delays, null, poisson_bounds, verdict
from bench.feature_windows import RowCounter
from bench.null_processes import FEATURES, KINDS, Fleet
from shoal.sketch import Sketch, reference_of

MINUTE, QUARTER, SIXTY = Pace(60, 60.0), Pace(900, 900.0), Pace(60, 900.0)
#: Kinds of whole devices, and one that no decision can keep quiet: see the docs.
OF_DEVICES = ["windows missing", "uneven rows", "starts at 8 o'clock", "daylight saving", "weekly"]
UNKNOWN = "daylight saving, zone unknown"
TOGETHER = [kind for kind in KINDS if kind not in (*OF_DEVICES, UNKNOWN)]
#: Windows until half of the features are found, at most.
LARGE = {"1 sd": 4, "stuck": 2, "5 % missing": 6, "3 % spikes": 2, "unit change": 2, "rows 40 %": 4}
SMALL = {"0.5 sd": 4, "variance x2": 4, "gain 1.1": 4}


def short_null(kind, pace, days, make=product, devices=4, seed=7):
    return null(kind, pace, make, devices=devices, days=days, seed=seed, budget=1.0)


# ------------------------------------------------------------------------------ the decision


@pytest.mark.parametrize(("pace", "days"), [(Pace(200, 900.0), 4.0), (MINUTE, 0.35)])
def test_features_of_every_kind_that_run_as_usual_raise_no_finding(pace, days):
    assert short_null(TOGETHER, pace, days, devices=2).findings == 0


@pytest.mark.parametrize("kind", OF_DEVICES)
def test_devices_that_run_as_usual_raise_no_finding_in_days(kind):
    assert short_null(kind, SIXTY, 3.5, devices=2).findings == 0


@pytest.mark.parametrize("kind", ["iid", "diurnal 1 sd"])
@pytest.mark.parametrize(
    ("pace", "before", "aims"), [(SIXTY, 400, LARGE), (QUARTER, 200, LARGE | SMALL)]
)
def test_what_happens_to_a_feature_is_found_in_few_windows(kind, pace, before, aims):
    found = delays(
        kind, pace, product, devices=1, before=before, within=8, seed=3, changes=tuple(aims)
    )
    late = {one.change: one.median for one in found if (one.median or 99) > aims[one.change]}
    assert {one.change for one in found} == set(aims)
    assert late == {}
    assert sum(one.early for one in found) == 0


# ------------------------------------------------------------------------------ the measurement


def test_the_same_rows_flood_whoever_compares_sixty_of_them_with_training():
    found = short_null("iid", MINUTE, 0.1, partial(Threshold.of, PEERS["PSI > 0.1"]))
    assert found.verdict == "broken"
    assert found.at_least > 100_000


@pytest.mark.parametrize(
    ("findings", "least", "most"), [(0, 0.0, 2.996), (1, 0.0513, 4.744), (10, 5.425, 16.96)]
)
def test_bounds_are_those_of_a_poisson_mean(findings, least, most):
    assert poisson_bounds(findings) == pytest.approx((least, most), rel=1e-3)


def test_few_devices_without_a_finding_do_not_show_that_a_budget_is_kept():
    assert short_null("iid", QUARTER, 2.0, devices=1).verdict == "not shown"
    assert verdict(0.0, 0.99, 1.0) == "kept"


@pytest.mark.parametrize("kind", ["uneven rows", "windows missing"])
def test_windows_of_many_devices_are_those_that_each_one_s_sketch_would_send(kind):
    fleet = Fleet(kind, devices=5, rows=20, window_s=900.0, seed=1)
    rows = [fleet.window()[1] for _ in range(30)]
    assert any(not one.sent.all() or len(set(one.kept.tolist())) > 1 for one in rows)
    for one in rows:
        windows = fleet.sketched(one)
        for d in np.flatnonzero(one.sent):
            own = Sketch(reference_of_one(fleet))
            own.update(one.values[: one.kept[d], d * FEATURES : (d + 1) * FEATURES])
            assert windows.counts[d].tolist() == own.counts.tolist()
            assert windows.missing[d].tolist() == own.missing.tolist()
            np.testing.assert_allclose(windows.m2[d], own.m2, rtol=1e-9)
        assert windows.n[~one.sent].sum() == 0


def reference_of_one(fleet):
    return type(fleet.counter.reference)(features=fleet.counter.reference.features[:FEATURES])


def test_missing_values_are_told_from_rows_that_a_device_has_not():
    counter = RowCounter(reference_of({"x": np.arange(9.0)}), devices=2)
    values = np.array([[1, 1], [np.nan, 1], [np.nan, np.nan]], np.float32)
    found = counter.count(values, np.array([3, 2]), np.ones(2, bool))
    assert (found.missing.ravel().tolist(), found.n.ravel().tolist()) == ([2, 0], [1, 2])


@pytest.mark.parametrize("kind", ["iid", "AR(0.9)", "AR(0.999)", "volatility in clusters"])
def test_a_process_has_the_spread_that_its_training_rows_have(kind):
    fleet = Fleet(kind, devices=40, rows=30, window_s=1_800.0, seed=5)
    x = np.concatenate([fleet.window()[1].values for _ in range(20)])
    assert x.std() == pytest.approx(1.0, abs=0.08)


def test_discoveries_are_those_of_benjamini_and_hochberg():
    p = np.array([0.2, 0.001, 0.03, 0.012, 0.9])
    assert discoveries(p).tolist() == [False, True, True, True, False]
