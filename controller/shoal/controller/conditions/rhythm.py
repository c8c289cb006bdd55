"""When a silent device is overdue: learnt from its own gaps, within a budget of false alerts.

Two clocks are kept for each device. The wall clock, for devices that wake once in a while. And the
clock of the hours in which the device is usually there (presence by hour of the week, learnt with a
factor of one half, eroded by an hour at its edges for shops that close early and for daylight
saving): a shop that closes at night is not overdue at night, and soon is by day.

On each clock the gaps longer than `noted_s` are counted in bins of a quarter of an octave. The
bound is the gap that is expected to be exceeded `rate` times a day, extrapolated by a Pareto tail
above a high quantile (Hill's estimator, with a prior of TAIL over PRIOR gaps, and its upper
confidence limit, because few gaps are known of a good device):

    bound = u * (gaps a day above u / rate) ** tail

and is never below what was exceeded more often than that. In a fleet so large that days off which
nobody announces would use up the budget, a device that closes each night may miss one such day.

References: B. M. Hill, "A simple general approach to inference about the tail of a distribution",
Annals of Statistics 3 (1975); I. Weissman, "Estimation of parameters and large quantiles based on
the k largest observations", JASA 73 (1978).
"""

import struct
from typing import NamedTuple, Self

import numpy as np

HOURS, HOUR_S, DAY_S = 168, 3_600.0, 86_400.0
#: Bins of gaps: FIRST_S * RATIO ** k; four an octave, up to 45 days.
BINS, FIRST_S, RATIO = 72, 15.0, 2.0**0.25
#: Prior of the tail's exponent, in how many gaps it counts, and the confidence of the limit in sd.
TAIL, PRIOR, LIMIT_SD = 0.35, 10.0, 1.3
#: What was learnt counts half after so many days. For so many a device is new: its usual hours are
#: not known, and no gap is counted on their clock.
HALVED_DAYS, NEW_DAYS = 56.0, 14.0
#: A new device is overdue after a day at the earliest: one night off is not known yet.
NEW_S = DAY_S
#: Whole days off that nobody announces, per day, of any device that closes each night: where the
#: budget is below, it may miss one such day, and is overdue so far into the next.
DAYS_OFF, DAY_AFTER, _CLOSES_H = 1 / 500, 1.25, 20
#: Hours with a presence below this do not count.
_RARELY = 0.3
_LONGEST_S = 14 * DAY_S
_HEAD = struct.Struct("<Bdd")
_VERSION = 1


class Limits(NamedTuple):
    """Bounds of what is learnt.

    least_s, most_s  a device is never overdue earlier, and always later
    rate             false alerts a day that this device may raise
    noted_s          shorter gaps are not counted
    """

    least_s: float
    most_s: float
    rate: float
    noted_s: float


