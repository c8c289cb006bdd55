"""Gradient-boosted trees: scikit-learn's histogram boosting, and its way through skl2onnx.

The converter of skl2onnx 1.20 hands onnx 1.23 values that it refuses: truth values where whole
numbers belong, and an array where a list does. Its answers are right once these are spelled out.
"""

from typing import Any

import numpy as np
from skl2onnx.operator_converters import random_forest
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

from shoal.estimators import BoostedTrees


def boosting(estimator: str, params: BoostedTrees) -> Any:
    """The unfitted estimator: a classifier, or a regressor by its name."""
    regressor = estimator.endswith("-regressor")
    kind = HistGradientBoostingRegressor if regressor else HistGradientBoostingClassifier
    return kind(
        max_iter=params.trees,
        learning_rate=params.rate,
        max_leaf_nodes=params.leaves,
        min_samples_leaf=params.least_rows,
        l2_regularization=params.l2,
        random_state=params.seed,
    )


def round_thresholds(fitted: Any) -> None:
    """Round thresholds down to float32, in place, for every float32 row to go the same way.

    They are float64 halfway between two values of a column; ONNX keeps float32, and the nearest one
    may be the larger value itself, which then turns the other way. x <= t is x <= float32 below t.
    """
    for stage in fitted._predictors:
        for tree in stage:
            exact = tree.nodes["num_threshold"]
            near = exact.astype(np.float32)
            below = np.nextafter(near, np.float32(-np.inf))
            tree.nodes["num_threshold"] = np.where(near > exact, below, near)


class _PlainAttributes:
    """A skl2onnx container that takes any number as an attribute."""

    def __init__(self, container: Any) -> None:
        self._container = container

    def __getattr__(self, name: str) -> Any:
        return getattr(self._container, name)

    def add_node(self, op_type: str, inputs: Any, outputs: Any, **attributes: Any) -> None:
        plain = {name: _plain(name, value) for name, value in attributes.items()}
        self._container.add_node(op_type, inputs, outputs, **plain)


def _plain(name: str, value: Any) -> Any:
    if name == "base_values":
        return np.ravel(value).tolist()
    if isinstance(value, list) and not any(isinstance(one, str | float) for one in value[:1]):
        return [int(one) for one in value]
    return value


def _classifier(scope: Any, operator: Any, container: Any) -> None:
    random_forest.convert_sklearn_random_forest_classifier(
        scope, operator, _PlainAttributes(container)
    )


def _regressor(scope: Any, operator: Any, container: Any) -> None:
    random_forest.convert_sklearn_random_forest_regressor_converter(
        scope, operator, _PlainAttributes(container)
    )


#: For skl2onnx.convert_sklearn(custom_conversion_functions=...).
CONVERTERS = {
    HistGradientBoostingClassifier: _classifier,
    HistGradientBoostingRegressor: _regressor,
}
