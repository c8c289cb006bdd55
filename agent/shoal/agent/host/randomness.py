"""Port: random numbers."""

from typing import Protocol


class Random(Protocol):
    def random(self) -> float: ...
    def getrandbits(self, k: int, /) -> int: ...
