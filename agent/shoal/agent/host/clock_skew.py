"""How far this device's clock is from the controller's, and how sure that is.

The device asks, the controller answers with its time. Somewhere between the question and the
answer, both timed here on a clock that nobody sets, the controller's clock showed what it says:
that bounds the difference from both sides, whatever the way there and back took, and whatever a
broker kept in between (RFC 5905, section 8, gives the same as offset and delay/2). Answers that
agree narrow it; one that does not is believed alone, for somebody set the controller's clock.

>>> time = ControllerTime()
>>> time.asked(sent_s=1000.0, monotonic_s=5.0)
>>> time.answered(asked_s=1000.0, now_s=940.0, monotonic_s=5.5)
True
>>> time.skew(clock_s=1000.5, monotonic_s=5.5)
Skew(skew_s=60.25, error_s=0.25)
"""

import collections

from shoal.wire import Skew

#: Seconds between two questions: once it is known well, and until then.
EVERY_S, SOON_S = 3_600.0, 60.0
#: Known well: bounds within so many seconds.
GOOD_S = 1.0
#: A clock that is off by more than this, bounds considered, is called wrong.
WRONG_S = 5.0
#: How much a quartz, or a clock that is being slewed, may gain or lose.
DRIFT = 200e-6
#: Questions that may still be answered.
_OPEN = 16


class ControllerTime:
    """What is known of the controller's clock: it shows monotonic + something in [low, high]."""

    def __init__(self) -> None:
        self._open: collections.OrderedDict[float, float] = collections.OrderedDict()
        self._bounds: tuple[float, float, float] | None = None  # low, high, when: monotonic
        self._next_s = float("-inf")

    def due(self, monotonic_s: float) -> bool:
        """Whether it is time to ask."""
        return monotonic_s >= self._next_s

    def asked(self, sent_s: float, monotonic_s: float) -> None:
        """A question was sent, named by its `sent_s`."""
        self._open[sent_s] = monotonic_s
        while len(self._open) > _OPEN:
            self._open.popitem(last=False)
        self._next_s = monotonic_s + SOON_S

    def answered(self, asked_s: float, now_s: float, monotonic_s: float) -> bool:
        """The controller's clock showed `now_s`; whether that answers a question of ours."""
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
        """How far a clock that shows `clock_s` now is ahead; None while nothing is known."""
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
    """Whether a clock is off by more than `limit_s` beyond doubt."""
    return skew is not None and abs(skew.skew_s) - skew.error_s > limit_s


def told(skew: Skew) -> str:
    """For a person, who goes on with "the controller's".

    >>> told(Skew(skew_s=-93.04, error_s=0.01)), told(Skew(skew_s=0.2, error_s=0.3))
    ('93 s behind', 'within 0.5 s of')
    >>> told(Skew(skew_s=93.0, error_s=0.0))
    '93 s ahead of'
    """
    if abs(skew.skew_s) <= skew.error_s:
        return f"within {abs(skew.skew_s) + skew.error_s:.2g} s of"
    size = abs(skew.skew_s)
    number = f"{size:.0f}" if size >= 10 else f"{size:.2g}"
    return f"{number} s {'ahead of' if skew.skew_s > 0 else 'behind'}"
