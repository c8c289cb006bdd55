"""The installed onnxruntime: its version, and the opsets that it loads."""

from collections.abc import Callable
from typing import NamedTuple

#: Every onnxruntime loads the one, and none the other.
OLDEST_OPSET, NEWEST_OPSET = 13, 60


class Runtime(NamedTuple):
    """The onnxruntime that is installed: its version, and whether it loads an ONNX opset.

    To ask for one that it does not load costs 1.3 MB of its pages, for good.
    """

    ort: str
    loads: Callable[[int], bool]

    def newest(self) -> int:
        """The newest opset that it loads, by bisection."""
        low, high = OLDEST_OPSET, NEWEST_OPSET
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.loads(middle) else (low, middle - 1)
        return low
