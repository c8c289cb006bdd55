"""Gradients of elementwise arithmetic, with broadcasting."""

from collections.abc import Sequence

import numpy as np

from shoal.controller.training.gradient.graph import Builder, Node

Gradients = Sequence[str | None]


def add(b: Builder, node: Node, dy: str) -> Gradients:
    return [b.unbroadcast(dy, node.outputs[0], x) for x in node.inputs]


def sub(b: Builder, node: Node, dy: str) -> Gradients:
    left, right = node.inputs
    out = node.outputs[0]
    return [b.unbroadcast(dy, out, left), b.unbroadcast(b.op("Neg", dy), out, right)]


def mul(b: Builder, node: Node, dy: str) -> Gradients:
    left, right = node.inputs
    out = node.outputs[0]
    return [
        b.unbroadcast(b.op("Mul", dy, right), out, left),
        b.unbroadcast(b.op("Mul", dy, left), out, right),
    ]


def div(b: Builder, node: Node, dy: str) -> Gradients:
    left, right = node.inputs
    out = node.outputs[0]
    part = b.op("Div", dy, right)
    other = b.op("Neg", b.op("Mul", part, out))
    return [b.unbroadcast(part, out, left), b.unbroadcast(other, out, right)]


def neg(b: Builder, node: Node, dy: str) -> Gradients:
    return [b.op("Neg", dy)]


def absolute(b: Builder, node: Node, dy: str) -> Gradients:
    return [b.op("Mul", dy, b.op("Sign", node.inputs[0]))]


def reciprocal(b: Builder, node: Node, dy: str) -> Gradients:
    y = node.outputs[0]
    return [b.op("Neg", b.op("Mul", dy, b.op("Mul", y, y)))]


def exp(b: Builder, node: Node, dy: str) -> Gradients:
    return [b.op("Mul", dy, node.outputs[0])]


def log(b: Builder, node: Node, dy: str) -> Gradients:
    return [b.op("Div", dy, node.inputs[0])]


def sqrt(b: Builder, node: Node, dy: str) -> Gradients:
    return [b.op("Div", b.op("Mul", dy, b.floats(0.5)), node.outputs[0])]


def sin(b: Builder, node: Node, dy: str) -> Gradients:
    return [b.op("Mul", dy, b.op("Cos", node.inputs[0]))]


def cos(b: Builder, node: Node, dy: str) -> Gradients:
    return [b.op("Neg", b.op("Mul", dy, b.op("Sin", node.inputs[0])))]


def power(b: Builder, node: Node, dy: str) -> Gradients:
    """p·x^(p-1); the exponent itself is not trained."""
    x, exponent = node.inputs
    if exponent not in b.constants:
        raise node.refuse("its exponent is computed", "write it as Exp and Log")
    p = np.asarray(b.constants[exponent], b.dtype)
    if (p == 2).all():  # for negative x the general power would be NaN
        slope = b.op("Mul", x, b.floats(p))
    else:
        slope = b.op("Mul", b.op("Pow", x, b.floats(p - 1)), b.floats(p))
    return [b.unbroadcast(b.op("Mul", dy, slope), node.outputs[0], x), None]


def where(b: Builder, node: Node, dy: str) -> Gradients:
    condition, yes, no = node.inputs
    return [None, *_select(b, node.outputs[0], dy, condition, yes, no)]


def maximum(b: Builder, node: Node, dy: str) -> Gradients:
    return _extremum(b, node, dy, "Greater")


def minimum(b: Builder, node: Node, dy: str) -> Gradients:
    return _extremum(b, node, dy, "Less")


def _extremum(b: Builder, node: Node, dy: str, compare: str) -> Gradients:
    """The gradient goes to the selected operand; in a tie to the second, as Relu's 0 does."""
    if len(node.inputs) == 1:
        return [dy]
    if len(node.inputs) != 2:
        raise node.refuse(f"it has {len(node.inputs)} operands", "nest it: two operands per node")
    left, right = node.inputs
    return _select(b, node.outputs[0], dy, b.op(compare, left, right), left, right)


def _select(b: Builder, out: str, dy: str, condition: str, yes: str, no: str) -> list[str]:
    return [
        b.unbroadcast(b.masked(dy, condition), out, yes),
        b.unbroadcast(b.masked(dy, b.op("Not", condition)), out, no),
    ]


RULES = {
    "Add": add,
    "Sum": add,
    "Sub": sub,
    "Mul": mul,
    "Div": div,
    "Neg": neg,
    "Abs": absolute,
    "Reciprocal": reciprocal,
    "Exp": exp,
    "Log": log,
    "Sqrt": sqrt,
    "Sin": sin,
    "Cos": cos,
    "Pow": power,
    "Where": where,
    "Max": maximum,
    "Min": minimum,
}
