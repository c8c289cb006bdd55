"""What a train graph does in a step, and at any batch size."""

import numpy as np
import numpy.typing as npt
import pytest
from onnx import ModelProto, numpy_helper

from shoal.controller.training.gradient.losses import Loss
from shoal.controller.training.gradient.make import (
    Prepared,
    loss_graph,
    prepare,
    step_graph,
)
from shoal.controller.training.gradient.optimisers import Adam, Momentum, Optimiser, Sgd
from shoal.controller.training.gradient.weights import write_theta
from shoal.errors import ModelError
from shoal.params import TrainSpec, spec_of
from unit.training.gradient.models import classes, mlp
from unit.training.gradient.running import Gradient, Trainer, session

OPTIMISERS: list[Optimiser] = [Sgd(), Momentum(0.8), Adam(0.8, 0.95)]
by_optimiser = pytest.mark.parametrize("optimiser", OPTIMISERS, ids=lambda o: o.name)


@pytest.fixture
def prepared() -> Prepared:
    return prepare(mlp("Softmax"), Loss("cross-entropy"))


def gradient_of(prepared: Prepared, theta: npt.NDArray, x: npt.NDArray, y: npt.NDArray):
    return Gradient(prepared)(theta, x, y)[0]


def theta_of(model: ModelProto, spec: TrainSpec) -> npt.NDArray:
    stored = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    return np.concatenate([stored[p.name].ravel() for p in spec.parameters])


@pytest.mark.parametrize("rows", [1, 2, 3, 7, 32, 257])
def test_one_graph_takes_any_batch_and_its_gradient_is_the_mean_over_rows(
    prepared: Prepared, rows: int
) -> None:
    gradient, (x, y) = Gradient(prepared), classes(rows)
    whole, _ = gradient(prepared.theta, x, y)
    each = [gradient(prepared.theta, x[i : i + 1], y[i : i + 1])[0] for i in range(rows)]
    np.testing.assert_allclose(whole, np.mean(each, 0), atol=1e-6)


@by_optimiser
def test_a_step_equals_the_optimisers_textbook_formula(
    prepared: Prepared, optimiser: Optimiser
) -> None:
    trainer = Trainer(step_graph(prepared, optimiser), prepared.theta)
    theta, m, v = prepared.theta.astype(np.float64), 0.0, 0.0
    for step in range(1, 11):
        x, y = classes(16, seed=step)
        g = gradient_of(prepared, theta.astype(np.float32), x, y).astype(np.float64)
        if optimiser.name == "sgd":
            theta = theta - 0.1 * g
        elif optimiser.name == "momentum":
            m = 0.8 * m + g
            theta = theta - 0.1 * m
        else:
            m, v = 0.8 * m + 0.2 * g, 0.95 * v + 0.05 * g * g
            mean, spread = m / (1 - 0.8**step), v / (1 - 0.95**step)
            theta = theta - 0.1 * mean / (np.sqrt(spread) + 1e-8)
        trainer.step(x, y, lr=0.1)
    np.testing.assert_allclose(trainer.theta, theta, atol=2e-5)


def test_fedprox_pulls_towards_where_the_round_began_and_leaves_the_loss_alone(
    prepared: Prepared,
) -> None:
    x, y = classes(16)
    start = prepared.theta + np.float32(0.1)
    plain = Trainer(step_graph(prepared), prepared.theta)
    pulled = Trainer(step_graph(prepared, proximal=True), prepared.theta)
    assert pulled.step(x, y, 0.1, mu=0.5, theta0=start) == plain.step(x, y, 0.1)
    expected = plain.theta - 0.1 * 0.5 * (prepared.theta - start)
    np.testing.assert_allclose(pulled.theta, expected, atol=1e-6)
    assert pulled.spec.proximal
    assert not plain.spec.proximal


def test_fedprox_with_a_heavy_weight_stays_nearer_over_an_epoch(prepared: Prepared) -> None:
    graph = step_graph(prepared, proximal=True)
    away = {}
    for mu in (0.0, 1.0):
        trainer = Trainer(graph, prepared.theta)
        for seed in range(40):
            trainer.step(*classes(16, seed=seed), 0.1, mu=mu, theta0=prepared.theta)
        away[mu] = np.linalg.norm(trainer.theta - prepared.theta)
    assert away[1.0] < 0.5 * away[0.0]


