"""Guesses at passwords, counted: after a few wrong ones, a wait."""

import threading
from collections import OrderedDict, deque
from typing import NamedTuple

from shoal.errors import DeniedError

_WINDOW_S = 60.0
_KEYS = 10_000


class Allowance(NamedTuple):
    """`limit` attempts in a minute for whoever shares `key`."""

    key: str
    limit: int


def allowances(user: str, address: str) -> tuple[Allowance, ...]:
    """Who shares what: one person's typing slips, one machine, and one name from everywhere."""
    return (
        Allowance(f"{user}@{address}", 5),
        Allowance(f"@{address}", 30),
        Allowance(f"{user}@", 60),
    )


class Attempts:
    """Attempts of the last minute by key, in memory and bounded: one web process, one count.

    Counted before the password is looked at, so that sixteen threads cannot try sixteen at once.
    """

    def __init__(self) -> None:
        self._times: OrderedDict[str, deque[float]] = OrderedDict()
        self._lock = threading.Lock()

    def begin(self, keys: tuple[Allowance, ...], now: float) -> None:
        """Count one attempt; DeniedError with `retry_after_s` when one of the keys had too many."""
        with self._lock:
            waits = [self._wait(key, limit, now) for key, limit in keys]
            if (wait := max(waits)) > 0:
                raise DeniedError(
                    "too many attempts to sign in",
                    f"wait {wait:.0f} s",
                    signed_in=False,
                    retry_after_s=round(wait),
                )
            for key, _ in keys:
                self._times.setdefault(key, deque()).append(now)
                self._times.move_to_end(key)
            while len(self._times) > _KEYS:
                self._times.popitem(last=False)

    def forget(self, keys: tuple[Allowance, ...]) -> None:
        """It was the right password: what came before were slips."""
        with self._lock:
            for key, _ in keys:
                self._times.pop(key, None)

    def _wait(self, key: str, limit: int, now: float) -> float:
        times = self._times.get(key, deque())
        while times and times[0] <= now - _WINDOW_S:
            times.popleft()
        return max(1.0, times[0] + _WINDOW_S - now) if len(times) >= limit else 0.0
