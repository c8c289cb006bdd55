"""The drift test: calibrated under the null, sensitive to a real shift, robust at the edges."""

import numpy as np
import pytest
from scipy import stats
from scipy.signal import lfilter

from shoal.controller.monitoring import drift
from shoal.controller.monitoring.saddlepoint import EXACT, log_tail
from shoal.errors import StorageError

QUANTILES = (0.001, 0.01, *np.arange(0.05, 1, 0.05), 0.99, 0.999)
EDGES = stats.norm.ppf(QUANTILES)
BINS = len(EDGES) + 1
SCALES = (1, 4, 16)


def binned(values):
    """Counts (windows, F, BINS) of values (F, windows, n)."""
    at = np.searchsorted(EDGES, values)
    return np.stack([(at == b).sum(-1) for b in range(BINS)], axis=-1).swapaxes(0, 1)


def rows(rng, features, windows, n, *, rho=0.0, shift=0.0):
    noise = rng.standard_normal((features, windows * n))
    if rho:
        noise = lfilter([np.sqrt(1 - rho**2)], [1, -rho], noise)
    return binned(noise.reshape(features, windows, n) + shift)


def own(counts):
    return [{"press-1": c} for c in counts]


def p_values(baseline, windows, at, tolerance=0.01):
    """log10 p (tests, F) of sliding windows."""
    s = baseline.scales[at]
    found = (
        drift.compare(baseline, windows[i - s + 1 : i + 1], at, tolerance)
        for i in range(s - 1, len(windows))
    )
    return np.stack([one.log10_p for one in found if one is not None])


@pytest.mark.parametrize("freedom", [3.0, 9.0, 20.0])
@pytest.mark.parametrize("noncentral", [1.0, 8.0, 500.0])
@pytest.mark.parametrize("p", [0.1, 1e-3, 1e-9])
def test_the_far_tail_agrees_with_scipy_where_scipy_has_one(freedom, noncentral, p):
    chi = stats.ncx2.isf(p, freedom, noncentral)
    f = stats.ncf.isf(p, freedom, 99, noncentral) * freedom
    for x, known in ((chi, EXACT), (f, 99.0)):
        ours = np.exp(log_tail(*map(np.asarray, (x, freedom, noncentral, known))))
        assert 0.99 < ours / p < 1.05


def test_the_far_tail_still_orders_values_beyond_the_range_of_scipy():
    x = np.array([1e3, 1e4, 1e6])
    log_p = log_tail(x, np.full(3, 9.0), np.full(3, 8.0), np.full(3, EXACT))
    assert np.isfinite(log_p).all()
    assert (np.diff(log_p) < 0).all()


@pytest.mark.parametrize("baseline_windows", [12, 96])
@pytest.mark.parametrize("n", [60, 900])
def test_rows_that_did_not_change_keep_the_level_even_without_tolerance(baseline_windows, n):
    rng = np.random.default_rng(n + baseline_windows)
    windows = own(rows(rng, 400, baseline_windows + 16, n))
    baseline = drift.fit(windows[:baseline_windows], SCALES)
    for at in range(2):
        p = p_values(baseline, windows[baseline_windows:], at, tolerance=0.0)
        assert (p < -2).mean() < 1.5e-2
        assert (p < -3).mean() < 3e-3


def test_a_fleet_that_did_not_change_raises_no_alarm_in_a_day_of_its_budget():
    """About 100k tests at the level of a fleet of 10k devices."""
    rng = np.random.default_rng(5)
    level = drift.log10_level(1, subjects=10_000, features=8, window_s=900, scales=3)
    for k in (12, 96):
        windows = own(rows(rng, 600, k + 24, 200))
        baseline = drift.fit(windows[:k], SCALES)
        worst = min(p_values(baseline, windows[k:], at).min() for at in range(3))
        assert worst > level


@pytest.mark.parametrize("n", [100, 900])
def test_rows_that_resemble_the_row_before_them_do_not_alarm(n):
    """AR(1), 0.9: the multinomial test alarms at these in most windows."""
    rng = np.random.default_rng(9)
    level = drift.log10_level(1, subjects=100, features=8, window_s=900, scales=3)
    windows = own(rows(rng, 200, 96 + 16, n, rho=0.9))
    baseline = drift.fit(windows[:96], SCALES)
    assert min(p_values(baseline, windows[96:], at).min() for at in range(3)) > level


