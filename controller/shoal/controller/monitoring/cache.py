"""What was read from the database and never changes, kept within a number of bytes."""

from collections import OrderedDict
from typing import Any, Generic, TypeVar

from shoal.controller.monitoring.drift import I64, Baseline

_K = TypeVar("_K")
_V = TypeVar("_V")
_COUNTS, _BASELINES = 128 << 20, 64 << 20


class Bounded(Generic[_K, _V]):
    """Least recently used goes first.

    >>> kept = Bounded(10)
    >>> kept.put("a", 1, 6); kept.put("b", 2, 6); kept.get("a"), kept.get("b")
    (None, 2)
    """

    def __init__(self, limit: int) -> None:
        self._limit, self._bytes = limit, 0
        self._kept: OrderedDict[_K, tuple[_V, int]] = OrderedDict()

    def get(self, key: _K) -> _V | None:
        found = self._kept.get(key)
        if found is None:
            return None
        self._kept.move_to_end(key)
        return found[0]

    def put(self, key: _K, value: _V, size: int) -> None:
        """Keep a value of `size` bytes under a key that is new."""
        self._kept[key] = (value, size)
        self._bytes += size
        while self._bytes > self._limit:
            _, (_, gone) = self._kept.popitem(last=False)
            self._bytes -= gone


class Memory:
    """counts: (device, boot, seq) -> a window's table; baselines: subject -> it, and its end."""

    def __init__(self) -> None:
        self.counts: Bounded[tuple[str, str, int], I64] = Bounded(_COUNTS)
        self.baselines: Bounded[Any, tuple[Baseline, float]] = Bounded(_BASELINES)
