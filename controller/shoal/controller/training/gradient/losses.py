"""Losses, each with its gradient written directly: means over rows, or over all elements."""

from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
from onnx import TensorProto, ValueInfoProto, helper

from shoal.controller.training.gradient.graph import Builder, Dims
from shoal.controller.training.gradient.tail import Answer

Kind = Literal["cross-entropy", "bce", "mse", "huber"]
#: Probabilities below this are taken for it: the logarithm of 0 teaches nothing.
_LEAST = 1e-7


class Loss(NamedTuple):
    """What is made small.

    kind    cross-entropy: y is the class index, int64, of each row
            bce, mse, huber: y is float, shaped like the output
    delta   where Huber's loss turns from square to straight
    """

    kind: Kind
    delta: float = 1.0


class Lossy(NamedTuple):
    """Names of the mean loss (a scalar, written as "loss") and of its gradient by the answer."""

    loss: str
    gradient: str


def write_loss(b: Builder, loss: Loss, answer: Answer) -> Lossy:
    """Append the loss of `answer` against input "y"."""
    if loss.kind == "cross-entropy":
        return _CLASSES[answer.kind](b, answer.tensor)
    if loss.kind == "bce":
        return _logistic(b, answer.tensor, "y")
    return _distance(b, answer.tensor, loss)


def labels_of(loss: Loss, dims: Dims, float_type: int) -> ValueInfoProto:
    """Input "y" for an output of these sizes."""
    sizes = [d if isinstance(d, int) else None for d in dims[1:]]
    if loss.kind == "cross-entropy":
        return helper.make_tensor_value_info("y", TensorProto.INT64, ["N", *sizes[:-1]])
    return helper.make_tensor_value_info("y", float_type, ["N", *sizes])


def _softmax(b: Builder, logits: str) -> Lossy:
    """-log softmax(z)[y]: gradient (softmax(z) - onehot(y))/rows."""
    right, count = _one_hot(b, b.shape(logits)), _count(b, "y")
    log = b.op("LogSoftmax", logits, axis=-1)
    total = b.op("ReduceSum", b.op("Mul", log, right), keepdims=0)
    b.into("loss", "Div", b.op("Neg", total), count)
    return Lossy("loss", b.op("Div", b.op("Sub", b.op("Exp", log), right), count))


def _pair(b: Builder, logit: str) -> Lossy:
    """[1 - σ(z), σ(z)] of one logit: the same loss, without the detour over probabilities."""
    dims = b.shape(logit)
    return _logistic(b, logit, b.reshape(b.op("Cast", "y", to=b.onnx_type), dims, like=logit))


def _probabilities(b: Builder, p: str) -> Lossy:
    right, count = _one_hot(b, b.shape(p)), _count(b, "y")
    safe = b.op("Max", p, b.floats(_LEAST))
    total = b.op("ReduceSum", b.op("Mul", b.op("Log", safe), right), keepdims=0)
    b.into("loss", "Div", b.op("Neg", total), count)
    return Lossy("loss", b.op("Neg", b.op("Div", b.op("Div", right, safe), count)))


def _logistic(b: Builder, logit: str, y: str) -> Lossy:
    """log(1 + eᶻ) - y·z: gradient (σ(z) - y)/elements."""
    count = _count(b, logit)
    each = b.op("Sub", _softplus(b, logit), b.op("Mul", y, logit))
    b.into("loss", "Div", b.op("ReduceSum", each, keepdims=0), count)
    return Lossy("loss", b.op("Div", b.op("Sub", b.op("Sigmoid", logit), y), count))


def _softplus(b: Builder, x: str) -> str:
    """max(x, 0) + log(1 + e^-|x|): neither overflows, and float64 has it too."""
    small = b.op("Exp", b.op("Neg", b.op("Abs", x)))
    return b.op("Add", b.op("Relu", x), b.op("Log", b.op("Add", small, b.floats(1.0))))


def _distance(b: Builder, answer: str, loss: Loss) -> Lossy:
    count = _count(b, answer)
    off = b.op("Sub", answer, "y")
    if loss.kind == "huber":  # c·(d - c/2) with c = clip(d, -δ, δ)
        inside = b.op("Clip", off, b.floats(-loss.delta), b.floats(loss.delta))
        half = b.op("Mul", inside, b.floats(0.5))
        each, slope = b.op("Mul", inside, b.op("Sub", off, half)), inside
    else:
        each, slope = b.op("Mul", off, off), b.op("Mul", off, b.floats(2.0))
    b.into("loss", "Div", b.op("ReduceSum", each, keepdims=0), count)
    return Lossy("loss", b.op("Div", slope, count))


def _one_hot(b: Builder, dims: Dims) -> str:
    """Of y along a last axis of dims[-1] classes."""
    hot = b.op(
        "OneHot", "y", b.ints(int(dims[-1])), b.constant(np.array([0, 1], np.float32)), axis=-1
    )
    return hot if b.onnx_type == TensorProto.FLOAT else b.op("Cast", hot, to=b.onnx_type)


def _count(b: Builder, x: str) -> str:
    return b.op("Cast", b.op("Size", x), to=b.onnx_type)


_CLASSES: dict[str, Callable[[Builder, str], Lossy]] = {
    "logits": _softmax,
    "pair": _pair,
    "probabilities": _probabilities,
}
