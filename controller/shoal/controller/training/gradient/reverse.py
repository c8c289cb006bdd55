"""Reverse-mode differentiation: from the loss back to every parameter, node by node."""

from collections.abc import Collection, Sequence

from shoal.controller.training.gradient.forward import Forward
from shoal.controller.training.gradient.graph import ONNX_TYPE, Builder, Node, own
from shoal.controller.training.gradient.recurrent import unroll
from shoal.controller.training.gradient.registry import FLAT, SEVERAL, UNROLLED, rule_for
from shoal.errors import ModelError


def depends_on(nodes: Sequence[Node], parameters: Collection[str]) -> set[str]:
    """Tensors that depend on a parameter."""
    dependent = set(parameters)
    for node in nodes:
        if not _has_no_gradient(node) and not dependent.isdisjoint(node.inputs):
            dependent.update(node.outputs)
    return dependent


def _has_no_gradient(node: Node) -> bool:
    to_integer = node.kind == "Cast" and node.attributes["to"] not in ONNX_TYPE.values()
    return to_integer or node.kind in FLAT


def needs_unrolling(forward: Forward, parameters: Collection[str]) -> bool:
    """Whether a gradient passes through a recurrent operator."""
    dependent = depends_on(forward.nodes, parameters)
    return any(n.kind in UNROLLED and not dependent.isdisjoint(n.inputs) for n in forward.nodes)


def unroll_recurrent(b: Builder, forward: Forward, parameters: Collection[str]) -> None:
    """Append the forward nodes to b, with recurrent ones unrolled where gradients pass."""
    dependent = depends_on(forward.nodes, parameters)
    for node in forward.nodes:
        if node.kind in UNROLLED and not dependent.isdisjoint(node.inputs):
            unroll(b, node)
        else:
            b.nodes.append(node.proto)


def backpropagate(
    b: Builder, forward: Forward, parameters: Sequence[str], output: str, gradient: str
) -> dict[str, str]:
    """Append every gradient to b; parameter -> name of its gradient.

    output, gradient   the tensor that the loss is computed from, and the gradient of the loss
                       with respect to it

    ModelError names an operator without a gradient, or a parameter without influence.
    """
    dependent = depends_on(forward.nodes, parameters)
    parts: dict[str, list[str]] = {output: [gradient]}
    for node in reversed(forward.nodes):
        if (
            _has_no_gradient(node)
            or dependent.isdisjoint(node.inputs)
            or parts.keys().isdisjoint(node.outputs)
        ):
            continue
        for name, part in zip(node.inputs, _back(b, node, parts), strict=False):
            if part is not None and name in dependent:
                parts.setdefault(name, []).append(part)
    return {name: _total(b, parts, name) for name in parameters}


def _back(b: Builder, node: Node, parts: dict[str, list[str]]) -> Sequence[str | None]:
    outputs = node.outputs
    rule = rule_for(node)
    if rule is None:
        gradients = [_total(b, parts, name) if name in parts else None for name in outputs]
        return SEVERAL[node.kind](b, node, gradients)
    return rule(b, node, _total(b, parts, outputs[0]))


def _total(b: Builder, parts: dict[str, list[str]], name: str) -> str:
    """Sum of the gradients from every use of a tensor."""
    if name not in parts:
        raise ModelError(
            f"parameter {own(name)!r} has no influence on the loss",
            "do not train it",
            parameter=own(name),
        )
    terms = parts[name]
    if len(terms) > 1:
        parts[name] = terms = [b.op("Sum", *terms)]
    return terms[0]
