"""Unroll GRU, LSTM and simple RNN into operators that have a gradient.

The device's inference keeps the fused operator; only the training graph is unrolled, so its size
grows with the length of the sequence, which has to be fixed. Equations: the ONNX operators' own.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from shoal.controller.training.gradient.graph import Builder, Node

#: Maximum number of steps: bounds the size of the unrolled graph.
MOST_STEPS = 512


class Cell(NamedTuple):
    """Weights of one direction.

    inputs     x·Wᵀ + bias, per step in processing order: (N, gates·H)
    recurrent  R, (gates·H, H)
    bias       the recurrent bias (gates·H,) that is not yet in `inputs`, or ""
    hidden     H
    """

    inputs: list[str]
    recurrent: str
    bias: str
    hidden: int
    linear_before_reset: bool
    activation: str


#: From (builder, cell, one step's inputs, h, c) to the next (h, c); "" stands for zeros.
Step = Callable[[Builder, Cell, str, str, str], tuple[str, str]]


def unroll(b: Builder, node: Node) -> None:
    """Append the unrolled `node` to b, under the node's own output names."""
    _check(b, node)
    directions = 2 if node.get("direction", "forward") == "bidirectional" else 1
    directions_ = [_run_direction(b, node, i, directions) for i in range(directions)]
    outputs = [
        [*zip(*states, strict=True)] for states in directions_
    ]  # per direction: all h, all c
    names = [*node.outputs, "", "", ""]
    if names[0]:
        _write_sequence(b, names[0], [hs for hs, _ in outputs], node)
    for name, which in ((names[1], 0), (names[2], 1)):
        if name:
            last = [b.op("Unsqueeze", kinds[which][-1], b.ints(0)) for kinds in outputs]
            b.into(name, "Concat", *last, axis=0)


def _write_sequence(b: Builder, name: str, hidden: Sequence[Sequence[str]], node: Node) -> None:
    """Y, shape (T, directions, N, H): each direction's states in time order."""
    both = []
    for i, states in enumerate(hidden):
        ordered = states[::-1] if _backward(node, i) else states
        steps = [b.op("Unsqueeze", h, b.ints([0, 1])) for h in ordered]
        both.append(b.op("Concat", *steps, axis=0))
    b.into(name, "Concat", *both, axis=1)


def _run_direction(b: Builder, node: Node, index: int, directions: int) -> list[tuple[str, str]]:
    """States (h, c) after each step of one direction, in processing order."""
    gates, step = KINDS[node.kind]
    cell = _cell(b, node, index, directions, gates)
    h = _initial(b, node.optional(5), index, directions)
    c = _initial(b, node.optional(6), index, directions) if node.kind == "LSTM" else ""
    states = []
    for gate_inputs in cell.inputs:
        h, c = step(b, cell, gate_inputs, h, c)
        states.append((h, c))
    return states


def _cell(b: Builder, node: Node, index: int, directions: int, gates: int) -> Cell:
    x, weights, recurrent = node.inputs[:3]
    [length] = b.sizes(x, [0])
    [hidden] = b.sizes(recurrent, [2])
    W, R = (_direction(b, name, index, directions) for name in (weights, recurrent))
    projected = b.op("MatMul", x, b.op("Transpose", W, perm=[1, 0]))
    late = ""
    before_reset = bool(node.get("linear_before_reset", 0))
    if node.optional(3):
        biases = _direction(b, node.inputs[3], index, directions)
        early, late = b.ops("Split", biases, b.ints([gates * hidden] * 2), outputs=2, axis=0)
        projected = b.op("Add", projected, early)
        if not (node.kind == "GRU" and before_reset):  # nothing comes between the two biases
            projected, late = b.op("Add", projected, late), ""
    steps = b.ops("Split", projected, b.ints([1] * length), outputs=length, axis=0)
    inputs = [b.op("Squeeze", one, b.ints(0)) for one in steps]
    ordered = inputs[::-1] if _backward(node, index) else inputs
    activation = (node.get("activations", None) or ["Tanh"])[0] if node.kind == "RNN" else "Tanh"
    return Cell(ordered, R, late, hidden, before_reset, activation.capitalize())


def _direction(b: Builder, name: str, index: int, directions: int) -> str:
    """One direction's slice of a tensor whose first axis is the direction."""
    if directions == 1:
        return b.op("Squeeze", name, b.ints(0))
    parts = b.ops("Split", name, b.ints([1] * directions), outputs=directions, axis=0)
    return b.op("Squeeze", parts[index], b.ints(0))


def _initial(b: Builder, name: str, index: int, directions: int) -> str:
    return _direction(b, name, index, directions) if name else ""


def _backward(node: Node, index: int) -> bool:
    return index == 1 or node.get("direction", "forward") == "reverse"


