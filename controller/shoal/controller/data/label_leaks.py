"""Columns that give the label away, found when a table is added.

Training looks again, at its own rows as they are prepared (training/io/leakage.py).
"""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from shoal.controller.data.records import TableFinding

if TYPE_CHECKING:
    import pandas as pd

#: Rows, columns, and values of a label that are classes.
_ROWS, _COLUMNS, _CLASSES = 4_000, 500, 50
#: Share of rows that a rule on one column gets right, in every class, from which it is suspect.
_ALONE = 0.999
#: Rows below which chance may look like a leak.
_FEWEST = 40
#: Suspects beyond which the label is easy, and nothing leaks.
_MOST = 3


def step_of(rows: int) -> int:
    """Every how many rows are looked at."""
    return max(rows // _ROWS, 1)


def leaks(
    samples: Mapping[str, npt.NDArray[np.float64]], values: "pd.Series", label: str
) -> Iterator[TableFinding]:
    """A finding for each of the few features that alone tell the label.

    samples   of each feature, shape (n,), with NaN where a value is missing; values: of the label
    """
    import pandas as pd

    known = values.notna().to_numpy()
    codes, distinct = pd.factorize(values[known])
    quantity = pd.api.types.is_numeric_dtype(values) and len(distinct) > _CLASSES
    if known.sum() < _FEWEST or len(samples) < 2 or (len(distinct) > _CLASSES and not quantity):
        return
    y = values[known].to_numpy(np.float64) if quantity else codes
    found = []
    for name in list(samples)[:_COLUMNS]:
        x = samples[name][known]
        usable = np.abs(x) <= np.finfo(np.float32).max  # others are infinite for a model
        if usable.sum() >= _FEWEST and _predicts(x[usable], y[usable], quantity):
            found.append((name, int(usable.sum())))
    if len(found) <= min(_MOST, len(samples) - 1):
        for name, count in found:
            yield TableFinding(
                check="leak", warns=True, columns=[name, label], count=count, rows=[],
                what=f"{name} alone predicts {label}, in the rows that were looked at",
                hint=f"is it known before {label} is? If not: --drop {name}",
            )  # fmt: skip


def _predicts(x: npt.NDArray[np.float64], y: npt.NDArray, quantity: bool) -> bool:
    if quantity:
        if x.std() == 0 or y.std() == 0:
            return False
        return bool(np.corrcoef(x, y)[0, 1] ** 2 >= _ALONE)
    from sklearn.metrics import balanced_accuracy_score
    from sklearn.tree import DecisionTreeClassifier

    classes, counts = np.unique(y, return_counts=True)
    if len(classes) < 2 or counts.min() < 2:
        return False
    leaves = min(4 * len(classes), 64)
    rule = DecisionTreeClassifier(max_leaf_nodes=leaves, min_samples_leaf=2, random_state=0)
    learnt = np.arange(len(y)) % 2 == 0
    if len(np.unique(y[learnt])) < 2:
        return False
    rule.fit(x[learnt, None], y[learnt])
    sides = [(y[side], rule.predict(x[side, None])) for side in (learnt, ~learnt)]
    return min(float(balanced_accuracy_score(*side)) for side in sides) >= _ALONE
