"""A power supply that fails at a chosen point."""

from collections.abc import Sequence
from typing import Any


class PowerCut(BaseException):
    """A BaseException: no `except Exception` in the product catches it."""


class Power:
    """Power supply that fails at point `cut`; points are before and after each durable operation.

    trace   names of the points passed so far
    """

    def __init__(self, cut: int = -1) -> None:
        self.cut, self.trace = cut, list[str]()

    def point(self, name: str) -> None:
        self.trace.append(name)
        if len(self.trace) - 1 == self.cut:
            raise PowerCut(name)

    def written(self, thing: Any, name: str) -> None:
        """Hook after method `name` of `thing`, for a subclass that tracks durable state."""

    def supply(self, thing: Any, *methods: str) -> Any:
        """Wrap `thing` with a point before and after each of these methods."""
        return _Wrapped(thing, self, methods)


class _Wrapped:
    def __init__(self, thing: Any, power: Power, methods: Sequence[str]) -> None:
        self._thing, self._power, self._methods = thing, power, methods

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._thing, name)
        if name not in self._methods:
            return found

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            self._power.point(f"before {name}")
            result = found(*args, **kwargs)
            self._power.written(self._thing, name)
            self._power.point(f"after {name}")
            return result

        return wrapped
