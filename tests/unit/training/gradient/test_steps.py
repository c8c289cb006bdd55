"""What a train graph does in a step, in many, and at any batch size."""

import numpy as np
import numpy.typing as npt
import pytest

from shoal.controller.training.gradient.losses import Loss
from shoal.controller.training.gradient.make import (
    Prepared,
    gradient_graph,
    loss_graph,
    prepare,
    step_graph,
)
from shoal.controller.training.gradient.many import many_steps
from shoal.controller.training.gradient.optimisers import Adam, Momentum, Optimiser, Sgd
from shoal.controller.training.gradient.weights import read_theta, write_theta
from shoal.errors import ModelError
from shoal.params import spec_of
from unit.training.gradient.models import classes, mlp
from unit.training.gradient.running import Trainer, session

OPTIMISERS: list[Optimiser] = [Sgd(), Momentum(0.8), Adam(0.8, 0.95)]
by_optimiser = pytest.mark.parametrize("optimiser", OPTIMISERS, ids=lambda o: o.name)


@pytest.fixture
def prepared() -> Prepared:
    return prepare(mlp("Softmax"), Loss("cross-entropy"))


def gradient_of(prepared: Prepared, theta: npt.NDArray, x: npt.NDArray, y: npt.NDArray):
    feed = {"theta": theta, "x": x, "y": y}
    return session(gradient_graph(prepared)).run(["gradient"], feed)[0]


@pytest.mark.parametrize("rows", [1, 2, 3, 7, 32, 257])
def test_one_graph_takes_any_batch_and_its_gradient_is_the_mean_over_rows(
    prepared: Prepared, rows: int
) -> None:
    running, (x, y) = session(gradient_graph(prepared)), classes(rows)
    theta = {"theta": prepared.theta}
    whole = running.run(["gradient"], theta | {"x": x, "y": y})[0]
    each = [
        running.run(["gradient"], theta | {"x": x[i : i + 1], "y": y[i : i + 1]})[0]
        for i in range(rows)
    ]
    np.testing.assert_allclose(whole, np.mean(each, 0), atol=1e-6)


@by_optimiser
def test_a_step_is_what_the_optimisers_textbook_says(
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


@by_optimiser
def test_many_steps_in_one_call_are_the_same_steps_bit_by_bit(
    prepared: Prepared, optimiser: Optimiser
) -> None:
    graph = step_graph(prepared, optimiser)
    single = Trainer(graph, prepared.theta)
    many = Trainer(many_steps(graph), prepared.theta)
    batches = [classes(16, seed=seed) for seed in range(12)]
    losses = single.train(batches, lr=0.1)
    x, y = (np.stack(parts) for parts in zip(*batches, strict=True))
    again = [*many.steps_at_once(x[:5], y[:5], 0.1), *many.steps_at_once(x[5:], y[5:], 0.1)]
    assert losses == again
    np.testing.assert_array_equal(many.theta, single.theta)
    np.testing.assert_array_equal(many.state, single.state)


def test_many_steps_take_the_round_terms_once_for_all_of_them(prepared: Prepared) -> None:
    graph = step_graph(prepared, Momentum(), proximal=True, shift=True)
    single, many = Trainer(graph, prepared.theta), session(many_steps(graph))
    terms = {"mu": 0.3, "theta0": prepared.theta, "shift": np.full_like(prepared.theta, 0.01)}
    batches = [classes(16, seed=seed) for seed in range(4)]
    for x, y in batches:
        single.step(x, y, 0.1, **terms)
    feed = {name: np.asarray(value, np.float32) for name, value in terms.items()}
    feed |= {"theta": prepared.theta, "state": np.zeros_like(prepared.theta)}
    feed |= {"x": np.stack([x for x, _ in batches]), "y": np.stack([y for _, y in batches])}
    feed |= single.spec.many_scalars(0.1, 1, len(batches))
    np.testing.assert_array_equal(many.run(["theta_out"], feed)[0], single.theta)


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
    np.testing.assert_array_equal(read_theta(prepared.inference, trainer.spec), prepared.theta)
    trainer.step(*classes(16), 0.1)
    trained = write_theta(prepared.inference, trainer.spec, trainer.theta)
    np.testing.assert_array_equal(read_theta(trained, trainer.spec), trainer.theta)
    x, y = classes(4)
    feed = {"theta": trainer.theta, "x": x, "y": y}
    right = session(loss_graph(prepared)).run(["answer"], feed)[0]
    np.testing.assert_allclose(session(trained).run(None, {"x": x})[0], right, atol=1e-6)


def test_theta_of_another_model_is_refused(prepared: Prepared) -> None:
    spec = Trainer(step_graph(prepared), prepared.theta).spec
    with pytest.raises(ModelError, match=r"theta has shape \(5,\)"):
        write_theta(prepared.inference, spec, np.zeros(5, np.float32))
    with pytest.raises(ModelError, match="no initialiser 'w1'"):
        read_theta(mlp(sizes=(4, 8, 3)), spec)


def test_a_graph_says_itself_how_it_trains_and_another_is_not_believed(
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
    with pytest.raises(ModelError, match="does not say how it trains"):
        spec_of(session(prepared.inference).get_modelmeta().custom_metadata_map)
