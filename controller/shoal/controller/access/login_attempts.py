"""Rate limit of sign-in attempts, per user, address and pair of both."""

import threading
from collections import OrderedDict, deque
from typing import NamedTuple

from shoal.errors import DeniedError

_WINDOW_S = 60.0
_KEYS = 10_000


class Allowance(NamedTuple):
    """At most `limit` attempts per minute under `key`."""

    key: str
    limit: int


def allowances(user: str, address: str) -> tuple[Allowance, ...]:
    """Limits for a user at an address, for an address, and for a user from any address."""
    return (
        Allowance(f"{user}@{address}", 5),
        Allowance(f"@{address}", 30),
        Allowance(f"{user}@", 60),
    )


class Attempts:
    """Attempts of the last minute by key, bounded in memory, for one web process.

    An attempt is counted before its password is verified, so parallel requests cannot exceed the
    limit.
    """

    def __init__(self) -> None:
        self._times: OrderedDict[str, deque[float]] = OrderedDict()
        self._lock = threading.Lock()

    def begin(self, keys: tuple[Allowance, ...], now: float) -> None:
        """Count one attempt; DeniedError with `retry_after_s` when a limit is exceeded."""
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
        """Reset the counts after a correct password."""
        with self._lock:
            for key, _ in keys:
                self._times.pop(key, None)

    def _wait(self, key: str, limit: int, now: float) -> float:
        times = self._times.get(key, deque())
        while times and times[0] <= now - _WINDOW_S:
            times.popleft()
        return max(1.0, times[0] + _WINDOW_S - now) if len(times) >= limit else 0.0
