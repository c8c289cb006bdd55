"""Wait for a condition that another thread or process brings about."""

import time
from collections.abc import Callable
from typing import Any

PATIENCE_S = 20.0


def eventually(condition: Callable[[], Any], what: str = "", within_s: float = PATIENCE_S) -> None:
    """Wait until `condition` holds, or fail with `what`."""
    end = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < end, f"not within {within_s:g} s: {what}"
        time.sleep(0.02)
