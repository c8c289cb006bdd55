"""Columns that predict the label alone: often a copy of it, unknown when a device must predict."""

import numpy as np
import numpy.typing as npt
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor
from sklearn.linear_model import LinearRegression
from sklearn.metrics import balanced_accuracy_score, r2_score
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

from shoal.controller.training.io.rows import Data, Rows

#: Main metric from which a column is taken to give the label away.
ALONE = 0.999
#: How much worse all other columns together must do.
GAP = 0.02
#: Rows looked at per side, and held-back rows below which chance may look like a leak.
_MOST, _FEWEST = 4_000, 20
_DEPTH, _LEAVES = 8, 64
#: Columns looked at, the first ones: a tree each.
_COLUMNS = 500


def notes_on_leaks(data: Data, label: str, task: str, seed: int) -> list[str]:
    """A sentence when few columns each predict the label of held-back rows alone, and the others
    together do not; else nothing."""
    train, held = _some(data.train, seed), _some(data.held, seed)
    if len(held.y) < _FEWEST or len(data.features) < 2:
        return []
    if task == "classification" and len(np.unique(held.y)) < 2:
        return []
    looked_at = range(min(len(data.features), _COLUMNS))
    found = [i for i in looked_at if _alone(train, held, i, task) >= ALONE]
    others = [i for i in range(len(data.features)) if i not in found]
    if not found or not others:
        return []
    rest = _together(train, held, others, task, seed)
    if rest > ALONE - GAP:
        return []
    found.sort(key=lambda i: len(np.unique(train.x[:, i])))  # a copy of classes has fewest values
    names = ", ".join(repr(data.features[i]) for i in found[:5])
    subject = f"column {names}" if len(found) == 1 else f"each of {names}"
    note = (
        f"warning: {subject} alone predicts {label!r} on held-back rows, "
        f"and the other columns reach {max(rest, 0.0):.2f}: "
        "is it known before the label is? If not, drop it"
    )
    return [note]


def _some(rows: Rows, seed: int) -> Rows:
    if len(rows.y) <= _MOST:
        return rows
    chosen = np.random.default_rng(seed).choice(len(rows.y), _MOST, replace=False)
    return Rows(rows.x[chosen], rows.y[chosen], rows.site[chosen])


def _alone(train: Rows, held: Rows, column: int, task: str) -> float:
    """The main metric of the best cheap rule on one column, the worse of both sides."""
    x, other = train.x[:, [column]], held.x[:, [column]]
    if task == "classification":
        tree = DecisionTreeClassifier(max_depth=_DEPTH, max_leaf_nodes=_LEAVES, random_state=0)
        rules = [tree]
    else:
        tree = DecisionTreeRegressor(max_depth=_DEPTH, max_leaf_nodes=_LEAVES, random_state=0)
        rules = [tree, LinearRegression()]
    best = -np.inf
    for rule in rules:
        rule.fit(x, train.y)
        both = (_score(task, train.y, rule.predict(x)), _score(task, held.y, rule.predict(other)))
        best = max(best, min(both))
    return best


def _together(train: Rows, held: Rows, columns: list[int], task: str, seed: int) -> float:
    """The main metric of a forest (and a line, for a quantity) on several columns."""
    x, other = train.x[:, columns], held.x[:, columns]
    kind = RandomForestClassifier if task == "classification" else RandomForestRegressor
    rules = [kind(40, max_depth=12, random_state=seed)]
    rules += [LinearRegression()] if task == "regression" else []
    return max(_score(task, held.y, rule.fit(x, train.y).predict(other)) for rule in rules)


def _score(task: str, y: npt.NDArray, predicted: npt.NDArray) -> float:
    if task == "classification":
        return float(balanced_accuracy_score(y, predicted))
    return float(r2_score(y, predicted))
