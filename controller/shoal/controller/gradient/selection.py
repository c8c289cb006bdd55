"""Which of a model's numbers are trained."""

from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase

from shoal.controller.gradient.forward import Forward
from shoal.controller.gradient.graph import ONNX_TYPE, Node
from shoal.errors import ModelError

#: From a forward graph to the names of the initialisers that are trained, in the graph's order.
Choice = Callable[[Forward], list[str]]

#: Operator -> positions of its weights and biases.
_WEIGHTS = {
    "Gemm": (1, 2),
    "MatMul": (0, 1),
    "Conv": (1, 2),
    "ConvTranspose": (1, 2),
    "GRU": (1, 2, 3),
    "LSTM": (1, 2, 3),
    "RNN": (1, 2, 3),
    "LayerNormalization": (1, 2),
    "InstanceNormalization": (1, 2),
    "BatchNormalization": (1, 2),
    "PRelu": (1,),
    "Gather": (0,),
}
_LAYERS = frozenset({"Gemm", "MatMul", "Conv", "ConvTranspose", "GRU", "LSTM", "RNN"})
_ARITHMETIC = frozenset({"Add", "Sub", "Mul", "Div"})
_MOVED = frozenset({"Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})


def everything(forward: Forward) -> list[str]:
    """Weights and biases of layers, and vectors added or multiplied behind the first layer.

    What comes before the first layer scales the data, and is left alone.
    """
    return list(_found(forward))


def last_layer(forward: Forward) -> list[str]:
    """Weights and bias of the last layer: the head that is personal to a site."""
    found = _found(forward)
    last = max((at for at, is_layer in found.values() if is_layer), default=-1)
    return [name for name, (at, _) in found.items() if at >= last]


def named(patterns: Sequence[str]) -> Choice:
    """Initialisers by name, `*` and `?` as in file names; ModelError when a pattern finds none."""

    def choose(forward: Forward) -> list[str]:
        floats = [n for n, value in forward.constants.items() if value.dtype in ONNX_TYPE]
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in floats):
                raise ModelError(
                    f"no float initialiser is named {pattern!r}",
                    f"the layers' are: {', '.join(everything(forward)) or 'none'}",
                )
        return [n for n in floats if any(fnmatchcase(n, pattern) for pattern in patterns)]

    return choose


def _found(forward: Forward) -> dict[str, tuple[int, bool]]:
    """Trainable initialiser -> (node that uses it first, whether that node is a layer)."""
    found: dict[str, tuple[int, bool]] = {}
    roots = {name: name for name, value in forward.constants.items() if value.dtype in ONNX_TYPE}
    behind: set[str] = set()
    for at, node in enumerate(forward.nodes):
        if node.kind in _MOVED and node.inputs[0] in roots:
            roots[node.outputs[0]] = roots[node.inputs[0]]
            continue
        after_layer = not behind.isdisjoint(node.inputs)
        for name in _weights(node, roots, forward, after_layer):
            found.setdefault(name, (at, node.kind in _LAYERS))
        if after_layer or node.kind in _WEIGHTS:
            behind.update(node.outputs)
    return found


def _weights(node: Node, roots: dict[str, str], forward: Forward, after_layer: bool) -> list[str]:
    if node.kind in _WEIGHTS:
        used = [node.optional(i) for i in _WEIGHTS[node.kind]]
        return [roots[name] for name in used if name in roots]
    if node.kind not in _ARITHMETIC or not after_layer:
        return []
    least = 1 if node.kind in ("Add", "Sub") else 2  # x·[0.5] is a constant, x + [b] a bias
    values = [roots[name] for name in node.inputs if name in roots]
    return [n for n in values if forward.constants[n].ndim and forward.constants[n].size >= least]