def _with_recurrence(b: Builder, gate_inputs: str, h: str, recurrent: str) -> str:
    """h·Rᵀ + gate_inputs; before the first step h is zero and adds nothing."""
    return b.op("Gemm", h, recurrent, gate_inputs, transB=1) if h else gate_inputs


def lstm_step(b: Builder, cell: Cell, gate_inputs: str, h: str, c: str) -> tuple[str, str]:
    """Gates in ONNX's order: input, output, forget, cell."""
    gates = _with_recurrence(b, gate_inputs, h, cell.recurrent)
    i, o, f, g = b.ops("Split", gates, b.ints([cell.hidden] * 4), outputs=4, axis=1)
    new = b.op("Mul", b.op("Sigmoid", i), b.op("Tanh", g))
    if c:
        new = b.op("Add", b.op("Mul", b.op("Sigmoid", f), c), new)
    return b.op("Mul", b.op("Sigmoid", o), b.op("Tanh", new)), new


def gru_step(b: Builder, cell: Cell, gate_inputs: str, h: str, c: str) -> tuple[str, str]:
    """Gates in ONNX's order: update z, reset r, hidden; h' = (1 - z)·n + z·h."""
    size = cell.hidden
    z, r, n = b.ops("Split", gate_inputs, b.ints([size] * 3), outputs=3, axis=1)
    candidate: str
    if cell.linear_before_reset:
        z, r, candidate = _gates_after_product(b, cell, (z, r, n), h)
    else:
        z, r, candidate = _gates_before_product(b, cell, (z, r, n), h)
    new = b.op("Tanh", candidate)
    kept = b.op("Mul", b.op("Sub", b.floats(1.0), z), new)
    return (b.op("Add", kept, b.op("Mul", z, h)) if h else kept), ""


def _gates_after_product(
    b: Builder, cell: Cell, parts: tuple[str, str, str], h: str
) -> tuple[str, str, str]:
    """n = Wx + r·(R·h + bias): as in torch. One product for all three gates."""
    own = [cell.bias] if cell.bias else []
    past = b.op("Gemm", h, cell.recurrent, *own, transB=1) if h else cell.bias
    if not past:
        return b.op("Sigmoid", parts[0]), "", parts[2]
    axis = 1 if h else 0
    pz, pr, pn = b.ops("Split", past, b.ints([cell.hidden] * 3), outputs=3, axis=axis)
    z = b.op("Sigmoid", b.op("Add", parts[0], pz))
    r = b.op("Sigmoid", b.op("Add", parts[1], pr))
    return z, r, b.op("Add", parts[2], b.op("Mul", r, pn))


def _gates_before_product(
    b: Builder, cell: Cell, parts: tuple[str, str, str], h: str
) -> tuple[str, str, str]:
    """n = Wx + R·(r·h): ONNX's default."""
    if not h:
        return b.op("Sigmoid", parts[0]), "", parts[2]
    size = cell.hidden
    rz, rr, rn = b.ops("Split", cell.recurrent, b.ints([size] * 3), outputs=3, axis=0)
    z = b.op("Sigmoid", b.op("Gemm", h, rz, parts[0], transB=1))
    r = b.op("Sigmoid", b.op("Gemm", h, rr, parts[1], transB=1))
    return z, r, b.op("Gemm", b.op("Mul", r, h), rn, parts[2], transB=1)


def rnn_step(b: Builder, cell: Cell, gate_inputs: str, h: str, c: str) -> tuple[str, str]:
    return b.op(cell.activation, _with_recurrence(b, gate_inputs, h, cell.recurrent)), ""


def _check(b: Builder, node: Node) -> None:
    [length] = b.sizes(node.inputs[0], [0])
    if length > MOST_STEPS:
        raise node.refuse(f"it has {length} steps", f"use at most {MOST_STEPS}: shorten the window")
    if node.get("layout", 0):
        raise node.refuse("the batch is its first axis", "export it with layout=0")
    if node.optional(4):
        raise node.refuse("it has sequence_lens", "pad all sequences to one length")
    if node.optional(7) or node.get("clip", 0) or node.get("input_forget", 0):
        raise node.refuse("it has peepholes, clip or input_forget", "export a plain cell")
    usual = USUAL[node.kind]
    for name in node.get("activations", None) or []:
        if name.capitalize() not in usual:
            raise node.refuse(f"activation {name}", f"use {' or '.join(usual)}")


#: Operator -> number of gates, and its step function.
KINDS: dict[str, tuple[int, Step]] = {
    "LSTM": (4, lstm_step),
    "GRU": (3, gru_step),
    "RNN": (1, rnn_step),
}
USUAL = {"LSTM": ("Sigmoid", "Tanh"), "GRU": ("Sigmoid", "Tanh"), "RNN": ("Tanh", "Relu")}
