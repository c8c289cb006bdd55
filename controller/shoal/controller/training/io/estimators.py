"""Built-in estimators: scikit-learn pipelines that export to plain ONNX."""

import warnings
from typing import Any

import numpy as np
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import MinMaxScaler, StandardScaler

from shoal.controller.training.io import boosted_trees
from shoal.controller.training.io.rows import Rows
from shoal.errors import ModelError
from shoal.estimators import BoostedTrees, Forest, Linear, Mlp, Params


def fit(estimator: str, params: Params, rows: Rows) -> Pipeline:
    """Fit an estimator; ModelError when that fails."""
    pipeline = make_pipeline(*_steps(estimator, params))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # the metrics and the card show it
            fitted = pipeline.fit(rows.x, rows.y)
    except (ValueError, FloatingPointError, np.linalg.LinAlgError) as error:
        raise ModelError(
            f"{estimator} cannot be fitted to this data: {error}", "look at the data"
        ) from error
    if isinstance(params, BoostedTrees):
        boosted_trees.round_thresholds(fitted[-1])
    return fitted


def curves_of(pipeline: Pipeline) -> dict[str, list[float]]:
    """Training loss of each pass over the rows, where the estimator keeps it; else nothing."""
    losses = getattr(pipeline[-1], "loss_curve_", None)
    return {} if losses is None else {"loss": [float(loss) for loss in losses]}


def _steps(estimator: str, params: Params) -> list[Any]:
    scalers = {"minmax": MinMaxScaler, "standard": StandardScaler}
    seed = params.seed
    if isinstance(params, Mlp):
        kind = MLPClassifier if estimator == "mlp" else MLPRegressor
        network = kind(
            hidden_layer_sizes=tuple(params.hidden),
            alpha=params.alpha,
            max_iter=params.max_iter,
            random_state=seed,
        )
        return [scalers[params.scaler](), network]
    if isinstance(params, Linear):
        if estimator == "ridge":
            return [scalers[params.scaler](), Ridge(alpha=params.strength, random_state=seed)]
        linear = LogisticRegression(
            C=1 / params.strength, max_iter=params.max_iter, random_state=seed
        )
        return [scalers[params.scaler](), linear]
    if isinstance(params, BoostedTrees):
        return [boosted_trees.boosting(estimator, params)]
    assert isinstance(params, Forest)
    forest = RandomForestClassifier if estimator == "random-forest" else RandomForestRegressor
    return [forest(params.trees, max_depth=params.depth or None, random_state=seed)]
