"""Every gradient is the slope that finite differences measure, in the graph that devices run."""

from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from onnx.reference.ops import op_conv_transpose
from scipy.special import erf

from shoal.controller.training.gradient.losses import Loss
from shoal.controller.training.gradient.make import Prepared, loss_graph, prepare
from shoal.controller.training.gradient.selection import named
from unit.training.gradient import cases
from unit.training.gradient.cases import Case, model_of, rows_of
from unit.training.gradient.running import OPERATORS, Gradient, session

#: Directions in which the slope is measured, each way by this much.
DIRECTIONS, STEP = 5, 1e-5
ALL = [
    *cases.LINEAR_ALGEBRA,
    *cases.ARITHMETIC,
    *cases.REDUCTIONS,
    *cases.ACTIVATIONS,
    *cases.MOVEMENT,
    *cases.CONVOLUTION,
    *cases.POOLING,
    *cases.NORMALISATION,
    *cases.RECURRENT,
]


def by_name(table: list[Case]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", table, ids=lambda case: case.name)


@by_name(cases.LINEAR_ALGEBRA)
def test_the_gradient_of_a_matrix_product_is_its_slope(case: Case) -> None:
    assert_slope(case)


@by_name(cases.ARITHMETIC)
def test_the_gradient_of_arithmetic_is_its_slope_whatever_was_broadcast(case: Case) -> None:
    assert_slope(case)


@by_name(cases.REDUCTIONS)
def test_the_gradient_of_a_reduction_is_its_slope(case: Case) -> None:
    assert_slope(case)


@by_name(cases.ACTIVATIONS)
def test_the_gradient_of_an_activation_is_its_slope(case: Case) -> None:
    assert_slope(case)


@by_name(cases.MOVEMENT)
def test_a_value_that_moved_takes_its_gradient_back_where_it_came_from(case: Case) -> None:
    assert_slope(case)


@by_name(cases.CONVOLUTION)
def test_the_gradient_of_a_convolution_is_its_slope(case: Case) -> None:
    assert_slope(case)


@by_name(cases.POOLING)
def test_the_gradient_of_pooling_is_its_slope(case: Case) -> None:
    assert_slope(case)


@by_name(cases.NORMALISATION)
def test_the_gradient_of_a_normalisation_is_its_slope(case: Case) -> None:
    assert_slope(case)


@by_name(cases.RECURRENT)
def test_the_gradient_of_a_recurrent_layer_is_its_slope(case: Case) -> None:
    assert_slope(case)


@by_name(cases.RECURRENT)
def test_a_recurrent_layer_written_out_answers_as_the_fused_operator_does(case: Case) -> None:
    prepared, x, y = prepared_of(case, np.float32, rows=3)
    fused = session(prepared.inference).run(None, {"x": x})[0]
    feed = {"theta": prepared.theta, "x": x, "y": y}
    written_out = session(loss_graph(prepared)).run(["answer"], feed)[0]
    np.testing.assert_allclose(written_out, fused, atol=1e-6)


def test_every_supported_operator_is_in_a_table() -> None:
    used = {n.op_type for case in ALL for n in model_of(case, np.float32).graph.node}
    assert sorted(set(OPERATORS) - used) == []


def assert_slope(case: Case) -> None:
    """onnxruntime's gradient, in float64 where it has the kernels, against measured slopes."""
    exact, x, y = prepared_of(case, np.float64, rows=3)
    measured, directions = slopes(exact, x, y)
    try:
        gradient, _ = Gradient(exact)(exact.theta, x, y)
        close = 1e-6
    except onnxruntime.capi.onnxruntime_pybind11_state.NotImplemented:
        single, x, y = prepared_of(case, np.float32, rows=3)
        gradient, _ = Gradient(single)(single.theta, x, y)
        close = 2e-5
    scale = max(1.0, np.abs(measured).max())
    np.testing.assert_allclose(directions @ gradient, measured, atol=close * scale)


def prepared_of(
    case: Case, dtype: npt.DTypeLike, rows: int
) -> tuple[Prepared, npt.NDArray, npt.NDArray]:
    """The case ready to train on squared distance, and rows for it."""
    model = model_of(case, dtype)
    prepared = prepare(model, Loss("mse"), named(["p", *case.weights]))
    x = rows_of(case, rows).astype(dtype)
    shape = session(model_of(case, np.float32)).run(None, {"x": x.astype(np.float32)})[0].shape
    y = np.random.default_rng(2).uniform(-1, 1, shape).astype(dtype)
    return prepared, x, y


def slopes(prepared: Prepared, x: npt.NDArray, y: npt.NDArray) -> tuple[npt.NDArray, npt.NDArray]:
    """Central differences of the loss along random directions: (D,), and those (D, P)."""
    loss = ReferenceEvaluator(loss_graph(prepared), new_ops=[Erf, Gelu, ConvTranspose])
    directions = np.random.default_rng(3).standard_normal((DIRECTIONS, prepared.theta.size))

    def at(theta: npt.NDArray) -> float:
        return float(loss.run(["loss"], {"theta": theta, "x": x, "y": y})[0])

    found = [
        (at(prepared.theta + STEP * d) - at(prepared.theta - STEP * d)) / (2 * STEP)
        for d in directions
    ]
    return np.array(found), directions


class Erf(OpRun):
    """onnx's own rounds to float32."""

    def _run(self, x: npt.NDArray) -> tuple[npt.NDArray]:
        return (erf(x),)


class Gelu(OpRun):
    """onnx's own rounds to float32."""

    def _run(self, x: npt.NDArray, approximate: str = "none") -> tuple[npt.NDArray]:
        inner = np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)
        return (x * (1 + (np.tanh(inner) if approximate == "tanh" else erf(x / 2**0.5))) / 2,)


class ConvTranspose(OpRun):
    """onnx's own fails for groups of several channels: here it does one group at a time."""

    def _run(
        self, x: npt.NDArray, w: npt.NDArray, b: npt.NDArray | None = None, **attributes: Any
    ) -> tuple[npt.NDArray]:
        groups = attributes.pop("group", None) or 1
        parts = [
            op_conv_transpose.ConvTranspose._run(self, *each, group=1, **attributes)[0]
            for each in zip(np.split(x, groups, 1), np.split(w, groups), strict=True)
        ]
        bias = 0 if b is None else b.reshape(1, -1, *[1] * (x.ndim - 2))
        return (np.concatenate(parts, 1) + bias,)
