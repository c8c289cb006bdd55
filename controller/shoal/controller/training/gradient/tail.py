"""What a model's output is: logits, or probabilities made of logits that can be had.

A loss on logits is exact where one on rounded probabilities is not, and cheaper; so a final
softmax or sigmoid is folded into the loss. The inference graph keeps it.
"""

from typing import Literal, NamedTuple

import numpy as np

from shoal.controller.training.gradient.forward import Forward
from shoal.controller.training.gradient.graph import Node, own
from shoal.errors import ModelError

#: What the caller says that the output is; "auto" looks at the node that gives it.
Says = Literal["auto", "logits", "probabilities"]

_LINEAR = frozenset({
    "Add", "BatchNormalization", "Conv", "Gemm", "GlobalAveragePool", "MatMul", "ReduceMean", "Sub",
})  # fmt: skip
_PASSED = frozenset({"Cast", "Identity"})


class Answer(NamedTuple):
    """What the loss is of.

    kind     "logits" (one a class, or one an element for bce), "pair" (one logit for two classes),
             "probabilities", or "values" of a regression
    tensor   its name in the forward graph
    """

    kind: Literal["logits", "pair", "probabilities", "values"]
    tensor: str


def answer_of(forward: Forward, loss: str, says: Says = "auto") -> Answer:
    """What to compute `loss` of; ModelError when that cannot be told."""
    if loss in ("mse", "huber"):
        return Answer("values", forward.output)
    if says == "probabilities" and loss == "cross-entropy":
        return Answer("probabilities", forward.output)
    if says == "logits":
        return _checked(forward, Answer("logits", forward.output), loss)
    made_by = {name: node for node in forward.nodes for name in node.outputs}
    node = _behind(forward.output, made_by, _PASSED)
    if node is None:
        return _checked(forward, Answer("logits", forward.output), loss)
    return _checked(forward, _folded(forward, node, made_by, loss), loss)


def _folded(forward: Forward, node: Node, made_by: dict[str, Node], loss: str) -> Answer:
    if loss == "cross-entropy" and node.kind in ("Softmax", "LogSoftmax"):
        rank = len(forward.shapes.get(node.inputs[0], ()))
        if node.get("axis", -1) in (-1, rank - 1):
            return Answer("logits", node.inputs[0])
    if loss == "cross-entropy" and (logit := _two_classes(forward, node, made_by)):
        return Answer("pair", logit)
    if loss == "bce" and node.kind == "Sigmoid":
        return Answer("logits", node.inputs[0])
    before = _behind(node.outputs[0], made_by, _PASSED | {"Flatten", "Reshape", "Squeeze"})
    if before is not None and before.kind in _LINEAR:
        return Answer("logits", forward.output)
    raise ModelError(
        f"{node.title} gives {own(forward.output)!r}: logits or probabilities, nobody can tell",
        'say which: answers="logits" or answers="probabilities"',
    )


def _two_classes(forward: Forward, node: Node, made_by: dict[str, Node]) -> str:
    """The logit z of Concat(1 - σ(z), σ(z)); "" when node is something else."""
    if node.kind != "Concat" or len(node.inputs) != 2:
        return ""
    no, yes = (made_by.get(name) for name in node.inputs)
    if no is None or yes is None or no.kind != "Sub" or yes.kind != "Sigmoid":
        return ""
    one = forward.constants.get(no.inputs[0])
    right = one is not None and np.all(one == 1) and no.inputs[1] == yes.outputs[0]
    return yes.inputs[0] if right else ""


def _behind(name: str, made_by: dict[str, Node], passed: frozenset[str]) -> Node | None:
    """The node that gives `name`, looking through those in `passed`."""
    node = made_by.get(name)
    while node is not None and node.kind in passed:
        node = made_by.get(node.inputs[0])
    return node


def _checked(forward: Forward, answer: Answer, loss: str) -> Answer:
    dims = forward.shapes.get(answer.tensor, ())
    columns = dims[-1] if len(dims) > 1 else 0
    few = not isinstance(columns, int) or columns < 2
    if loss == "cross-entropy" and answer.kind != "pair" and few:
        raise ModelError(
            f"cross-entropy needs one column per class; the output has shape {dims}",
            "use bce for one column, mse or huber for a quantity",
        )
    return answer
