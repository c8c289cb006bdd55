"""Privacy costs what it is said to cost, and noise is what it is said to be."""

import math

import numpy as np
import pytest
from scipy.stats import chisquare

from shoal.controller.federated.privacy.adaptive_clip import AdaptiveClip
from shoal.controller.federated.privacy.central import PrivateMean, central_noise
from shoal.controller.federated.updates import Update
from shoal.errors import ConflictError, InputError, SettingError
from shoal.federated.distributed import (
    effective_noise,
    encode_privately,
    own_sigma,
    rounded_norm,
    scale_for,
)
from shoal.federated.noise import Draws, discrete_gaussian, grid_of, local_noise, noisy, privately
from shoal.federated.plan import Privacy
from shoal.federated.spending import Ledger
from shoal.params import clipped, norm_of
from unit.federated.cohort import Cohort
from unit.federated.updates import some


def seeded(number: int) -> Draws:
    return Draws(number.to_bytes(32))


# ---------------------------------------------------------------- noise


@pytest.mark.parametrize("sigma", [0.3, 1.0, 2.5, 20.0])
def test_noise_has_the_frequencies_of_the_discrete_gaussian(sigma: float) -> None:
    drawn = discrete_gaussian(200_000, sigma, seeded(int(sigma * 10)))
    reach = max(1, int(3 * sigma))
    values = np.arange(-reach, reach + 1)
    weights = np.exp(-(values**2) / (2 * sigma**2))
    seen = np.array([(drawn == value).sum() for value in values])
    expected = weights / weights.sum() * seen.sum()
    assert chisquare(seen, expected).pvalue > 1e-4


@pytest.mark.parametrize("sigma", [1e3, 1e6, 2.0**35])
def test_wide_noise_has_the_moments_of_a_gaussian(sigma: float) -> None:
    drawn = discrete_gaussian(100_000, sigma, seeded(3)) / sigma
    assert abs(drawn.mean()) < 0.02
    assert abs(drawn.std() - 1) < 0.01
    assert abs((drawn**4).mean() - 3) < 0.15


def test_noise_follows_its_seed_and_nothing_else() -> None:
    a, b, c = (discrete_gaussian(50, 9.0, seeded(n)) for n in (1, 1, 2))
    assert np.array_equal(a, b)
    assert not np.array_equal(a, c)
    assert discrete_gaussian(0, 1.0, seeded(1)).size == 0


@pytest.mark.parametrize("sigma", [0.0, -1.0, float("nan"), 2.0**41])
def test_noise_that_cannot_be_drawn_is_refused(sigma: float) -> None:
    with pytest.raises(InputError, match="noise"):
        discrete_gaussian(5, sigma, seeded(0))


def test_noisy_numbers_are_on_a_grid_that_does_not_depend_on_them() -> None:
    vector = np.random.default_rng(0).normal(size=1000)
    found = noisy(vector, 0.7, seeded(5)) / grid_of(0.7)
    assert np.array_equal(found, np.rint(found))


def test_a_clipped_update_is_never_longer_than_the_clip() -> None:
    for update in some(20, size=1000):
        for bound in (1e-6, 0.1, 3.0):
            assert norm_of(clipped(update.delta, bound)) <= bound


# ---------------------------------------------------------------- central, local, distributed


def test_the_private_mean_is_the_mean_of_clipped_updates_plus_the_noise_that_was_planned() -> None:
    privacy = Privacy(where="central", clip=0.5, noise=2.0)
    updates, size = some(30, size=20_000), 20_000
    gathering = PrivateMean(size, privacy, 30, seeded(9))
    for update in updates:
        gathering.add(update)
    exact = np.mean([clipped(u.delta, 0.5).astype(np.float64) for u in updates], axis=0)
    apart = (gathering.result().delta - exact) * 30
    assert apart.std() == pytest.approx(2.0 * 0.5, rel=0.03)
    assert gathering.within == sum(norm_of(u.delta) <= 0.5 for u in updates)
    assert 0.998 * 2.0 < central_noise(privacy, size) < 2.0


