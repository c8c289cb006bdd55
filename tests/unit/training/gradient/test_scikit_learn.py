"""What Shoal trains itself can go on learning on the devices."""

import warnings
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler, Normalizer, StandardScaler

from shoal.controller.training.gradient.losses import Loss
from shoal.controller.training.gradient.make import prepare, step_graph
from shoal.controller.training.gradient.optimisers import Adam
from shoal.controller.training.gradient.weights import write_theta
from shoal.controller.training.io.export import export
from shoal.params import Parameter
from unit.training.gradient.running import Trainer, session

MODELS = [
    ("mlp", load_digits, StandardScaler(), MLPClassifier((16,), max_iter=2), "cross-entropy"),
    ("two-class mlp", load_breast_cancer, MinMaxScaler(), MLPClassifier((8,), max_iter=2), "pair"),
    ("logistic", load_digits, StandardScaler(), LogisticRegression(max_iter=5), "cross-entropy"),
    ("two-class logistic", load_breast_cancer, Normalizer(), LogisticRegression(), "pair"),
    (
        "mlp regressor",
        load_diabetes,
        MinMaxScaler(),
        MLPRegressor(hidden_layer_sizes=(8,), activation="logistic", max_iter=2),
        "huber",
    ),
    ("ridge", load_diabetes, StandardScaler(), Ridge(1000.0), "mse"),
    ("linear", load_diabetes, StandardScaler(), LinearRegression(), "mse"),
]


@pytest.mark.parametrize(("name", "data", "scaler", "estimator", "loss"), MODELS)
def test_an_exported_pipeline_answers_the_same_and_learns_on(
    name: str, data: Any, scaler: Any, estimator: Any, loss: str
) -> None:
    x, y = data(return_X_y=True)
    x = x.astype(np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        pipeline = make_pipeline(scaler, estimator).fit(x, y)
    classifies = loss in ("cross-entropy", "pair")
    exported = export(pipeline, x.shape[1], len(np.unique(y)) if classifies else 1)
    prepared = prepare(exported, Loss("cross-entropy" if classifies else loss))  # type: ignore[arg-type]
    assert prepared.output.kind == {"cross-entropy": "logits", "pair": "pair"}.get(loss, "values")
    same = [session(m).run(None, {"input": x})[0] for m in (exported, prepared.inference)]
    np.testing.assert_allclose(*same, atol=1e-5, rtol=1e-6)
    trainer = Trainer(step_graph(prepared, Adam()), prepared.theta)
    labels = y if classifies else y.astype(np.float32)[:, None]
    losses = [trainer.step(x, labels, 0.003) for _ in range(60)]
    assert losses[-1] < losses[0] or name == "linear"


def test_an_mlp_for_digits_that_learns_only_this_way_is_right_on_95_of_100() -> None:
    x, y = load_digits(return_X_y=True)
    x = x.astype(np.float32)
    known, held, right, truth = train_test_split(x, y, random_state=0, stratify=y)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        pipeline = make_pipeline(StandardScaler(), MLPClassifier((64, 32), max_iter=1))
        pipeline.fit(known, right)
    prepared = prepare(export(pipeline, 64, 10), Loss("cross-entropy"))
    rng = np.random.default_rng(0)
    trainer = Trainer(step_graph(prepared, Adam()), fresh(prepared.parameters, rng))
    for _ in range(15):
        order = rng.permutation(len(known))[: len(known) // 32 * 32].reshape(-1, 32)
        trainer.train(((known[rows], right[rows]) for rows in order), 0.003)
    trained = write_theta(prepared.inference, trainer.spec, trainer.theta)
    answers = session(trained).run(None, {"input": held})[0]
    assert (answers.argmax(1) == truth).mean() >= 0.95


def fresh(parameters: tuple[Parameter, ...], rng: np.random.Generator) -> np.ndarray:
    """Numbers that know nothing: He's start for weights, 0 for biases."""
    parts = [
        rng.standard_normal(p.size) * (2 / p.shape[0]) ** 0.5 * (p.shape[0] > 1) for p in parameters
    ]
    return np.concatenate(parts).astype(np.float32)
