"""Labels as text to class indices or numbers."""

import math
from collections.abc import Sequence


def class_indices(classes: Sequence[str], labels: Sequence[str]) -> list[int]:
    """Index of each label in `classes`; -1 for a label that is no class.

    >>> class_indices(["0", "1"], ["1.0", " 0", "2"])
    [1, 0, -1]
    """
    known = {_canonical(name): i for i, name in enumerate(classes)}
    return [known.get(_canonical(label), -1) for label in labels]


def number(cell: object) -> float:
    """A table's cell as a number; NaN when it is none."""
    try:
        return float(cell)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):  # the last for an int beyond any float
        return math.nan


def _canonical(name: str) -> str:
    """ "3", "3.0" and " 3" name the same class."""
    value = number(name)
    return f"{value:g}" if math.isfinite(value) else name.strip()