def test_a_shift_joins_the_gradient_as_scaffold_wants_it(prepared: Prepared) -> None:
    x, y = classes(16)
    shift = np.linspace(-1, 1, prepared.theta.size, dtype=np.float32)
    shifted = Trainer(step_graph(prepared, shift=True), prepared.theta)
    shifted.step(x, y, 0.1, shift=shift)
    expected = prepared.theta - 0.1 * (gradient_of(prepared, prepared.theta, x, y) + shift)
    np.testing.assert_allclose(shifted.theta, expected, atol=1e-6)


@pytest.mark.parametrize(("limit", "moved"), [(0.01, 0.01), (1e6, None)])
def test_a_gradient_is_shortened_to_the_limit_and_not_lengthened(
    prepared: Prepared, limit: float, moved: float | None
) -> None:
    x, y = classes(16)
    trainer = Trainer(step_graph(prepared, clip_norm=limit), prepared.theta)
    trainer.step(x, y, 1.0)
    length = np.linalg.norm(gradient_of(prepared, prepared.theta, x, y))
    step = np.linalg.norm(trainer.theta - prepared.theta)
    assert step == pytest.approx(moved or length, rel=1e-4)


def test_the_loss_graph_gives_the_loss_of_a_step_and_the_models_own_answer(
    prepared: Prepared,
) -> None:
    x, y = classes(16)
    feed = {"theta": prepared.theta, "x": x, "y": y}
    loss, answer = session(loss_graph(prepared)).run(["loss", "answer"], feed)
    assert loss == Trainer(step_graph(prepared), prepared.theta).step(x, y, 0.1)
    np.testing.assert_array_equal(answer, session(prepared.inference).run(None, {"x": x})[0])


def test_theta_goes_into_the_inference_graph_and_comes_out_of_it(prepared: Prepared) -> None:
    graph = step_graph(prepared)
    trainer = Trainer(graph, prepared.theta)
    np.testing.assert_array_equal(theta_of(prepared.inference, trainer.spec), prepared.theta)
    trainer.step(*classes(16), 0.1)
    trained = write_theta(prepared.inference, trainer.spec, trainer.theta)
    np.testing.assert_array_equal(theta_of(trained, trainer.spec), trainer.theta)
    x, y = classes(4)
    feed = {"theta": trainer.theta, "x": x, "y": y}
    right = session(loss_graph(prepared)).run(["answer"], feed)[0]
    np.testing.assert_allclose(session(trained).run(None, {"x": x})[0], right, atol=1e-6)


def test_theta_of_another_model_is_refused(prepared: Prepared) -> None:
    spec = Trainer(step_graph(prepared), prepared.theta).spec
    with pytest.raises(ModelError, match=r"theta has shape \(5,\)"):
        write_theta(prepared.inference, spec, np.zeros(5, np.float32))
    with pytest.raises(ModelError, match="no initialiser 'w1'"):
        write_theta(mlp(sizes=(4, 8, 3)), spec, prepared.theta)


def test_a_graph_declares_how_it_trains_and_a_contradiction_is_refused(
    prepared: Prepared,
) -> None:
    spec = Trainer(step_graph(prepared, Adam()), prepared.theta).spec
    assert [(p.name, p.shape, p.offset) for p in spec.parameters] == [
        ("w1", (5, 8), 0),
        ("b1", (8,), 40),
        ("w2", (8, 3), 48),
        ("b2", (3,), 72),
    ]
    assert (spec.size, spec.state, spec.loss, spec.classes) == (75, 150, "cross-entropy", 3)
    assert {name: part.shape for name, part in spec.split(prepared.theta).items()} == {
        p.name: p.shape for p in spec.parameters
    }
    with pytest.raises(ModelError, match="no train graph"):
        spec_of(session(prepared.inference).get_modelmeta().custom_metadata_map)
