"""Waiting for what other threads and processes do: for a condition, never for luck."""

import time
from collections.abc import Callable
from typing import Any

PATIENCE_S = 20.0


def eventually(condition: Callable[[], Any], what: str = "", within_s: float = PATIENCE_S) -> None:
    """Wait until `condition` holds, or fail saying `what` did not come."""
    end = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < end, f"not within {within_s:g} s: {what}"
        time.sleep(0.02)
