"""Which windows the drift decision looks at."""

import pytest

from shoal.controller.monitoring.drift_monitor import usable
from stored_windows import new_window


@pytest.mark.parametrize(
    ("change", "looked_at"),
    [
        ({}, True),
        ({"rows": 0}, False),
        ({"inputs": b""}, False),
        ({"window_s": 0.0}, False),
        ({"health": {"throttled": True}}, False),
    ],
)
def test_windows_without_rows_or_length_or_of_a_throttled_device_are_left_out(change, looked_at):
    assert usable(new_window("cam", 1, **{"inputs": b"sketch"} | change)) == looked_at
