"""Rate limiting of faults: the first of a cause is reported at once, later ones with a count."""

from typing import Any, NamedTuple

#: Seconds between two reports of the same fault.
QUIET_S = 300.0
_KINDS = 64


class Fault(NamedTuple):
    """Something wrong. severity: "info", "warning" or "critical"; times it happened."""

    cause: str
    detail: str
    severity: str = "warning"
    times: int = 1
    facts: dict[str, Any] = {}  # noqa: RUF012 (a NamedTuple's default is never written to)


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

    def due(self, now_s: float) -> list[Fault]:
        """Held back faults that may be reported now."""
        ready = [c for c in self._held if now_s - self._reported.get(c, 0.0) >= QUIET_S]
        for cause in ready:
            self._reported[cause] = now_s
        return [self._held.pop(cause) for cause in ready]
