"""When to try again what was refused: ever more rarely, each by its own name. Pure."""

import math
from collections.abc import Iterator
from typing import NamedTuple


class _Pause(NamedTuple):
    until_s: float
    length_s: float


class Retries:
    """Names of what was refused, with a pause each: doubled from first_s to longest_s.

    >>> retries = Retries(10.0, 60.0)
    >>> retries.failed("t", 0.0)
    >>> retries.waiting(9.0), retries.due(10.0)
    ({'t'}, ['t'])
    >>> retries.failed("t", 10.0)
    >>> retries.next_s(10.0)
    30.0
    """

    def __init__(self, first_s: float, longest_s: float) -> None:
        self._first_s, self._longest_s = first_s, longest_s
        self._pauses: dict[str, _Pause] = {}

    def __iter__(self) -> Iterator[str]:
        return iter(self._pauses)

    def __contains__(self, name: str) -> bool:
        return name in self._pauses

    def __len__(self) -> int:
        return len(self._pauses)

    def failed(self, name: str, now_s: float) -> None:
        """It was refused, again perhaps. now_s: any monotonic clock."""
        last = self._pauses.get(name)
        length = min(self._longest_s, last.length_s * 2) if last else self._first_s
        self._pauses[name] = _Pause(now_s + length, length)

    def worked(self, name: str) -> bool:
        """It is no longer refused; whether it was."""
        return self._pauses.pop(name, None) is not None

    def waiting(self, now_s: float) -> set[str]:
        """What is not to be tried yet."""
        return {name for name, pause in self._pauses.items() if pause.until_s > now_s}

    def due(self, now_s: float) -> list[str]:
        """What is to be tried again now."""
        return [name for name, pause in self._pauses.items() if pause.until_s <= now_s]

    def next_s(self, now_s: float) -> float:
        """When the next of those that wait is due; infinite without any."""
        later = (pause.until_s for pause in self._pauses.values())
        return min((at for at in later if at > now_s), default=math.inf)
