"""What devices measured, as one: sums, slices, and how sure one may be."""

import numpy as np
import pytest

from shoal.controller.federated.aggregation.evaluation import FEWEST, WORST, Place, interval, merge
from shoal.federated.messages import Measured, Slice


def said(rows: int, correct: int, loss: float = 1.0, **classes: tuple[int, int]) -> Measured:
    return Measured(
        whole=Slice(rows=rows, loss=loss, correct=correct),
        classes={name: Slice(rows=r, loss=1.0, correct=c) for name, (r, c) in classes.items()},
    )


def test_rows_are_summed_and_not_averaged_over_devices() -> None:
    found = merge({"a": said(90, 90, 9.0), "b": said(10, 0, 11.0)}, {}).whole

    assert found is not None
    assert (found.rows, found.devices, found.accuracy, found.loss) == (100, 2, 0.9, 0.2)


def test_a_bad_meeting_of_class_site_and_profile_is_found_though_each_alone_looks_well() -> None:
    places = {
        f"d{site}{profile}{i}": Place(site, profile)
        for site in ("north", "south") for profile in ("rpi4", "x86") for i in range(5)
    }  # fmt: skip
    bad = {name for name, place in places.items() if place == ("north", "rpi4")}
    told = {
        name: said(60, 57 if name in bad else 60, crack=(30, 3 if name in bad else 30), ok=(30, 30))
        for name in places
    }

    slices = merge(told, places).slices

    worst = slices["class:crack site:north profile:rpi4"]
    assert (worst.rows, worst.accuracy) == (150, 0.1)
    assert worst.high is not None
    assert worst.high < 0.2
    assert {"site:north", "profile:rpi4", "class:crack"} <= set(slices)
    assert len([name for name in slices if " " in name]) <= WORST


def test_a_slice_of_a_few_rows_is_not_named() -> None:
    told = {"a": said(FEWEST, 1, crack=(FEWEST - 1, 0), ok=(1, 1))}

    assert not [name for name in merge(told, {}).slices if " " in name]


def test_without_measurements_there_is_no_metric_rather_than_zero() -> None:
    assert merge({}, {}) == (None, {})
    assert merge({"a": said(0, 0)}, {}).whole is None


def test_without_classes_there_is_a_loss_and_no_accuracy() -> None:
    one = Measured(whole=Slice(rows=4, loss=2.0))
    found = merge({"a": one}, {}).whole

    assert found is not None
    assert (found.loss, found.accuracy, found.low) == (0.5, None, None)


@pytest.mark.parametrize("spread", [0.0, 0.1])
def test_the_interval_has_its_nominal_coverage_also_when_devices_differ(
    spread: float,
) -> None:
    random, truth, hits = np.random.default_rng(0), 0.8, 0
    for _ in range(400):
        own = np.clip(random.normal(truth, spread, 30), 0, 1)
        low, high = interval(random.binomial(50, own).tolist(), [50] * 30)
        hits += low <= truth <= high
    assert 0.90 <= hits / 400 <= 0.99
