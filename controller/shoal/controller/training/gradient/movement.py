"""Gradients of operators that move values: reshape, transpose, slice, gather, pad."""

from collections.abc import Callable, Sequence

import numpy as np

from shoal.controller.training.gradient.elementwise import Gradients
from shoal.controller.training.gradient.graph import Builder, Node

#: ONNX's "to the end" of a slice.
_END = int(np.iinfo(np.int64).max)
#: Longer than any axis: exporters write "all" as a number from here on.
_FAR = 2**31 - 1


def same(b: Builder, node: Node, dy: str) -> Gradients:
    return [dy]


def reshaped(b: Builder, node: Node, dy: str) -> Gradients:
    x = node.inputs[0]
    return [b.reshape(dy, b.shape(x), like=x)]


def transpose(b: Builder, node: Node, dy: str) -> Gradients:
    rank = len(b.shape(node.inputs[0]))
    order = node.get("perm", None) or range(rank)[::-1]
    return [b.op("Transpose", dy, perm=_inverse(order))]


def expand(b: Builder, node: Node, dy: str) -> Gradients:
    return [b.unbroadcast(dy, node.outputs[0], node.inputs[0]), None]


def cast(b: Builder, node: Node, dy: str) -> Gradients:
    """Between float types only: a cast to integers has no gradient."""
    return [b.op("CastLike", dy, node.inputs[0])]


def concat(b: Builder, node: Node, dy: str) -> Gradients:
    axis = node.attributes["axis"]
    sizes = [b.sizes(x, [axis])[0] for x in node.inputs]
    if len(sizes) == 1:
        return [dy]
    return b.ops("Split", dy, b.ints(sizes), outputs=len(sizes), axis=axis)


def split(b: Builder, node: Node, dys: Sequence[str | None]) -> Gradients:
    """The only operator with several outputs: unused ones give zeros."""
    parts = [dy or b.zeros_like(out) for dy, out in zip(dys, node.outputs, strict=True)]
    return [b.op("Concat", *parts, axis=node.get("axis", 0)), None]


def pad(b: Builder, node: Node, dy: str) -> Gradients:
    if node.get("mode", "constant") != "constant":
        raise node.refuse("it pads by reflection or repetition", "pad with a constant")
    rank = len(b.shape(node.inputs[0]))
    pads = _fixed(b, node, 1, None)
    axes = [axis % rank for axis in _fixed(b, node, 3, range(rank))]
    if min(pads) < 0:
        raise node.refuse("a pad is negative", "use Slice")
    starts, cut = pads[: len(axes)], pads[len(axes) :]
    ends = [-n if n else _END for n in cut]
    return [b.op("Slice", dy, b.ints(starts), b.ints(ends), b.ints(axes)), None]


def slice_(b: Builder, node: Node, dy: str) -> Gradients:
    """Insert the gradient into zeros, one axis after the other."""
    x = node.inputs[0]
    rank = len(b.shape(x))
    starts, ends = _fixed(b, node, 1, None), _fixed(b, node, 2, None)
    axes = [axis % rank for axis in _fixed(b, node, 3, range(len(starts)))]
    steps = _fixed(b, node, 4, [1] * len(starts))
    pads = [0] * (2 * rank)
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        if start == 0 and step == 1 and end >= _FAR:  # the whole axis, also of the batch
            continue
        [size] = b.sizes(x, [axis])
        taken = range(size)[_bound(start, step) : _bound(end, step) : step]
        if step == 1:
            pads[axis], pads[rank + axis] = taken.start, size - taken.stop
        else:
            dy = spread(b, dy, axis, b.ints(list(taken)), b.ints(size), rank)
    return [b.op("Pad", dy, b.ints(pads)) if any(pads) else dy]


def gather(b: Builder, node: Node, dy: str) -> Gradients:
    """Add gradients at the gathered rows: an embedding, or one step of a sequence."""
    x, index = node.inputs
    dims = b.shape(x)
    axis = node.get("axis", 0) % len(dims)
    width = len(b.shape(index))
    size = _size(b, x, axis)
    if width == 0:
        dy, index = b.op("Unsqueeze", dy, b.ints(axis)), b.op("Unsqueeze", index, b.ints(0))
    if width < 2:
        return [spread(b, dy, axis, index, size, len(dims)), None]
    if axis != 0:
        raise node.refuse("a table of indices along an inner axis", "gather along axis 0")
    table = [-1, *b.sizes(x, range(1, len(dims)))]
    flat = b.op("Reshape", dy, b.ints(table))
    return [spread(b, flat, 0, b.op("Reshape", index, b.ints(-1)), size, len(dims)), None]


def _size(b: Builder, x: str, axis: int) -> str:
    """A vector of one number: x's size along axis, computed at run time where unknown."""
    size = b.shape(x)[axis]
    if isinstance(size, int):
        return b.ints(size)
    return b.op("Slice", b.op("Shape", x), b.ints(axis), b.ints(axis + 1))


def spread(b: Builder, dy: str, axis: int, index: str, size: str, rank: int) -> str:
    """Zeros of `size` along axis, with dy's slices added at index (a vector of whole numbers)."""
    order = [axis, *(i for i in range(rank) if i != axis)]
    if axis:
        dy = b.op("Transpose", dy, perm=order)
    inner = b.op("Slice", b.op("Shape", dy), b.ints(1), b.ints(_END))
    zeros = b.op("Expand", b.floats(0.0), b.op("Concat", size, inner, axis=0))
    at = b.op("Unsqueeze", index, b.ints(1))
    out = b.op("ScatterND", zeros, at, dy, reduction="add")
    return b.op("Transpose", out, perm=_inverse(order)) if axis else out


def _fixed(b: Builder, node: Node, index: int, default: Sequence[int] | None) -> list[int]:
    name = node.optional(index)
    if not name and default is not None:
        return list(default)
    if name not in b.constants:
        raise node.refuse("its bounds are computed", "export the model with fixed bounds")
    return [int(value) for value in b.constants[name].ravel()]


def _bound(value: int, step: int) -> int | None:
    """None for the start of a backward slice, which ONNX writes as a large negative number."""
    return None if step < 0 and value <= -_FAR else value


def _inverse(order: Sequence[int]) -> list[int]:
    return [int(i) for i in np.argsort(list(order))]


RULES = {
    "Identity": same,
    "Reshape": reshaped,
    "Flatten": reshaped,
    "Squeeze": reshaped,
    "Unsqueeze": reshaped,
    "Transpose": transpose,
    "Expand": expand,
    "Cast": cast,
    "CastLike": cast,
    "Concat": concat,
    "Pad": pad,
    "Slice": slice_,
    "Gather": gather,
}
SEVERAL: dict[str, Callable[[Builder, Node, Sequence[str | None]], Gradients]] = {"Split": split}
