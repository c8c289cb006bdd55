"""Kind of a model's output: logits, or probabilities computed from logits.

A loss on logits is exact where one on rounded probabilities is not, and cheaper; so a final
softmax or sigmoid is folded into the loss. The inference graph keeps it.
"""

from typing import Literal, NamedTuple

import numpy as np

from shoal.controller.training.gradient.forward import Forward
from shoal.controller.training.gradient.graph import Node, own
from shoal.errors import ModelError

#: The output as declared by the caller; "auto" infers it from the node that computes it.
Declared = Literal["auto", "logits", "probabilities"]

_LINEAR = frozenset({
    "Add", "BatchNormalization", "Conv", "Gemm", "GlobalAveragePool", "MatMul", "ReduceMean", "Sub",
})  # fmt: skip
_PASS_THROUGH = frozenset({"Cast", "Identity"})


class ModelOutput(NamedTuple):
    """The tensor that the loss is computed from.

    kind     "logits" (one a class, or one an element for bce), "pair" (one logit for two classes),
             "probabilities", or "values" of a regression
    tensor   its name in the forward graph
    """

    kind: Literal["logits", "pair", "probabilities", "values"]
    tensor: str


def output_of(forward: Forward, loss: str, declared: Declared = "auto") -> ModelOutput:
    """The tensor to compute `loss` from; ModelError when its kind is ambiguous."""
    if loss in ("mse", "huber"):
        return ModelOutput("values", forward.output)
    if declared == "probabilities" and loss == "cross-entropy":
        return ModelOutput("probabilities", forward.output)
    if declared == "logits":
        return _checked(forward, ModelOutput("logits", forward.output), loss)
    producers = {name: node for node in forward.nodes for name in node.outputs}
    node = _producer(forward.output, producers, _PASS_THROUGH)
    if node is None:
        return _checked(forward, ModelOutput("logits", forward.output), loss)
    return _checked(forward, _folded(forward, node, producers, loss), loss)


def _folded(forward: Forward, node: Node, producers: dict[str, Node], loss: str) -> ModelOutput:
    if loss == "cross-entropy" and node.kind in ("Softmax", "LogSoftmax"):
        rank = len(forward.shapes.get(node.inputs[0], ()))
        if node.get("axis", -1) in (-1, rank - 1):
            return ModelOutput("logits", node.inputs[0])
    if loss == "cross-entropy" and (logit := _two_classes(forward, node, producers)):
        return ModelOutput("pair", logit)
    if loss == "bce" and node.kind == "Sigmoid":
        return ModelOutput("logits", node.inputs[0])
    before = _producer(
        node.outputs[0], producers, _PASS_THROUGH | {"Flatten", "Reshape", "Squeeze"}
    )
    if before is not None and before.kind in _LINEAR:
        return ModelOutput("logits", forward.output)
    raise ModelError(
        f"{node.title} gives {own(forward.output)!r}: it may be logits or probabilities",
        'declare it: answers="logits" or answers="probabilities"',
    )


def _two_classes(forward: Forward, node: Node, producers: dict[str, Node]) -> str:
    """The logit z of Concat(1 - σ(z), σ(z)); "" when node is something else."""
    if node.kind != "Concat" or len(node.inputs) != 2:
        return ""
    no, yes = (producers.get(name) for name in node.inputs)
    if no is None or yes is None or no.kind != "Sub" or yes.kind != "Sigmoid":
        return ""
    one = forward.constants.get(no.inputs[0])
    right = one is not None and np.all(one == 1) and no.inputs[1] == yes.outputs[0]
    return yes.inputs[0] if right else ""


def _producer(name: str, producers: dict[str, Node], passed: frozenset[str]) -> Node | None:
    """The node that computes `name`, skipping nodes in `passed`."""
    node = producers.get(name)
    while node is not None and node.kind in passed:
        node = producers.get(node.inputs[0])
    return node


def _checked(forward: Forward, output: ModelOutput, loss: str) -> ModelOutput:
    dims = forward.shapes.get(output.tensor, ())
    columns = dims[-1] if len(dims) > 1 else 0
    few = not isinstance(columns, int) or columns < 2
    if loss == "cross-entropy" and output.kind != "pair" and few:
        raise ModelError(
            f"cross-entropy needs one column per class; the output has shape {dims}",
            "use bce for one column, mse or huber for a quantity",
        )
    return output
