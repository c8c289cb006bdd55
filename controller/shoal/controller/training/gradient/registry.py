"""Registry of gradients by operator, of operators without one, and of hints for the rest."""

from collections.abc import Callable

from shoal.controller.training.gradient import (
    activation,
    convolution,
    elementwise,
    linear,
    movement,
    normalisation,
    pooling,
    recurrent,
)
from shoal.controller.training.gradient.elementwise import Gradients
from shoal.controller.training.gradient.graph import Builder, Node
from shoal.errors import ModelError

#: From (builder, forward node, gradient of its first output) to the gradients of its inputs, in
#: order; None, or a shorter list, where an input has none.
Rule = Callable[[Builder, Node, str], Gradients]

RULES: dict[str, Rule] = {
    **elementwise.RULES,
    **linear.RULES,
    **activation.RULES,
    **movement.RULES,
    **convolution.RULES,
    **pooling.RULES,
    **normalisation.RULES,
}
#: Operators with several outputs, each with a gradient of its own.
SEVERAL = movement.SEVERAL
#: Unrolled before differentiation.
UNROLLED = frozenset(recurrent.KINDS)

#: Piecewise constant operators: their gradient is 0.
FLAT = frozenset({
    "And", "ArgMax", "ArgMin", "Ceil", "ConstantOfShape", "Equal", "Floor", "Greater",
    "GreaterOrEqual", "IsInf", "IsNaN", "Less", "LessOrEqual", "Not", "OneHot", "Or", "Range",
    "Round", "Shape", "Sign", "Size", "Xor",
})  # fmt: skip

_BEHIND = "train only what lies behind it: name those initialisers, or choose the last layer"
_HINTS = {
    "QuantizeLinear": _BEHIND,
    "DequantizeLinear": "keep the layers that are to be trained in float32",
    "DynamicQuantizeLinear": _BEHIND,
    "Einsum": "export it as MatMul and Transpose",
    "Resize": "upsample with ConvTranspose",
    "If": "export the model without control flow",
    "Loop": "export the model without control flow",
    "Scan": "export the model without control flow",
    "TopK": "take the maximum instead",
}


def rule_for(node: Node) -> Rule | None:
    """Gradient rule of a node; None when it has several outputs. ModelError without a rule."""
    if node.kind in SEVERAL:
        return None
    if node.kind not in RULES or node.proto.domain not in ("", "ai.onnx"):
        raise unsupported(node)
    return RULES[node.kind]


def unsupported(node: Node) -> ModelError:
    """The error for a node without a gradient, with a hint."""
    domain = node.proto.domain
    kind = f"{domain}.{node.kind}" if domain else node.kind
    return ModelError(
        f"operator {kind} of node {node.name!r} has no gradient",
        _HINTS.get(node.kind, _BEHIND),
        op=kind,
        node=node.name,
    )
