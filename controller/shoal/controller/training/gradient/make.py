"""Build a train graph from a model: `theta, state, x, y, lr -> theta_out, state_out, loss`."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from onnx import ModelProto, ValueInfoProto, helper

from shoal.controller.training.gradient.assembly import assemble, flatten
from shoal.controller.training.gradient.forward import (
    Forward,
    analyse,
    copy_of,
    set_nodes,
    with_prefix,
)
from shoal.controller.training.gradient.graph import FORWARD, ONNX_TYPE, OWN, Builder, Node
from shoal.controller.training.gradient.losses import Loss, labels_of, write_loss
from shoal.controller.training.gradient.model_output import Declared, ModelOutput, output_of
from shoal.controller.training.gradient.optimisers import Optimiser, Sgd
from shoal.controller.training.gradient.reading import read
from shoal.controller.training.gradient.reverse import (
    backpropagate,
    needs_unrolling,
    unroll_recurrent,
)
from shoal.controller.training.gradient.selection import Choice, everything
from shoal.controller.training.gradient.weights import layout_of
from shoal.errors import ModelError
from shoal.params import F32, Parameter, TrainSpec


class Prepared(NamedTuple):
    """A model ready for building train graphs.

    inference    the graph that devices serve: plain operators; takes theta by weights.write_theta
    parameters   layout of theta
    theta        float32 (P,): the model's current parameters
    forward      the model inside the train graph, recurrent layers unrolled
    output       tensor that the loss is computed from
    """

    inference: ModelProto
    parameters: tuple[Parameter, ...]
    theta: F32
    forward: Forward
    output: ModelOutput
    loss: Loss


def prepare(
    model: ModelProto,
    loss: Loss,
    choose: Choice = everything,
    *,
    output: str = "",
    answers: Declared = "auto",
) -> Prepared:
    """Prepare a model for training; ModelError says why it cannot be trained.

    choose    selects the initialisers that are trained: see selection
    output    the output that is trained, where there are several
    answers   whether the output is logits or probabilities, where that cannot be inferred
    """
    inference = read(model, output)
    plain = analyse(inference)
    names = choose(plain)
    _check_choice(plain, names)
    theta = np.concatenate([plain.constants[name].ravel() for name in names])
    forward = _with_unrolled_recurrence(
        with_prefix(inference), [FORWARD + name for name in names], theta.dtype
    )
    loss_input = output_of(forward, loss.kind, answers)
    layout = layout_of([plain.initializers[name] for name in names])
    return Prepared(inference, layout, theta, forward, loss_input, loss)


def step_graph(
    prepared: Prepared,
    optimiser: Optimiser | None = None,
    *,
    proximal: bool = False,
    shift: bool = False,
    clip_norm: float = 0.0,
) -> ModelProto:
    """Graph of one optimiser step. Inputs theta, state (none for SGD), x, y, lr, and optionally:

    correction    Adam's, computed by the host: TrainSpec.scalars
    mu, theta0    proximal: mu·(theta - theta0) is added to the gradient (FedProx)
    shift         a vector that is added to the gradient (SCAFFOLD's c - c_i)

    clip_norm     maximum norm of the gradient with all terms; 0 for no limit
    Outputs theta_out, state_out, and loss: of this batch before the step, without added terms.
    """
    optimiser = optimiser or Sgd()
    b, forward = _builder(prepared)
    gradient = _flat_gradient(b, prepared, forward)
    gradient = _with_terms(b, gradient, proximal, shift, clip_norm)
    direction, state = optimiser.step(b, gradient, _slots(b, optimiser.slots, prepared.theta.size))
    b.into("theta_out", "Sub", "theta", b.op("Mul", "lr", direction))
    if state:
        b.into("state_out", "Concat", *state, axis=0)
    spec = _spec(prepared, optimiser, proximal=proximal, shift=shift)
    floats = {"lr": None} | dict.fromkeys(optimiser.scalars)
    floats |= {"mu": None, "theta0": spec.size} if proximal else {}
    floats |= {"shift": spec.size} if shift else {}
    outputs = {"theta_out": spec.size, "loss": None}
    outputs |= {"state_out": spec.state} if spec.state else {}
    return assemble(
        b, forward, spec, prepared.inference,
        [*_inputs(prepared, spec.state), *_floats(floats, b)], _floats(outputs, b),
    )  # fmt: skip


def loss_graph(prepared: Prepared) -> ModelProto:
    """Loss graph: theta, x, y -> loss, and answer: the model's output, for metrics."""
    b, forward = _builder(prepared)
    write_loss(b, prepared.loss, prepared.output)
    b.into("answer", "Identity", forward.output)
    answer = copy_of(prepared.inference.graph.output[0])
    answer.name = "answer"
    outputs = [*_floats({"loss": None}, b), answer]
    spec = _spec(prepared, Sgd())
    return assemble(b, forward, spec, prepared.inference, _inputs(prepared, 0), outputs)


def _check_choice(forward: Forward, names: Sequence[str]) -> None:
    if not names:
        raise ModelError(
            "nothing in this model can be trained: it has no layer with float weights",
            "choose a model with Gemm, MatMul, Conv, GRU or LSTM layers",
        )
    for name in names:
        if forward.constants[name].dtype != forward.constants[names[0]].dtype:
            raise ModelError(
                f"{name!r} has another float type", "export the whole model as float32"
            )


def _with_unrolled_recurrence(
    model: ModelProto, trained: Sequence[str], dtype: np.dtype
) -> Forward:
    """The graph with recurrent operators unrolled where a gradient passes."""
    forward = analyse(model)
    if not needs_unrolling(forward, trained):
        return forward
    b = Builder(forward.shapes, forward.constants, dtype, prefix=f"{OWN}step/")
    unroll_recurrent(b, forward, trained)
    set_nodes(model, b.nodes)
    model.graph.initializer.extend(b.tensors)
    return analyse(model)


def _builder(prepared: Prepared) -> tuple[Builder, Forward]:
    """A builder for one graph, and the forward graph with copies of its nodes."""
    nodes = [Node(copy_of(node.proto)) for node in prepared.forward.nodes]
    forward = prepared.forward._replace(nodes=nodes)
    return Builder(forward.shapes, forward.constants, prepared.theta.dtype), forward


def _flat_gradient(b: Builder, prepared: Prepared, forward: Forward) -> str:
    written = write_loss(b, prepared.loss, prepared.output)
    names = [FORWARD + parameter.name for parameter in prepared.parameters]
    gradients = backpropagate(b, forward, names, prepared.output.tensor, written.gradient)
    return flatten(b, [gradients[name] for name in names])


def _with_terms(b: Builder, gradient: str, proximal: bool, shift: bool, clip_norm: float) -> str:
    if proximal:
        distance = b.op("Sub", "theta", "theta0")
        gradient = b.op("Add", gradient, b.op("Mul", "mu", distance))
    if shift:
        gradient = b.op("Add", gradient, "shift")
    if clip_norm:
        norm = b.op("Sqrt", b.op("ReduceSumSquare", gradient, keepdims=0))
        excess = b.op("Max", b.op("Div", norm, b.floats(clip_norm)), b.floats(1.0))
        gradient = b.op("Div", gradient, excess)
    return gradient


def _slots(b: Builder, slots: int, size: int) -> list[str]:
    if slots < 2:
        return ["state"] * slots
    return b.ops("Split", "state", b.ints([size] * slots), outputs=slots, axis=0)


def _spec(prepared: Prepared, optimiser: Optimiser, **terms: bool) -> TrainSpec:
    return TrainSpec(
        parameters=prepared.parameters,
        state=prepared.theta.size * optimiser.slots,
        optimiser=optimiser.name,
        loss=prepared.loss.kind,
        classes=_classes(prepared),
        betas=optimiser.betas,
        **terms,
    )


def _classes(prepared: Prepared) -> int:
    if prepared.loss.kind != "cross-entropy":
        return 0
    return int(prepared.forward.shapes[prepared.forward.output][-1])


def _inputs(prepared: Prepared, state: int) -> list[ValueInfoProto]:
    """theta, state, x, y."""
    forward, kind = prepared.forward, ONNX_TYPE[prepared.theta.dtype]
    vectors = {"theta": prepared.theta.size} | ({"state": state} if state else {})
    x = copy_of(prepared.inference.graph.input[0])
    x.name = forward.input
    y = labels_of(prepared.loss, forward.shapes[forward.output], kind)
    return [*(helper.make_tensor_value_info(n, kind, [size]) for n, size in vectors.items()), x, y]


def _floats(sizes: dict[str, int | None], b: Builder) -> list[ValueInfoProto]:
    """Vectors by length, or scalars (None)."""
    return [
        helper.make_tensor_value_info(name, b.onnx_type, [] if size is None else [size])
        for name, size in sizes.items()
    ]