@pytest.mark.parametrize("pool", [100, 300])
def test_a_small_pool_of_rows_that_is_replayed_does_not_alarm(pool):
    rng = np.random.default_rng(pool)
    n, k, after = 100, 12, 24
    values = rng.standard_normal((100, pool))
    order = np.concatenate([rng.permutation(pool) for _ in range((k + after) * n // pool + 1)])
    windows = own(binned(values[:, order[: (k + after) * n]].reshape(100, k + after, n)))
    baseline = drift.fit(windows[:k], SCALES)
    assert min(p_values(baseline, windows[k:], at).min() for at in range(3)) > -4


@pytest.mark.parametrize(("sigma", "within"), [(0.25, 4), (0.5, 1)])
def test_a_shift_is_found_within_a_few_windows(sigma, within):
    rng = np.random.default_rng(2)
    level = drift.log10_level(1, subjects=10_000, features=8, window_s=900, scales=3)
    before = own(rows(rng, 100, 96, 900))
    after = own(rows(rng, 100, within, 900, shift=sigma))
    baseline = drift.fit(before, SCALES)
    found = np.zeros(100, bool)
    for i in range(within):
        for at, s in enumerate(SCALES):
            windows = (before + after[: i + 1])[-s:]
            seen = drift.compare(baseline, windows, at, 0.01)
            found |= seen.log10_p < level
    assert found.mean() > 0.9


def test_a_feature_that_never_moved_is_found_when_it_does():
    still = np.zeros((1, 6), np.int64)
    still[0, 2] = 100
    moved = still.copy()
    moved[0, 2:4] = 60, 40
    baseline = drift.fit(own([still] * 12), SCALES)
    assert drift.compare(baseline, own([still]), 0, 0.01).log10_p[0] > -1
    assert drift.compare(baseline, own([moved]), 0, 0.01).log10_p[0] < -6


def test_values_that_go_missing_are_drift():
    rng = np.random.default_rng(3)
    known = np.pad(rows(rng, 1, 12, 200), ((0, 0), (0, 0), (0, 1)))
    lost = known[0].copy()
    lost[0, -1] = lost[0, :-1].sum() // 2
    lost[0, :-1] -= lost[0, :-1] // 2
    baseline = drift.fit(own(known), SCALES)
    assert drift.compare(baseline, own([lost]), 0, 0.01).log10_p[0] < -9


def test_a_window_far_smaller_than_usual_is_not_tested_by_itself():
    rng = np.random.default_rng(4)
    baseline = drift.fit(own(rows(rng, 2, 12, 200)), SCALES)
    small = own(rows(rng, 2, 4, 80))
    assert drift.compare(baseline, small[:1], 0, 0.01) is None
    usual = own(rows(rng, 2, 3, 200))
    assert drift.compare(baseline, small[:1] + usual, 1, 0.01) is not None


def test_a_device_that_is_switched_off_is_no_drift_of_its_site():
    rng = np.random.default_rng(6)
    a, b = rows(rng, 3, 40, 300), rows(rng, 3, 40, 300, shift=1.5)
    site = [{"press-1": x, "press-2": y} for x, y in zip(a, b, strict=True)]
    baseline = drift.fit(site[:12], SCALES)
    alone = [{"press-1": x} for x in a[12:]]
    stranger = [{"press-1": x, "press-9": y} for x, y in zip(a[12:], b[12:], strict=True)]
    assert p_values(baseline, alone, 0).min() > -4
    assert p_values(baseline, stranger, 0).min() > -4


def test_one_device_of_a_site_that_changes_is_found_in_the_merge():
    rng = np.random.default_rng(7)
    a, b = rows(rng, 1, 13, 900), rows(rng, 1, 12, 900)
    moved = rows(rng, 1, 1, 900, shift=1.0)
    baseline = drift.fit([{"a": x, "b": y} for x, y in zip(a, b, strict=False)], SCALES)
    seen = drift.compare(baseline, [{"a": a[12], "b": moved[0]}], 0, 0.01)
    assert seen.log10_p[0] < -10


def test_a_baseline_is_read_back_from_its_bytes_and_from_no_others():
    rng = np.random.default_rng(8)
    baseline = drift.fit(own(rows(rng, 3, 12, 200)), SCALES)
    again = drift.Baseline.from_bytes(baseline.to_bytes())
    window = own(rows(rng, 3, 1, 200))
    assert again.members == baseline.members
    assert np.array_equal(
        drift.compare(again, window, 0, 0.01).log10_p,
        drift.compare(baseline, window, 0, 0.01).log10_p,
    )
    with pytest.raises(StorageError):
        drift.Baseline.from_bytes(b"PK nonsense")


def test_the_effect_size_is_near_zero_without_a_shift_and_grows_with_the_shift():
    rng = np.random.default_rng(10)
    baseline = drift.fit(own(rows(rng, 1, 12, 900)), SCALES)
    training = rows(rng, 1, 1, 50_000)[0]
    sizes = [
        drift.psi(baseline, own(rows(rng, 1, 1, 900, shift=s)), 0, training)[0] for s in (0, 0.5, 1)
    ]
    assert sizes[0] < 0.05 < sizes[1] < sizes[2]
