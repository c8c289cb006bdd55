"""When a silent device is overdue: learnt from its gaps, within a budget of false alerts."""

import numpy as np
import pytest

from bench.offline_alerts import FLEETS, simulate
from shoal.controller.conditions.rhythm import DAY_S, HOUR_S, HOURS, Limits, Rhythm

LIMITS = Limits(least_s=300.0, most_s=7 * DAY_S, rate=0.01, noted_s=150.0)


def shop(weeks):
    """A device that was there from 8 to 18 h on six days a week."""
    rhythm = Rhythm.new(8 * HOUR_S)
    for day in range(weeks * 7):
        if day % 7 != 6:
            opens = (day * 24 + 8) * HOUR_S
            if opens > rhythm.until_s:
                rhythm.gap(rhythm.until_s, opens, 150.0)
            rhythm.spoke(opens + 10 * HOUR_S)
    return rhythm


@pytest.mark.parametrize("name", FLEETS)
def test_a_fleet_of_ten_thousand_raises_at_most_one_false_alert_a_day(name):
    """The full table, with delays, is tests/bench/offline_alerts.py."""
    found = simulate(name, devices=6, judged=14, fleet=10_000)
    assert found.false_per_day <= 1
    assert simulate(name, devices=6, judged=14, fleet=6).false_per_day <= 1


def test_a_device_that_never_was_silent_is_overdue_within_the_hour():
    rhythm = Rhythm.new(0.0)
    rhythm.spoke(30 * DAY_S)
    assert 300 <= rhythm.due(30 * DAY_S, LIMITS) - 30 * DAY_S < HOUR_S


def test_a_shop_is_not_overdue_at_night_and_soon_is_by_day():
    rhythm = shop(weeks=8)
    friday = (8 * 7 - 3) * 24 * HOUR_S
    assert rhythm.due(friday + 18 * HOUR_S, LIMITS) > friday + 32 * HOUR_S, "closed until 8 h"
    assert rhythm.due(friday + 11 * HOUR_S, LIMITS) < friday + 14 * HOUR_S, "silent since 11 h"


def test_in_a_large_fleet_one_day_off_that_nobody_announced_is_no_alert_and_two_are():
    rhythm, large = shop(weeks=8), LIMITS._replace(rate=1e-4)
    tuesday = (8 * 7 - 6) * DAY_S + 18 * HOUR_S
    rhythm.spoke(tuesday)
    assert tuesday + 38 * HOUR_S < rhythm.due(tuesday, large) < tuesday + 62 * HOUR_S
    assert rhythm.due(tuesday, LIMITS) < tuesday + 22 * HOUR_S, "a small one need not wait"


def test_a_clock_change_does_not_make_a_shop_overdue():
    rhythm = shop(weeks=8)
    rhythm.spoke(rhythm.until_s - HOUR_S)
    monday = 8 * 7 * 24 * HOUR_S
    assert rhythm.due(rhythm.until_s, LIMITS) > monday + 9 * HOUR_S + 240


def test_a_new_device_is_overdue_after_a_day_and_beside_a_known_one_as_that_is():
    new = Rhythm.new(0.0)
    assert new.due(0.0, LIMITS) >= DAY_S
    assert new.due(0.0, LIMITS) <= 7 * DAY_S
    beside = shop(weeks=8).inherited(8 * 7 * DAY_S)
    assert beside.days == 14
    monday = 8 * 7 * DAY_S
    assert beside.due(monday + 11 * HOUR_S, LIMITS) < monday + 16 * HOUR_S


def test_a_larger_fleet_waits_longer_for_each_device_and_never_longer_than_the_bound():
    rhythm = Rhythm.new(0.0)
    for day in range(30):
        rhythm.gap((day + 0.5) * DAY_S, (day + 0.6) * DAY_S, 150.0)
    last = 30 * DAY_S
    waits = [rhythm.due(last, LIMITS._replace(rate=1 / n)) - last for n in (1, 100, 10_000, 10**9)]
    assert waits == sorted(waits)
    assert waits[0] < waits[2]
    assert waits[-1] <= LIMITS.most_s


def test_what_is_stored_of_a_device_is_small_and_read_back():
    rhythm = shop(weeks=3)
    data = rhythm.encode()
    assert len(data) < 800
    again = Rhythm.decode(data, 0.0)
    assert again.encode() == data
    assert np.allclose(again.presence, rhythm.presence, atol=0.01)
    assert np.array_equal(again.gaps, rhythm.gaps)


@pytest.mark.parametrize("data", [b"", b"x", b"\xff" * 761, bytes(2000)])
def test_a_damaged_state_is_a_new_device(data):
    assert Rhythm.decode(data, 5.0).presence.tolist() == [1.0] * HOURS
    assert Rhythm.decode(data, 5.0).until_s == 5.0