class Rhythm:
    """What is known of one device's gaps: O(1), 750 bytes.

    until_s   Unix seconds up to which it was observed; 0: never
    days      observed, decayed
    presence  float32 (HOURS,): share of weeks in which it was there, by hour since the epoch
    gaps      float32 (2, BINS): decayed counts of gaps on the wall clock and on the presence clock
    """

    def __init__(self, until_s: float, days: float, presence: np.ndarray, gaps: np.ndarray) -> None:
        self.until_s, self.days, self.presence, self.gaps = until_s, days, presence, gaps

    @classmethod
    def new(cls, now: float) -> Self:
        return cls(now, 0.0, np.ones(HOURS, np.float32), np.zeros((2, BINS), np.float32))

    @classmethod
    def decode(cls, data: bytes, now: float) -> Self:
        """What `encode` returned; a new rhythm for anything else."""
        size = _HEAD.size + HOURS + 8 * BINS
        if len(data) != size or data[0] != _VERSION:
            return cls.new(now)
        _, until, days = _HEAD.unpack_from(data)
        presence = np.frombuffer(data, np.uint8, HOURS, _HEAD.size) / np.float32(255)
        gaps = np.frombuffer(data, "<f4", 2 * BINS, _HEAD.size + HOURS).reshape(2, BINS).copy()
        return cls(until, days, presence, gaps)

    def encode(self) -> bytes:
        presence = np.rint(self.presence * 255).astype(np.uint8)
        head = _HEAD.pack(_VERSION, self.until_s, self.days)
        return head + presence.tobytes() + self.gaps.astype("<f4").tobytes()

    def inherited(self, now: float) -> "Rhythm":
        """The rhythm of a new device beside this one: the same, but less is known of it."""
        share = min(1.0, NEW_DAYS / max(self.days, NEW_DAYS))
        return Rhythm(now, self.days * share, self.presence.copy(), self.gaps * share)

    def spoke(self, at: float) -> None:
        """It was there up to `at`, without a gap worth noting."""
        if at > self.until_s:
            self._observed(at)
            _toward(self.presence, self.until_s, at, 1.0)
            self.until_s = at

    def gap(self, start: float, end: float, noted_s: float) -> None:
        """It was there up to `start`, then silent up to `end`."""
        self.spoke(start)
        for clock, seconds in enumerate((end - start, self._present_s(start, end))):
            known = clock == 0 or self.days >= NEW_DAYS
            if known and seconds >= noted_s:
                self.gaps[clock, _bin(seconds)] += 1
        whole = -(-start // HOUR_S) * HOUR_S, end // HOUR_S * HOUR_S
        _toward(self.presence, *whole, 0.0)
        self._observed(end)
        self.until_s = end

    def due(self, last: float, limits: Limits) -> float:
        """When it is overdue that was heard at `last`, Unix seconds."""
        wall_s, present_s = (self._bound(clock, limits) for clock in (0, 1))
        least_s = max(limits.least_s, NEW_S if self.days < NEW_DAYS else 0.0)
        wall_s = min(max(wall_s, least_s), max(limits.most_s, limits.least_s))
        present_s = max(present_s, limits.least_s, self._day_off_s(limits))
        early_s = self._after(last, present_s, wall_s)
        return last + min(wall_s, max(early_s, least_s))

    def bound_s(self, limits: Limits) -> float:
        """Seconds of its usual hours after which it is overdue, for people."""
        present_s = max(self._bound(1, limits), self._day_off_s(limits))
        return max(limits.least_s, min(present_s, limits.most_s))

    def _day_off_s(self, limits: Limits) -> float:
        """Presence that a device which closes each day may miss at once; 0 for any other.

        A whole day is no value in the tail of its gaps of minutes: it either happens or does not.
        """
        longest_h = float(self._weights().reshape(7, 24).sum(axis=1).max())
        counts = limits.rate < DAYS_OFF and longest_h < _CLOSES_H
        return DAY_AFTER * longest_h * HOUR_S if counts else 0.0

    def _bound(self, clock: int, limits: Limits) -> float:
        gaps = self.gaps[clock]
        total = float(gaps.sum())
        above = np.cumsum(gaps[::-1])[::-1]  # gaps in this bin or above it
        first = _bin(limits.noted_s)
        wanted = max(8.0, total**0.5)  # the tail is fitted to so many of the longest
        u = first if total <= wanted else max(first, int(np.flatnonzero(above >= wanted)[-1]))
        count = float(above[u])
        logs = float(gaps[u:] @ (np.arange(BINS - u, dtype=np.float32) + 0.5)) * np.log(RATIO)
        tail = (logs + PRIOR * TAIL) / (count + PRIOR)
        tail *= 1 + LIMIT_SD / (count + PRIOR) ** 0.5
        a_day = (count + 0.5) / (self.days + 1)
        fitted = FIRST_S * RATIO**u * max(1.0, 2 * a_day / limits.rate) ** tail
        often = np.flatnonzero((above > 0) & (2 * (above + 0.5) > limits.rate * (self.days + 1)))
        seen = FIRST_S * RATIO ** (int(often[-1]) + 1) if len(often) else 0.0
        return float(max(fitted, seen))

    def _weights(self) -> np.ndarray:
        p = self.presence
        eroded = np.minimum(np.minimum(np.roll(p, 1), p), np.roll(p, -1))
        return np.where(eroded < _RARELY, 0.0, eroded)

    def _present_s(self, start: float, end: float) -> float:
        lengths, hours = _hours(start, min(end, start + _LONGEST_S))
        return float(lengths @ self._weights()[hours])

    def _after(self, start: float, present_s: float, most_s: float) -> float:
        """Seconds from `start` until so many of presence have passed; `most_s` if later."""
        lengths, hours = _hours(start, start + min(most_s, _LONGEST_S))
        weights = self._weights()[hours]
        passed = np.cumsum(lengths * weights)
        at = int(np.searchsorted(passed, present_s))
        if at == len(passed):
            return most_s
        before = passed[at - 1] if at else 0.0
        return float(lengths[:at].sum() + (present_s - before) / weights[at])

    def _observed(self, until: float) -> None:
        self.days += max(0.0, until - self.until_s) / DAY_S
        if self.days > HALVED_DAYS:
            self.days, self.gaps = self.days / 2, self.gaps / 2


def _bin(seconds: float) -> int:
    return int(np.clip(np.log(seconds / FIRST_S) / np.log(RATIO), 0, BINS - 1))


def _hours(start: float, end: float) -> tuple[np.ndarray, np.ndarray]:
    """Seconds of [start, end) in each hour that it touches, and the hours of the week."""
    first, last = int(start // HOUR_S), int(-(-end // HOUR_S))
    edges = np.clip(np.arange(first, last + 1) * HOUR_S, start, end)
    return np.diff(edges), np.arange(first, last) % HOURS


def _toward(presence: np.ndarray, start: float, end: float, value: float) -> None:
    """Move the presence of the hours in [start, end) halfway to `value`."""
    if end > start:
        _, hours = _hours(max(start, end - HOURS * HOUR_S), end)
        presence[hours] += (np.float32(value) - presence[hours]) / 2
