"""Selection of the parameters that are trained."""

from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase

from shoal.controller.training.gradient.forward import Forward
from shoal.controller.training.gradient.graph import ONNX_TYPE, Node
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
#: A weight that passes through these cannot be trained.
_FROZEN = frozenset({"DequantizeLinear", "QuantizeLinear"})


def everything(forward: Forward) -> list[str]:
    """Weights and biases of layers, and vectors added or multiplied behind the first layer.

    Operators before the first layer scale the data, and are not trained.
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
    roots = _roots(forward)
    behind: set[str] = set()
    for at, node in enumerate(forward.nodes):
        if node.outputs[0] in roots:
            continue
        after_layer = not behind.isdisjoint(node.inputs)
        for name in _weights(node, roots, forward, after_layer):
            found.setdefault(name, (at, node.kind in _LAYERS))
        if after_layer or node.kind in _WEIGHTS:
            behind.update(node.outputs)
    return found


def _roots(forward: Forward) -> dict[str, list[str]]:
    """Tensor that depends on no input -> the float initialisers that it is made of."""
    roots = {n: [n] if v.dtype in ONNX_TYPE else [] for n, v in forward.constants.items()}
    for node in forward.nodes:
        inputs = [name for name in node.inputs if name]
        if inputs and all(name in roots for name in inputs):
            made_of = [root for name in inputs for root in roots[name]]
            roots |= dict.fromkeys(node.outputs, [] if node.kind in _FROZEN else made_of)
    return roots


def _weights(
    node: Node, roots: dict[str, list[str]], forward: Forward, after_layer: bool
) -> list[str]:
    if node.kind in _WEIGHTS:
        used = [node.optional(i) for i in _WEIGHTS[node.kind]]
        made_of = [root for name in used for root in roots.get(name, [])]
        return [name for name in made_of if forward.constants[name].ndim]
    if node.kind not in _ARITHMETIC or not after_layer:
        return []
    least = 1 if node.kind in ("Add", "Sub") else 2  # x·[0.5] is a constant, x + [b] a bias
    values = [root for name in node.inputs for root in roots.get(name, [])]
    return [n for n in values if forward.constants[n].ndim and forward.constants[n].size >= least]
