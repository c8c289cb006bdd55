"""Clock skew of this device against the controller, with its error bound.

The device requests the time and the controller responds with it. The controller's clock showed
that time between request and response, both taken here on the monotonic clock: this bounds the
difference from both sides, whatever the network and broker delayed (RFC 5905, section 8, gives the
same as offset and delay/2). Consistent responses narrow the bounds; an inconsistent one replaces
them, since the controller's clock was set.

>>> time = ControllerTime()
>>> time.asked(sent_s=1000.0, monotonic_s=5.0)
>>> time.answered(asked_s=1000.0, now_s=940.0, monotonic_s=5.5)
True
>>> time.skew(clock_s=1000.5, monotonic_s=5.5)
Skew(skew_s=60.25, error_s=0.25)
"""

import collections

from shoal.wire import Skew

#: Seconds between two requests: with good bounds, and before.
EVERY_S, SOON_S = 3_600.0, 60.0
#: Good bounds: within so many seconds.
GOOD_S = 1.0
#: A clock that is off by more than this, beyond the error bound, is wrong.
WRONG_S = 5.0
#: Drift of a quartz, or of a clock that is being slewed.
DRIFT = 200e-6
#: Requests that may still be responded to.
_OPEN = 16


class ControllerTime:
    """Bounds of the controller's clock: it shows monotonic + an offset in [low, high]."""

    def __init__(self) -> None:
        self._open: collections.OrderedDict[float, float] = collections.OrderedDict()
        self._bounds: tuple[float, float, float] | None = None  # low, high, when: monotonic
        self._next_s = float("-inf")

    def due(self, monotonic_s: float) -> bool:
        """Whether the next request is due."""
        return monotonic_s >= self._next_s

    def asked(self, sent_s: float, monotonic_s: float) -> None:
        """A request was sent, identified by its `sent_s`."""
        self._open[sent_s] = monotonic_s
        while len(self._open) > _OPEN:
            self._open.popitem(last=False)
        self._next_s = monotonic_s + SOON_S

    def answered(self, asked_s: float, now_s: float, monotonic_s: float) -> bool:
        """A response says that the clock showed `now_s`; whether it belongs to an open request."""
        sent = self._open.pop(asked_s, None)
        if sent is None:
            return False
        low, high = now_s - monotonic_s, now_s - sent + DRIFT * (monotonic_s - sent)
        known = self._widened(monotonic_s)
        if known is not None and known[0] <= high and low <= known[1]:
            low, high = max(low, known[0]), min(high, known[1])
        self._bounds = low, high, monotonic_s
        self._next_s = monotonic_s + (EVERY_S if high - low <= 2 * GOOD_S else SOON_S)
        return True

    def skew(self, clock_s: float, monotonic_s: float) -> Skew | None:
        """How far a clock that shows `clock_s` now is ahead; None before the first response."""
        known = self._widened(monotonic_s)
        if known is None:
            return None
        low, high = known
        middle = clock_s - monotonic_s - (low + high) / 2
        return Skew(skew_s=round(middle, 4), error_s=round((high - low) / 2, 4))

    def _widened(self, monotonic_s: float) -> tuple[float, float] | None:
        if self._bounds is None:
            return None
        low, high, when = self._bounds
        drifted = DRIFT * (monotonic_s - when)
        return low - drifted, high + drifted


def is_wrong(skew: Skew | None, limit_s: float = WRONG_S) -> bool:
    """Whether a clock is off by more than `limit_s` beyond the error bound."""
    return skew is not None and abs(skew.skew_s) - skew.error_s > limit_s


def describe(skew: Skew) -> str:
    """The skew as text, to be followed by "the controller's".

    >>> describe(Skew(skew_s=-93.04, error_s=0.01)), describe(Skew(skew_s=0.2, error_s=0.3))
    ('93 s behind', 'within 0.5 s of')
    >>> describe(Skew(skew_s=93.0, error_s=0.0))
    '93 s ahead of'
    """
    if abs(skew.skew_s) <= skew.error_s:
        return f"within {abs(skew.skew_s) + skew.error_s:.2g} s of"
    size = abs(skew.skew_s)
    number = f"{size:.0f}" if size >= 10 else f"{size:.2g}"
    return f"{number} s {'ahead of' if skew.skew_s > 0 else 'behind'}"
