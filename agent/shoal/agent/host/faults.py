"""Rate limiting of faults: the first of a cause is reported at once, later ones with a count."""

import math
from typing import Any, NamedTuple

#: Seconds between two reports of the same fault.
QUIET_S = 300.0
#: Seconds without a repetition after which a cause is over; of a disk that takes writes again; of a
#: source or sink that is up again: one that is down tries again after a minute at most by default.
OVER_S, DISK_OVER_S, FEED_OVER_S = 600.0, 60.0, 120.0
#: Causes that are met once and last: until they are said to be over, or the agent starts again.
LASTING = frozenset(
    {
        "certificate", "copied", "director", "journal-lost", "outbox-damaged", "peers-off",
        "pressure", "rows-damaged", "short-memory", "slot-damaged", "too-hot",
    }
)  # fmt: skip
DISK = frozenset({"disk-full", "storage"})
_KINDS, _SHOWN = 64, 5


class Fault(NamedTuple):
    """Something wrong. severity: "info", "warning" or "critical"; times it happened."""

    cause: str
    detail: str
    severity: str = "warning"
    times: int = 1
    facts: dict[str, Any] = {}  # noqa: RUF012 (a NamedTuple's default is never written to)


def ended(cause: str) -> Fault:
    """Says that what caused faults of this cause is over."""
    return Fault(cause, "", "info", facts={"ended": True})


def disk_fault(detail: str) -> Fault:
    """The fault of a disk that refuses to write: "disk-full", or "storage" for any other reason.

    >>> disk_fault("journal.db: database or disk is full").cause
    'disk-full'
    >>> disk_fault("journal.db: attempt to write a readonly database").cause
    'storage'
    """
    full = "is full" in detail or "No space left" in detail or "quota" in detail
    return Fault("disk-full" if full else "storage", detail, "critical")


class Faults:
    """Limits reports to one per cause and QUIET_S.

    >>> faults = Faults()
    >>> faults.note(Fault("nan", "temp"), 0.0).times, faults.note(Fault("nan", "temp"), 1.0)
    (1, None)
    >>> faults.due(400.0)[0].times
    1
    """

    def __init__(self) -> None:
        self._reported: dict[str, float] = {}
        self._held: dict[str, Fault] = {}

    def note(self, fault: Fault, now_s: float) -> Fault | None:
        """The fault if it is to be reported now; else it is counted and held back."""
        last = self._reported.get(fault.cause)
        if last is not None and now_s - last < QUIET_S:
            held = self._held.get(fault.cause)
            total = fault.times + (held.times if held else 0)
            self._held[fault.cause] = fault._replace(times=total)
            return None
        if len(self._reported) >= _KINDS:
            self._reported.pop(min(self._reported, key=lambda cause: self._reported[cause]))
        self._reported[fault.cause] = now_s
        return fault

    def forget(self, cause: str) -> None:
        """A cause is over: its next fault is reported at once."""
        self._reported.pop(cause, None)
        self._held.pop(cause, None)

    def due(self, now_s: float) -> list[Fault]:
        """Held back faults that may be reported now."""
        ready = [c for c in self._held if now_s - self._reported.get(c, 0.0) >= QUIET_S]
        for cause in ready:
            self._reported[cause] = now_s
        return [self._held.pop(cause) for cause in ready]


class StandingFaults:
    """Faults that are not over, for the status page: an error must not outlive its cause.

    >>> standing = StandingFaults()
    >>> standing.note(Fault("nan", "temp is NaN"), 0.0); standing.texts
    ['nan: temp is NaN']
    >>> standing.over(599.0, disk_refuses=False), standing.over(601.0, disk_refuses=False)
    ([], ['nan'])
    """

    def __init__(self) -> None:
        self._found: dict[str, tuple[str, float]] = {}

    def note(self, fault: Fault, now_s: float) -> None:
        """A fault that is reported."""
        self._found.pop(fault.cause, None)
        self._found[fault.cause] = fault.detail, now_s
        if len(self._found) > _KINDS:
            del self._found[next(iter(self._found))]

    def met_s(self, cause: str, default_s: float) -> float:
        """When a fault was last met."""
        return self._found[cause][1] if cause in self._found else default_s

    def touch(self, cause: str, now_s: float) -> None:
        """A fault that is held back: it is not over."""
        if cause in self._found:
            self._found[cause] = self._found[cause][0], now_s

    def over(self, now_s: float, *, disk_refuses: bool) -> list[str]:
        """Causes that are over. disk_refuses: whether something waits for the disk."""
        limits = dict.fromkeys(DISK, math.inf if disk_refuses else DISK_OVER_S)
        limits |= dict.fromkeys(LASTING, math.inf) | {"feed-down": FEED_OVER_S}
        found = self._found.items()
        return [cause for cause, (_, at) in found if now_s - at > limits.get(cause, OVER_S)]

    def remove(self, cause: str) -> str | None:
        """A cause is over: the detail that was reported; None if it did not stand."""
        found = self._found.pop(cause, None)
        return found[0] if found else None

    @property
    def texts(self) -> list[str]:
        """The newest as "cause: detail"."""
        return [f"{cause}: {detail}" for cause, (detail, _) in self._found.items()][-_SHOWN:]
