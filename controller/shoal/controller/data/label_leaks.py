"""Columns that give the label away: often a copy of it, unknown when a device must predict.

One rule, for the cleaning report of a table that is added and for training: a few columns each
predict the label of rows that were not learnt from, and all the others together do not. A label
that the others predict as well is easy, and nothing leaks.
"""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from shoal.controller.data.records import TableFinding

if TYPE_CHECKING:
    import pandas as pd

#: Rows of a side and columns (the first ones) that are looked at; classes that a label may have.
_ROWS, _COLUMNS, _CLASSES = 4_000, 500, 50
#: Main metric from which a column is taken to give the label away; how much worse all other columns
#: together must do.
ALONE, GAP = 0.999, 0.02
#: Rows of a side below which chance may look like a leak.
_FEWEST = 20
_DEPTH, _LEAVES, _TREES = 8, 64, 40


class Sample(NamedTuple):
    """x: shape (n, columns), NaN where a value is missing; y: shape (n,), classes or a quantity."""

    x: npt.NDArray[np.floating[Any]]
    y: npt.NDArray[Any]


class Leaks(NamedTuple):
    """columns  indices of those that each predict the label alone, fewest distinct values first
    rest     main metric of all others together: balanced accuracy, or R2 of a quantity"""

    columns: list[int]
    rest: float


def leaks_of(learnt: Sample, held: Sample, *, quantity: bool, seed: int = 0) -> Leaks | None:
    """What gives the label of held back rows away; None for nothing.

    quantity   whether y is one, else it is classes
    """
    if quantity:
        learnt, held = _in_range(learnt), _in_range(held)
    if min(len(learnt.y), len(held.y)) < _FEWEST or learnt.x.shape[1] < 2:
        return None
    if any(len(np.unique(side.y)) < 2 for side in (learnt, held)):
        return None
    learnt, held = _some(learnt, seed), _some(held, seed)
    looked_at = range(min(learnt.x.shape[1], _COLUMNS))
    found = [i for i in looked_at if _alone(learnt, held, i, quantity) >= ALONE]
    others = [i for i in looked_at if i not in found]
    if not found or not others:
        return None
    rest = _together(learnt, held, others, quantity, seed)
    if rest > ALONE - GAP:
        return None
    found.sort(key=lambda i: len(np.unique(learnt.x[:, i])))  # a copy of classes has fewest values
    return Leaks(found, max(rest, 0.0))


def step_of(rows: int) -> int:
    """Every how many rows of a table are looked at."""
    return max(rows // (2 * _ROWS), 1)


def findings_of(
    samples: Mapping[str, npt.NDArray[np.float64]], values: "pd.Series", label: str
) -> Iterator[TableFinding]:
    """A finding for each column of a table that gives the label away.

    samples   of each feature, shape (n,), with NaN where a value is missing; values: of the label
    """
    import pandas as pd

    known = values.notna().to_numpy()
    codes, distinct = pd.factorize(values[known])
    quantity = pd.api.types.is_numeric_dtype(values) and len(distinct) > _CLASSES
    if not samples or (len(distinct) > _CLASSES and not quantity):
        return
    names = list(samples)[:_COLUMNS]
    both = Sample(
        np.column_stack([samples[name][known] for name in names]),
        values[known].to_numpy(np.float64) if quantity else codes,
    )
    mixed = np.random.default_rng(0).permutation(len(both.y))  # rows may be in an order
    sides = [Sample(both.x[some], both.y[some]) for some in (mixed[::2], mixed[1::2])]
    leaks = leaks_of(*sides, quantity=quantity)
    for i in leaks.columns if leaks else ():
        yield TableFinding(
            check="leak", warns=True, columns=[names[i], label],
            count=int(np.isfinite(both.x[:, i]).sum()), rows=[],
            what=(
                f"{names[i]} alone predicts {label}, and the other columns reach "
                f"{leaks.rest if leaks else 0:.2f}"
            ),
            hint=f"is it known before {label} is? If not: --drop {names[i]}",
        )  # fmt: skip


def _some(side: Sample, seed: int) -> Sample:
    if len(side.y) <= _ROWS:
        return side
    chosen = np.random.default_rng(seed).choice(len(side.y), _ROWS, replace=False)
    return Sample(side.x[chosen], side.y[chosen])


def _in_range(side: Sample) -> Sample:
    """Rows whose quantity a model of float32 may have."""
    kept = np.abs(side.y) <= np.finfo(np.float32).max
    return Sample(side.x[kept], side.y[kept])


def _alone(learnt: Sample, held: Sample, column: int, quantity: bool) -> float:
    """The main metric of the best cheap rule on one column, the worse of both sides."""
    from sklearn.linear_model import LinearRegression
    from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

    sides = [_usable(side, column) for side in (learnt, held)]
    if any(len(y) < _FEWEST or len(np.unique(y)) < 2 for _, y in sides):
        return -np.inf
    kind = DecisionTreeRegressor if quantity else DecisionTreeClassifier
    rules: list[Any] = [kind(max_depth=_DEPTH, max_leaf_nodes=_LEAVES, random_state=0)]
    rules += [LinearRegression()] if quantity else []
    fitted = [rule.fit(*sides[0]) for rule in rules]
    return max(min(_score(y, rule.predict(x), quantity) for x, y in sides) for rule in fitted)


def _usable(side: Sample, column: int) -> Sample:
    """Rows with a value in a column, which then has the shape (n, 1): others are infinite for a
    model of float32."""
    x = side.x[:, column]
    with np.errstate(invalid="ignore"):
        known = np.abs(x) <= np.finfo(np.float32).max
    return Sample(x[known, None], side.y[known])


def _together(learnt: Sample, held: Sample, columns: list[int], quantity: bool, seed: int) -> float:
    """The main metric of a forest (and a line, for a quantity) on several columns."""
    from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor
    from sklearn.linear_model import LinearRegression

    x, other = _filled(learnt.x[:, columns]), _filled(held.x[:, columns])
    kind = RandomForestRegressor if quantity else RandomForestClassifier
    most = "sqrt" if len(columns) > 30 else 1.0 if quantity else "sqrt"
    rules: list[Any] = [kind(_TREES, max_depth=12, max_features=most, random_state=seed)]
    rules += [LinearRegression()] if quantity else []
    return max(_score(held.y, rule.fit(x, learnt.y).predict(other), quantity) for rule in rules)


def _filled(x: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float64]:
    """Zeros for what no model of float32 takes: missing and infinite values."""
    with np.errstate(invalid="ignore"):
        return np.where(np.abs(x) <= np.finfo(np.float32).max, x, 0.0).astype(np.float64)


def _score(y: npt.NDArray[Any], predicted: npt.NDArray[Any], quantity: bool) -> float:
    """Balanced accuracy over the classes of y, or R2."""
    if quantity:
        return float(1 - np.sum((y - predicted) ** 2) / np.sum((y - y.mean()) ** 2))
    right = y == predicted
    return float(np.mean([right[y == one].mean() for one in np.unique(y)]))