def test_local_noise_is_on_every_update_and_costs_by_twice_the_clip() -> None:
    privacy = Privacy(where="local", clip=1.0, noise=4.0)
    [update] = some(1, size=20_000)
    apart = privately(update.delta, privacy, seeded(1)) - clipped(update.delta, 1.0)
    assert apart.std() == pytest.approx(4.0, rel=0.03)
    assert local_noise(privacy, 20_000) == pytest.approx(2.0, rel=0.01)
    with pytest.raises(InputError):
        privately(np.array([np.nan], np.float32), privacy, seeded(1))


def test_the_secure_sum_carries_the_noise_of_all_and_no_update_carries_enough() -> None:
    size, count = 3_000, 6
    privacy = Privacy(where="distributed", clip=1.0, noise=1.0)
    scale = scale_for(privacy, clip=0.2, devices=count, least=4)
    cohort = Cohort(count, least=4)
    updates = some(count, size=size)
    numbers = {
        name: encode_privately(update.delta, privacy, scale, 4, seeded(i))
        for i, (name, update) in enumerate(zip(cohort.names, updates, strict=True))
    }
    total, alive = cohort.run(numbers, {"d005": "before its update"})
    mean, weight = scale.decode(total, devices=len(alive))
    assert weight == 5
    cut = [np.clip(clipped(u.delta, 1.0), -0.2, 0.2).astype(np.float64) for u in updates[:5]]
    apart = mean * 5 - np.sum(cut, axis=0)
    own = own_sigma(privacy, scale, 4) * scale.step
    assert own == pytest.approx(0.5)
    assert apart.std() == pytest.approx(own * math.sqrt(5), rel=0.06)
    assert apart.std() > 1.0 * privacy.clip
    assert 0.99 < effective_noise(privacy, scale, 4, size) <= 1.0


def test_coarse_steps_cost_privacy_and_that_is_counted() -> None:
    privacy = Privacy(where="distributed", clip=1.0, noise=1.0)
    fine = scale_for(privacy, clip=1.0, devices=100, least=80)
    coarse = scale_for(privacy, clip=1.0, devices=100_000, least=80_000)
    assert effective_noise(privacy, coarse, 80_000, 10_000) < (
        effective_noise(privacy, fine, 80, 10_000)
    )
    with pytest.raises(SettingError):
        scale_for(Privacy(where="distributed", clip=1.0, noise=1e4), 1.0, 10**6, 10)


def test_rounding_never_makes_an_update_longer_than_was_counted() -> None:
    privacy = Privacy(where="distributed", clip=1.0, noise=1e-9)
    scale = scale_for(privacy, clip=1.0, devices=10**6, least=10)
    for i, update in enumerate(some(10, size=5_000)):
        whole = encode_privately(update.delta, privacy, scale, 10, seeded(i)).view(np.int32)[:-1]
        bound = rounded_norm(1.0 / scale.step, 5_000)
        assert np.linalg.norm(whole.astype(float)) <= bound


# ---------------------------------------------------------------- a clip that follows


def test_the_clip_finds_the_median_of_the_norms() -> None:
    random, clip = np.random.default_rng(0), 100.0
    adaptive, draws = AdaptiveClip(spread=2.0), seeded(7)
    for _ in range(150):
        norms = random.lognormal(0.0, 0.5, 100)
        share = adaptive.noisy_share(int((norms <= clip).sum()), 100, draws)
        clip = adaptive.next_clip(clip, share)
    assert 0.8 < clip < 1.25


def test_count_and_updates_together_cost_what_was_planned() -> None:
    adaptive = AdaptiveClip(spread=3.0)
    raised = adaptive.noise_on_updates(1.0)
    both = Ledger().after(raised).after(2 * adaptive.spread)
    assert both.rho == pytest.approx(Ledger().after(1.0).rho)
    assert raised > 1.0
    with pytest.raises(SettingError, match="spread"):
        AdaptiveClip(spread=0.4).noise_on_updates(1.0)


def test_a_device_counts_once_in_a_private_mean() -> None:
    gathering = PrivateMean(50, Privacy(where="central", clip=1.0, noise=1.0), 5, seeded(0))
    [update] = some(1)
    gathering.add(update)
    with pytest.raises(ConflictError):
        gathering.add(update)
    with pytest.raises(InputError):
        gathering.add(Update(device="x", delta=np.zeros(3, np.float32), examples=1))
    with pytest.raises(SettingError):
        PrivateMean(50, Privacy(where="local", clip=1.0, noise=1.0), 5, seeded(0))
