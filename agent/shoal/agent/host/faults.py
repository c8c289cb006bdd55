"""Faults are collapsed, not streamed: the first of a kind at once, then one with a count."""

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


class Faults:
    """Decides which faults are told now.

    >>> faults = Faults()
    >>> faults.note(Fault("nan", "temp"), 0.0).times, faults.note(Fault("nan", "temp"), 1.0)
    (1, None)
    >>> faults.due(400.0)[0].times
    1
    """

    def __init__(self, quiet_s: float = QUIET_S) -> None:
        self._quiet_s = quiet_s
        self._told: dict[str, float] = {}
        self._held: dict[str, Fault] = {}

    def note(self, fault: Fault, now_s: float) -> Fault | None:
        """The fault if it is to be told now; else it is counted and held back."""
        last = self._told.get(fault.cause)
        if last is not None and now_s - last < self._quiet_s:
            held = self._held.get(fault.cause)
            total = fault.times + (held.times if held else 0)
            self._held[fault.cause] = fault._replace(times=total)
            return None
        if len(self._told) >= _KINDS:
            self._told.pop(min(self._told, key=lambda cause: self._told[cause]))
        self._told[fault.cause] = now_s
        return fault

    def due(self, now_s: float) -> list[Fault]:
        """Held back faults whose quiet time is over."""
        ready = [c for c in self._held if now_s - self._told.get(c, 0.0) >= self._quiet_s]
        for cause in ready:
            self._told[cause] = now_s
        return [self._held.pop(cause) for cause in ready]
