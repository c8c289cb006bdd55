"""Each loss is its textbook's, on logits wherever the model has them."""

import numpy as np
import numpy.typing as npt
import pytest
from scipy.special import expit, log_softmax, xlogy

from shoal.controller.training.gradient.losses import Loss
from shoal.controller.training.gradient.make import Prepared, loss_graph, prepare
from shoal.errors import ModelError
from unit.training.gradient.models import classes, mlp, written
from unit.training.gradient.running import Gradient, session

PAIR = """pair (float[N,5] x) => (float[N,2] out) {
    z = Gemm(x, w, b)  yes = Sigmoid(z)  no = Sub(one, yes)
    both = Concat<axis=1>(no, yes)  out = Identity(both) }"""
PAIR_TENSORS = {
    "w": np.linspace(-1, 1, 5, dtype=np.float32)[:, None],
    "b": np.array([0.3], np.float32),
    "one": np.array(1, np.float32),
}
X, Y = classes(16)
TARGETS = np.random.default_rng(3).standard_normal((16, 3)).astype(np.float32)
BITS = (TARGETS > 0).astype(np.float32)


def answers(prepared: Prepared, x: npt.NDArray = X) -> npt.NDArray[np.float64]:
    return session(prepared.inference).run(None, {"x": x})[0].astype(np.float64)


def loss_of(prepared: Prepared, y: npt.NDArray, x: npt.NDArray = X) -> float:
    feed = {"theta": prepared.theta, "x": x, "y": y}
    return float(session(loss_graph(prepared)).run(["loss"], feed)[0])


@pytest.mark.parametrize("tail", ["Identity", "Softmax", "LogSoftmax"])
def test_cross_entropy_is_the_same_whether_the_model_ends_in_a_softmax_or_not(tail: str) -> None:
    logits = answers(prepare(mlp(), Loss("mse")))
    right = -log_softmax(logits, 1)[np.arange(16), Y].mean()
    assert loss_of(prepare(mlp(tail), Loss("cross-entropy")), Y) == pytest.approx(right, rel=1e-6)


def test_cross_entropy_of_two_classes_from_one_logit_is_the_same() -> None:
    prepared = prepare(written(PAIR, PAIR_TENSORS), Loss("cross-entropy"))
    assert prepared.output.kind == "pair"
    right = -np.log(answers(prepared))[np.arange(16), Y % 2].mean()
    assert loss_of(prepared, Y % 2) == pytest.approx(right, rel=1e-5)


@pytest.mark.parametrize("tail", ["Identity", "Sigmoid"])
def test_bce_is_the_same_whether_the_model_ends_in_a_sigmoid_or_not(tail: str) -> None:
    p = expit(answers(prepare(mlp(), Loss("mse"))))
    right = -(xlogy(BITS, p) + xlogy(1 - BITS, 1 - p)).mean()
    assert loss_of(prepare(mlp(tail), Loss("bce")), BITS) == pytest.approx(right, rel=1e-6)


def test_mse_and_huber_are_means_over_all_elements() -> None:
    off = answers(prepare(mlp(), Loss("mse"))) - TARGETS
    assert loss_of(prepare(mlp(), Loss("mse")), TARGETS) == pytest.approx((off**2).mean())
    size = np.abs(off)
    huber = np.where(size < 0.7, 0.5 * size**2, 0.7 * (size - 0.35)).mean()
    assert loss_of(prepare(mlp(), Loss("huber", delta=0.7)), TARGETS) == pytest.approx(huber)


@pytest.mark.parametrize(
    ("tail", "loss", "y"),
    [
        ("Softmax", Loss("cross-entropy"), Y),
        ("Sigmoid", Loss("bce"), BITS),
        ("Identity", Loss("mse"), TARGETS),
        ("Identity", Loss("huber", 0.5), TARGETS),
    ],
    ids=lambda value: getattr(value, "kind", ""),
)
def test_the_gradient_of_a_loss_is_its_slope(tail: str, loss: Loss, y: npt.NDArray) -> None:
    prepared = prepare(mlp(tail), loss)
    assert_slope(prepared, y)


def test_the_gradient_of_a_loss_on_probabilities_is_its_slope() -> None:
    model = mlp("Softmax")
    assert_slope(prepare(model, Loss("cross-entropy"), answers="probabilities"), Y)
    assert_slope(prepare(written(PAIR, PAIR_TENSORS), Loss("cross-entropy")), Y % 2)


def assert_slope(prepared: Prepared, y: npt.NDArray) -> None:
    """Central differences in float32, so a long step and a loose comparison."""
    loss, feed = session(loss_graph(prepared)), {"x": X, "y": y}
    own, _ = Gradient(prepared)(prepared.theta, X, y)
    for direction in np.random.default_rng(0).standard_normal((4, prepared.theta.size)):
        step = (0.02 * direction / np.linalg.norm(direction)).astype(np.float32)
        up, down = (
            float(loss.run(["loss"], feed | {"theta": prepared.theta + sign * step})[0])
            for sign in (1, -1)
        )
        slope = float(own.astype(np.float64) @ step)
        assert up - down == pytest.approx(2 * slope, rel=2e-3, abs=3e-6)


@pytest.mark.parametrize(("loss", "y"), [("cross-entropy", Y), ("bce", BITS)])
def test_huge_logits_neither_overflow_nor_lose_the_gradient(loss: str, y: npt.NDArray) -> None:
    prepared = prepare(mlp("Softmax" if loss == "cross-entropy" else "Sigmoid"), Loss(loss))
    gradient, value = Gradient(prepared)(prepared.theta * 1000, X * 100, y)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()
    assert np.abs(gradient).max() > 0


def test_a_sequence_has_one_label_a_step() -> None:
    model = written(
        "tags (float[N,4,5] x) => (float[N,4,3] out) { z = MatMul(x, w)  out = Softmax(z) }",
        {"w": np.random.default_rng(0).standard_normal((5, 3)).astype(np.float32)},
    )
    prepared = prepare(model, Loss("cross-entropy"))
    x, y = X[:8].reshape(2, 4, 5), Y[:8].reshape(2, 4)
    p = np.take_along_axis(answers(prepared, x), y[..., None], 2)
    assert loss_of(prepared, y, x) == pytest.approx(-np.log(p).mean(), rel=1e-5)


def test_an_output_that_could_be_either_is_asked_about() -> None:
    with pytest.raises(ModelError, match='declare it: answers="logits"'):
        prepare(mlp("Exp"), Loss("cross-entropy"))
    assert prepare(mlp("Exp"), Loss("cross-entropy"), answers="logits").output.kind == "logits"


def test_cross_entropy_of_one_column_is_refused_with_what_to_use() -> None:
    with pytest.raises(ModelError, match="use bce for one column"):
        prepare(mlp(sizes=(5, 8, 1)), Loss("cross-entropy"))
