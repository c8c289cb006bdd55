"""Losses, each with its gradient written directly: means over rows, or over all elements."""

from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
from onnx import TensorProto, ValueInfoProto, helper

from shoal.controller.training.gradient.graph import Builder, Dims
from shoal.controller.training.gradient.model_output import ModelOutput

Kind = Literal["cross-entropy", "bce", "mse", "huber"]
#: Probabilities are clipped to at least this: the logarithm of 0 has no gradient.
_MIN_PROBABILITY = 1e-7


class Loss(NamedTuple):
    """The loss that training minimises.

    kind    cross-entropy: y is the class index, int64, of each row
            bce, mse, huber: y is float, shaped like the output
    delta   where Huber's loss turns from quadratic to linear
    """

    kind: Kind
    delta: float = 1.0


class WrittenLoss(NamedTuple):
    """Names of the mean loss (scalar "loss") and of its gradient with respect to the output."""

    loss: str
    gradient: str


def write_loss(b: Builder, loss: Loss, output: ModelOutput) -> WrittenLoss:
    """Append the loss of `output` against input "y"."""
    if loss.kind == "cross-entropy":
        return _CLASSES[output.kind](b, output.tensor)
    if loss.kind == "bce":
        return _logistic(b, output.tensor, "y")
    return _distance(b, output.tensor, loss)


def labels_of(loss: Loss, dims: Dims, float_type: int) -> ValueInfoProto:
    """Input "y" for an output of these sizes."""
    sizes = [d if isinstance(d, int) else None for d in dims[1:]]
    if loss.kind == "cross-entropy":
        return helper.make_tensor_value_info("y", TensorProto.INT64, ["N", *sizes[:-1]])
    return helper.make_tensor_value_info("y", float_type, ["N", *sizes])


def _softmax(b: Builder, logits: str) -> WrittenLoss:
    """-log softmax(z)[y]: gradient (softmax(z) - onehot(y))/rows."""
    right, count = _one_hot(b, b.shape(logits)), _element_count(b, "y")
    log = b.op("LogSoftmax", logits, axis=-1)
    total = b.op("ReduceSum", b.op("Mul", log, right), keepdims=0)
    b.into("loss", "Div", b.op("Neg", total), count)
    return WrittenLoss("loss", b.op("Div", b.op("Sub", b.op("Exp", log), right), count))


def _pair(b: Builder, logit: str) -> WrittenLoss:
    """[1 - σ(z), σ(z)] of one logit: the same loss, computed on the logit."""
    dims = b.shape(logit)
    return _logistic(b, logit, b.reshape(b.op("Cast", "y", to=b.onnx_type), dims, like=logit))


def _probabilities(b: Builder, p: str) -> WrittenLoss:
    right, count = _one_hot(b, b.shape(p)), _element_count(b, "y")
    safe = b.op("Max", p, b.floats(_MIN_PROBABILITY))
    total = b.op("ReduceSum", b.op("Mul", b.op("Log", safe), right), keepdims=0)
    b.into("loss", "Div", b.op("Neg", total), count)
    return WrittenLoss("loss", b.op("Neg", b.op("Div", b.op("Div", right, safe), count)))


def _logistic(b: Builder, logit: str, y: str) -> WrittenLoss:
    """log(1 + eᶻ) - y·z: gradient (σ(z) - y)/elements."""
    count = _element_count(b, logit)
    each = b.op("Sub", _softplus(b, logit), b.op("Mul", y, logit))
    b.into("loss", "Div", b.op("ReduceSum", each, keepdims=0), count)
    return WrittenLoss("loss", b.op("Div", b.op("Sub", b.op("Sigmoid", logit), y), count))


def _softplus(b: Builder, x: str) -> str:
    """max(x, 0) + log(1 + e^-|x|): neither overflows, and float64 has it too."""
    small = b.op("Exp", b.op("Neg", b.op("Abs", x)))
    return b.op("Add", b.op("Relu", x), b.op("Log", b.op("Add", small, b.floats(1.0))))


def _distance(b: Builder, output: str, loss: Loss) -> WrittenLoss:
    count = _element_count(b, output)
    off = b.op("Sub", output, "y")
    if loss.kind == "huber":  # c·(d - c/2) with c = clip(d, -δ, δ)
        inside = b.op("Clip", off, b.floats(-loss.delta), b.floats(loss.delta))
        half = b.op("Mul", inside, b.floats(0.5))
        each, slope = b.op("Mul", inside, b.op("Sub", off, half)), inside
    else:
        each, slope = b.op("Mul", off, off), b.op("Mul", off, b.floats(2.0))
    b.into("loss", "Div", b.op("ReduceSum", each, keepdims=0), count)
    return WrittenLoss("loss", b.op("Div", slope, count))


def _one_hot(b: Builder, dims: Dims) -> str:
    """Of y along a last axis of dims[-1] classes."""
    hot = b.op(
        "OneHot", "y", b.ints(int(dims[-1])), b.constant(np.array([0, 1], np.float32)), axis=-1
    )
    return hot if b.onnx_type == TensorProto.FLOAT else b.op("Cast", hot, to=b.onnx_type)


def _element_count(b: Builder, x: str) -> str:
    return b.op("Cast", b.op("Size", x), to=b.onnx_type)


_CLASSES: dict[str, Callable[[Builder, str], WrittenLoss]] = {
    "logits": _softmax,
    "pair": _pair,
    "probabilities": _probabilities,
}
