"""Gradients of activations. At a kink the slope is 0, as in torch for Relu."""

import numpy as np

from shoal.controller.training.gradient.elementwise import Gradients
from shoal.controller.training.gradient.graph import Builder, Node


def relu(b: Builder, node: Node, dy: str) -> Gradients:
    return [b.masked(dy, _positive(b, node.outputs[0]))]


def leaky_relu(b: Builder, node: Node, dy: str) -> Gradients:
    lower = b.op("Mul", dy, b.floats(node.get("alpha", 0.01)))
    return [b.op("Where", _positive(b, node.inputs[0]), dy, lower)]


def prelu(b: Builder, node: Node, dy: str) -> Gradients:
    x, slope = node.inputs
    positive, out = _positive(b, x), node.outputs[0]
    by_slope = b.masked(b.op("Mul", dy, x), b.op("Not", positive))
    dx = b.op("Where", positive, dy, b.op("Mul", dy, slope))
    return [dx, b.unbroadcast(by_slope, out, slope)]


def elu(b: Builder, node: Node, dy: str) -> Gradients:
    """Below 0, y = α(eˣ - 1) has slope y + α."""
    lower = b.op("Add", node.outputs[0], b.floats(node.get("alpha", 1.0)))
    return [b.op("Where", _positive(b, node.inputs[0]), dy, b.op("Mul", dy, lower))]


def selu(b: Builder, node: Node, dy: str) -> Gradients:
    alpha = node.get("alpha", 1.67326319217681884765625)
    gamma = node.get("gamma", 1.05070102214813232421875)
    lower = b.op("Add", node.outputs[0], b.floats(alpha * gamma))
    slope = b.op("Where", _positive(b, node.inputs[0]), b.floats(gamma), lower)
    return [b.op("Mul", dy, slope)]


def sigmoid(b: Builder, node: Node, dy: str) -> Gradients:
    y = node.outputs[0]
    return [b.op("Mul", dy, b.op("Mul", y, b.op("Sub", b.floats(1.0), y)))]


def tanh(b: Builder, node: Node, dy: str) -> Gradients:
    y = node.outputs[0]
    return [b.op("Mul", dy, b.op("Sub", b.floats(1.0), b.op("Mul", y, y)))]


def softplus(b: Builder, node: Node, dy: str) -> Gradients:
    return [b.op("Mul", dy, b.op("Sigmoid", node.inputs[0]))]


def softsign(b: Builder, node: Node, dy: str) -> Gradients:
    root = b.op("Add", b.op("Abs", node.inputs[0]), b.floats(1.0))
    return [b.op("Div", dy, b.op("Mul", root, root))]


def hard_sigmoid(b: Builder, node: Node, dy: str) -> Gradients:
    y, zero = node.outputs[0], b.floats(0.0)
    inside = b.op("And", b.op("Greater", y, zero), b.op("Less", y, b.floats(1.0)))
    return [b.masked(b.op("Mul", dy, b.floats(node.get("alpha", 0.2))), inside)]


def hard_swish(b: Builder, node: Node, dy: str) -> Gradients:
    """x·clip(x/6 + ½, 0, 1): slope x/3 + ½ between -3 and 3."""
    x = node.inputs[0]
    middle = b.op("Add", b.op("Div", x, b.floats(3.0)), b.floats(0.5))
    above = b.op("Where", b.op("Greater", x, b.floats(3.0)), b.floats(1.0), middle)
    slope = b.op("Where", b.op("Less", x, b.floats(-3.0)), b.floats(0.0), above)
    return [b.op("Mul", dy, slope)]


def clip(b: Builder, node: Node, dy: str) -> Gradients:
    """Inside, strictly, the gradient passes. Relu6 is this."""
    x = node.inputs[0]
    bounds = [
        b.op(compare, x, bound)
        for compare, bound in (("Greater", node.optional(1)), ("Less", node.optional(2)))
        if bound
    ]
    for inside in bounds:
        dy = b.masked(dy, inside)
    return [dy]


def erf(b: Builder, node: Node, dy: str) -> Gradients:
    x = node.inputs[0]
    bell = b.op("Exp", b.op("Neg", b.op("Mul", x, x)))
    return [b.op("Mul", dy, b.op("Mul", bell, b.floats(2 / np.sqrt(np.pi))))]


def gelu(b: Builder, node: Node, dy: str) -> Gradients:
    """x·Φ(x): slope Φ(x) + x·φ(x); or its approximation by tanh."""
    x = node.inputs[0]
    slope = _tanh_gelu(b, x) if node.get("approximate", "none") == "tanh" else _erf_gelu(b, x)
    return [b.op("Mul", dy, slope)]


def _erf_gelu(b: Builder, x: str) -> str:
    half = b.floats(0.5)
    area = b.op("Erf", b.op("Mul", x, b.floats(np.sqrt(0.5))))
    below = b.op("Add", b.op("Mul", area, half), half)
    bell = b.op("Exp", b.op("Mul", b.op("Mul", x, x), b.floats(-0.5)))
    return b.op("Add", below, b.op("Mul", b.op("Mul", x, bell), b.floats(1 / np.sqrt(2 * np.pi))))


def _tanh_gelu(b: Builder, x: str) -> str:
    """½(1 + t) + ½x(1 - t²)·√(2/π)(1 + 3·0.044715x²) with t = tanh(√(2/π)(x + 0.044715x³))."""
    root, cubic = np.sqrt(2 / np.pi), 0.044715
    square, one, half = b.op("Mul", x, x), b.floats(1.0), b.floats(0.5)
    inner = b.op("Mul", x, b.op("Add", b.op("Mul", square, b.floats(root * cubic)), b.floats(root)))
    t = b.op("Tanh", inner)
    steep = b.op("Add", b.op("Mul", square, b.floats(3 * root * cubic)), b.floats(root))
    bend = b.op("Mul", b.op("Mul", b.op("Sub", one, b.op("Mul", t, t)), steep), x)
    return b.op("Mul", b.op("Add", b.op("Add", t, one), bend), half)


def softmax(b: Builder, node: Node, dy: str) -> Gradients:
    y, axis = node.outputs[0], node.get("axis", -1)
    mean = b.sum(b.op("Mul", dy, y), [axis], keep=True)
    return [b.op("Mul", y, b.op("Sub", dy, mean))]


def log_softmax(b: Builder, node: Node, dy: str) -> Gradients:
    total = b.sum(dy, [node.get("axis", -1)], keep=True)
    return [b.op("Sub", dy, b.op("Mul", b.op("Exp", node.outputs[0]), total))]


def _positive(b: Builder, x: str) -> str:
    return b.op("Greater", x, b.floats(0.0))


RULES = {
    "Relu": relu,
    "LeakyRelu": leaky_relu,
    "PRelu": prelu,
    "Elu": elu,
    "Selu": selu,
    "Sigmoid": sigmoid,
    "Tanh": tanh,
    "Softplus": softplus,
    "Softsign": softsign,
    "HardSigmoid": hard_sigmoid,
    "HardSwish": hard_swish,
    "Clip": clip,
    "Erf": erf,
    "Gelu": gelu,
    "Softmax": softmax,
    "LogSoftmax": log_softmax,
}
