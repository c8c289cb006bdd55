"""What may happen to a feature, as a function of its rows: the faults that must be found."""

from collections.abc import Callable

import numpy as np

from shoal.sketch import F32

Change = Callable[[F32, np.random.Generator, F32], F32]


def _add(by: float) -> Change:
    return lambda x, _, __: x + np.float32(by)


def _times(by: float, add: float = 0.0) -> Change:
    return lambda x, _, __: x * np.float32(by) + np.float32(add)


def _some(share: float, value: float) -> Change:
    """A share of rows has another value."""

    def change(x: F32, rng: np.random.Generator, _: F32) -> F32:
        return np.where(rng.random(x.shape, np.float32) < share, np.float32(value), x)

    return change


def _stuck(x: F32, _: np.random.Generator, last: F32) -> F32:
    return np.broadcast_to(last, x.shape)


#: Name -> rows (n, F) after the change, from the rows without it, a generator, and the last row
#: before the change. Gain: of a sensor whose mean lies 5 sd above 0. Codes are integers.
CHANGES: dict[str, Change] = {
    "none": lambda x, _, __: x,
    "0.25 sd": _add(0.25),
    "0.5 sd": _add(0.5),
    "1 sd": _add(1.0),
    "variance x2": _times(float(np.sqrt(2))),
    "stuck": _stuck,
    "gain 1.1": _times(1.1, 0.5),
    "5 % missing": _some(0.05, np.nan),
    "3 % spikes": _some(0.03, 50.0),
    "new code": _some(0.1, 0.25),
    "unit change": _times(1.8, 32.0),
    "rows 40 %": lambda x, _, __: x[: int(0.4 * len(x))],
}
#: Changes of one kind alone: there are codes only there.
ONLY = {"new code": "integer codes"}
#: Changes of how many rows there are: the device's, not a feature's.
OF_ROWS = {"rows 40 %"}
