"""The sweep: from the loss back to every parameter, node by node."""

from collections.abc import Collection, Sequence

from shoal.controller.training.gradient.forward import Forward
from shoal.controller.training.gradient.graph import ONNX_TYPE, Builder, Node, own
from shoal.controller.training.gradient.recurrent import unroll
from shoal.controller.training.gradient.registry import FLAT, SEVERAL, UNROLLED, rule_for
from shoal.errors import ModelError


def moved_by(nodes: Sequence[Node], parameters: Collection[str]) -> set[str]:
    """Tensors that change when a parameter does, however little."""
    moved = set(parameters)
    for node in nodes:
        if not _is_flat(node) and not moved.isdisjoint(node.inputs):
            moved.update(node.outputs)
    return moved


def _is_flat(node: Node) -> bool:
    whole = node.kind == "Cast" and node.attributes["to"] not in ONNX_TYPE.values()
    return whole or node.kind in FLAT


def to_unroll(forward: Forward, parameters: Collection[str]) -> bool:
    """Whether a recurrent operator lies where gradients have to pass."""
    moved = moved_by(forward.nodes, parameters)
    return any(n.kind in UNROLLED and not moved.isdisjoint(n.inputs) for n in forward.nodes)


def unrolled(b: Builder, forward: Forward, parameters: Collection[str]) -> None:
    """Append the forward nodes to b, with recurrent ones written out where gradients pass."""
    moved = moved_by(forward.nodes, parameters)
    for node in forward.nodes:
        if node.kind in UNROLLED and not moved.isdisjoint(node.inputs):
            unroll(b, node)
        else:
            b.nodes.append(node.proto)


def sweep(
    b: Builder, forward: Forward, parameters: Sequence[str], answer: str, gradient: str
) -> dict[str, str]:
    """Append every gradient to b; parameter -> name of its gradient.

    answer, gradient   the tensor that the loss is of, and the loss's gradient by it

    ModelError names an operator without a gradient, or a parameter that the loss does not feel.
    """
    moved = moved_by(forward.nodes, parameters)
    parts: dict[str, list[str]] = {answer: [gradient]}
    for node in reversed(forward.nodes):
        if _is_flat(node) or moved.isdisjoint(node.inputs) or parts.keys().isdisjoint(node.outputs):
            continue
        for name, part in zip(node.inputs, _back(b, node, parts), strict=False):
            if part is not None and name in moved:
                parts.setdefault(name, []).append(part)
    return {name: _total(b, parts, name) for name in parameters}


def _back(b: Builder, node: Node, parts: dict[str, list[str]]) -> Sequence[str | None]:
    outputs = node.outputs
    rule = rule_for(node)
    if rule is None:
        each = [_total(b, parts, name) if name in parts else None for name in outputs]
        return SEVERAL[node.kind](b, node, each)
    return rule(b, node, _total(b, parts, outputs[0]))


def _total(b: Builder, parts: dict[str, list[str]], name: str) -> str:
    """Sum of what came back along every use of a tensor."""
    if name not in parts:
        raise ModelError(
            f"parameter {own(name)!r} has no influence on the loss",
            "leave it out of what is trained",
            parameter=own(name),
        )
    found = parts[name]
    if len(found) > 1:
        parts[name] = found = [b.op("Sum", *found)]
    return found[0]
