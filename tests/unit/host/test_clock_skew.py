"""What a device knows of the controller's clock, whatever the network does to the answers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.agent.host.clock import AHEAD_S, DeviceClock
from shoal.agent.host.clock_skew import EVERY_S, SOON_S, ControllerTime, describe, is_wrong
from shoal.wire import Skew

DELAY = st.floats(0, 30)
EXCHANGES = st.lists(st.tuples(st.floats(0, 900), DELAY, DELAY), min_size=1, max_size=12)


@given(exchanges=EXCHANGES, true_skew=st.floats(-1e6, 1e6), lazy=st.floats(-1e-4, 1e-4))
def test_the_true_difference_is_always_within_the_bounds(exchanges, true_skew, lazy) -> None:
    """Whatever each way took, and though the device's quartz runs fast or slow by 100 ppm."""
    time, now = ControllerTime(), 5e6  # true seconds

    def device(at: float) -> float:
        return at * (1 + lazy)

    def controller(at: float) -> float:
        return device(5e6) + at - 5e6 + 1e9

    for pause, there, back in exchanges:
        now += pause
        time.asked(now, device(now))
        assert time.answered(now, controller(now + there), device(now + there + back))
        now += there + back
        found = time.skew(controller(now) + true_skew, device(now))
        assert found is not None
        assert abs(found.skew_s - true_skew) <= found.error_s + 1e-3
        assert found.error_s <= (there + back) / 2 + 0.02


def test_a_time_response_to_a_request_of_an_earlier_process_is_ignored() -> None:
    """A broker keeps what it could not deliver, and gives it to the process that comes next."""
    time = ControllerTime()
    time.asked(1000.0, 5.0)
    assert not time.answered(100.0, 90.0, 5.1)
    assert time.skew(1000.0, 5.2) is None
    assert time.answered(1000.0, 1000.1, 5.3)
    assert not time.answered(1000.0, 4000.0, 5.4), "nor does one that comes twice"


def test_it_asks_soon_until_it_knows_and_then_once_an_hour() -> None:
    time = ControllerTime()
    assert time.due(0.0)
    time.asked(1.0, 0.0)
    assert not time.due(SOON_S - 1)
    assert time.due(SOON_S), "no answer came"
    time.asked(2.0, SOON_S)
    time.answered(2.0, 1000.0, SOON_S + 10)
    assert time.due(2 * SOON_S + 10), "the way was long: it knows too little"
    time.asked(3.0, 200.0)
    time.answered(3.0, 1140.0, 200.1)
    assert not time.due(200.0 + EVERY_S)
    assert time.due(201.0 + EVERY_S)


def test_when_the_controllers_clock_was_set_the_newest_sample_counts() -> None:
    time = ControllerTime()
    for asked, now in ((10.0, 1010.0), (20.0, 5020.0)):
        time.asked(asked, asked)
        time.answered(asked, now, asked + 0.1)
    found = time.skew(5020.1, 20.1)
    assert found is not None
    assert abs(found.skew_s) <= found.error_s + 1e-6


def test_a_clock_that_is_set_is_right_at_once_without_a_question() -> None:
    wall = [1_000_093.0]
    clock = DeviceClock(wall=lambda: wall[0], monotonic=lambda: 7.0)
    assert (clock.skew, clock.synced) == (None, True)
    clock.controller.asked(clock(), 6.5)
    clock.controller.answered(wall[0], 1_000_000.0, 7.0)
    assert not clock.synced
    assert clock.skew is not None
    assert describe(clock.skew) == "93 s ahead of"
    wall[0] -= 93
    assert clock.synced
    assert describe(clock.skew) == "within 0.5 s of"


@pytest.mark.parametrize(
    ("skew", "wrong"),
    [((4.9, 0.0), False), ((5.1, 0.0), True), ((-60.0, 58.0), False), ((-60.0, 1.0), True)],
)
def test_a_clock_is_called_wrong_only_beyond_doubt(skew, wrong) -> None:
    assert is_wrong(Skew(skew_s=skew[0], error_s=skew[1])) is wrong


def test_a_signature_moves_a_clock_that_the_network_sets_a_day_ahead_at_most() -> None:
    wall, network = [1_000_000.0], [True]
    clock = DeviceClock(wall=lambda: wall[0], monotonic=lambda: 7.0, disciplined=lambda: network[0])
    assert clock.clamp(wall[0] + 60) == wall[0] + 60
    assert clock.clamp(4.9e9) == wall[0] + AHEAD_S
    network[0] = False  # in 1970, for all that is known
    assert clock.clamp(4.9e9) == 4.9e9
