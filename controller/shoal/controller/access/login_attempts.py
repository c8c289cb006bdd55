"""Back-off of wrong passwords, by user and address together, and rates of attempts.

Who guesses a user's password waits ever longer, at that address; the user elsewhere does not. An
address and a user have a rate besides. Who shows a second proof (a browser in which the user signed
in before, a valid token of the user) is counted by it alone: neither guesses at the account nor a
neighbour behind the same address lock anybody out who has one.
"""

import threading
from collections import OrderedDict, deque
from typing import NamedTuple

from shoal.errors import DeniedError

_WINDOW_S = 60.0
_KEYS = 10_000
#: Wrong passwords before the first wait, which then doubles up to the longest.
FREE, FIRST_S, LONGEST_S = 5, 60.0, 3_600.0
#: Wrong passwords are forgotten after so long without another.
FORGOTTEN_S = 86_400.0


class Rate(NamedTuple):
    """At most `limit` attempts per minute under `key`."""

    key: str
    limit: int


class Origin(NamedTuple):
    """Where an attempt comes from. guess: what backs off; rates: what limits it besides."""

    guess: str
    rates: tuple[Rate, ...] = ()


def origin_of(user: str, address: str, proof: str = "") -> Origin:
    """Origin of an attempt of `user`; with a second proof, it is counted by that alone."""
    if proof:
        return Origin(f"{user}#{proof}")
    return Origin(f"{user}@{address}", (Rate(f"@{address}", 30), Rate(f"{user}@", 60)))


class _Guesses(NamedTuple):
    number: int
    at: float
    told: bool


class Attempts:
    """Attempts by origin, bounded in memory, for one web process.

    An attempt is counted before its password is verified, so parallel requests cannot exceed the
    limit.
    """

    def __init__(self) -> None:
        self._guesses: OrderedDict[str, _Guesses] = OrderedDict()
        self._times: OrderedDict[str, deque[float]] = OrderedDict()
        self._lock = threading.Lock()

    def begin(self, origin: Origin, now: float) -> None:
        """Count one attempt; DeniedError with `retry_after_s` when it is too early."""
        with self._lock:
            wait = max([self._wait(origin.guess, now), *(self._full(r, now) for r in origin.rates)])
            if wait > 0:
                raise DeniedError(
                    "too many attempts to sign in",
                    f"wait {wait:.0f} s",
                    signed_in=False,
                    retry_after_s=round(wait),
                )
            before = self._guesses.get(origin.guess)
            self._guesses[origin.guess] = _Guesses(before.number + 1 if before else 1, now, False)
            self._guesses.move_to_end(origin.guess)
            for key, _ in origin.rates:
                self._times.setdefault(key, deque()).append(now)
                self._times.move_to_end(key)
            for kept in (self._guesses, self._times):
                while len(kept) > _KEYS:
                    kept.popitem(last=False)

    def succeeded(self, origin: Origin) -> None:
        """Forget the wrong passwords of this origin, and of the rates this attempt alone: who can
        sign in as one user must not guess another's password faster."""
        with self._lock:
            self._guesses.pop(origin.guess, None)
            for key, _ in origin.rates:
                if times := self._times.get(key):
                    times.pop()

    def is_news(self, origin: Origin) -> bool:
        """Whether this is the first refused attempt since the last counted one: one log entry."""
        with self._lock:
            found = self._guesses.get(origin.guess)
            if found is None or found.told:
                return False
            self._guesses[origin.guess] = found._replace(told=True)
            return True

    def _wait(self, key: str, now: float) -> float:
        found = self._guesses.get(key)
        if found is not None and found.at < now - FORGOTTEN_S:
            found = None
            del self._guesses[key]
        if found is None or found.number < FREE:
            return 0.0
        wait = min(FIRST_S * 2.0 ** min(found.number - FREE, 10), LONGEST_S)
        left = found.at + wait - now
        return max(1.0, left) if left > 0 else 0.0

    def _full(self, rate: Rate, now: float) -> float:
        times = self._times.get(rate.key, deque())
        while times and times[0] <= now - _WINDOW_S:
            times.popleft()
        return max(1.0, times[0] + _WINDOW_S - now) if len(times) >= rate.limit else 0.0
