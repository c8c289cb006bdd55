"""Weights stored in fewer bits and widened when onnxruntime loads the model, which folds constants:
the arithmetic, its speed and the memory it takes stay float32's, the file has half or a quarter of
its bytes.

8 bits: symmetric, a scale for each slice along the axis that loses least, as in weight-only
quantization (Krishnamoorthi 2018, arXiv:1806.08342, section 3).
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from shoal.errors import ModelError

#: Elements from which a tensor is stored in fewer bits, and the largest value that float16 holds.
_LEAST_ELEMENTS, _LARGEST = 64, 65_504.0
#: Elements for each scale, at least: fewer leave no bytes to save.
_LEAST_SLICE = 16
_STORED = "_stored"
#: The IR from which a stored value need not be an input.
_FREE_IR = 4


class _Narrow(NamedTuple):
    """A tensor in fewer bits: what is stored, and the nodes that make `name` of it."""

    tensors: list[TensorProto]
    nodes: list[NodeProto]


_Narrowing = Callable[[str, npt.NDArray[np.float32]], _Narrow | None]


def as_float16(model: ModelProto) -> ModelProto:
    """Copy whose float32 weights are stored in float16; those that it cannot hold stay.

    ModelError when there are none.
    """
    return _stored(model, _float16)


def as_int8(model: ModelProto) -> ModelProto:
    """Copy whose float32 weights of two axes or more are stored in 8 bits, others as they are.

    ModelError when there are none.
    """
    return _stored(model, _int8)


def _stored(model: ModelProto, narrowing: _Narrowing) -> ModelProto:
    copy = ModelProto()
    copy.CopyFrom(model)
    nodes: list[NodeProto] = []
    kept = list(copy.graph.initializer)
    del copy.graph.initializer[:]
    for tensor in kept:
        narrow = _narrowed(tensor.name, tensor, narrowing)
        copy.graph.initializer.extend([tensor] if narrow is None else narrow.tensors)
        nodes += [] if narrow is None else narrow.nodes
    rest = []
    for node in copy.graph.node:
        value = next((a for a in node.attribute if a.name == "value"), None)
        constant = node.op_type == "Constant" and value is not None
        narrow = _narrowed(node.output[0], value.t, narrowing) if constant and value else None
        if narrow is None:
            rest.append(node)
        else:
            copy.graph.initializer.extend(narrow.tensors)
            nodes += narrow.nodes
    if not nodes:
        raise ModelError("it has no float32 weights to store in fewer bits")
    del copy.graph.node[:]
    copy.graph.node.extend([*nodes, *rest])
    if copy.ir_version < _FREE_IR:  # stored values are inputs, too
        copy.ir_version = _FREE_IR
        stored = {t.name for t in copy.graph.initializer} | {node.output[0] for node in nodes}
        free = [value for value in copy.graph.input if value.name not in stored]
        del copy.graph.input[:]
        copy.graph.input.extend(free)
    return copy


def _narrowed(name: str, tensor: TensorProto, narrowing: _Narrowing) -> _Narrow | None:
    if tensor.data_type != TensorProto.FLOAT or tensor.data_location == TensorProto.EXTERNAL:
        return None
    values = numpy_helper.to_array(tensor)
    if values.size < _LEAST_ELEMENTS or not np.isfinite(values).all():
        return None
    return narrowing(name, values)


def _float16(name: str, values: npt.NDArray[np.float32]) -> _Narrow | None:
    if not np.abs(values).max() <= _LARGEST:
        return None
    stored = numpy_helper.from_array(values.astype(np.float16), name + _STORED)
    return _Narrow([stored], [_cast(name + _STORED, name)])


def _int8(name: str, values: npt.NDArray[np.float32]) -> _Narrow | None:
    found = min(_in_8_bits(values), key=lambda one: one[0], default=None)
    if found is None:
        return None
    _, whole, scale = found
    names = name + _STORED, f"{name}_scale", f"{name}_widened"
    stored = [numpy_helper.from_array(whole, names[0]), numpy_helper.from_array(scale, names[1])]
    widen = helper.make_node("Mul", [names[2], names[1]], [name], name=f"{name}_scaled")
    return _Narrow(stored, [_cast(names[0], names[2]), widen])


def _in_8_bits(
    values: npt.NDArray[np.float32],
) -> Iterator[tuple[float, npt.NDArray[np.int8], npt.NDArray[np.float32]]]:
    """Squared error, whole numbers and scales for each axis that may have one scale a slice."""
    if values.ndim < 2:
        return
    for axis in range(values.ndim):
        if values.size // values.shape[axis] < _LEAST_SLICE:
            continue
        others = tuple(i for i in range(values.ndim) if i != axis)
        scale = (np.abs(values).max(others, keepdims=True) / 127).astype(np.float32)
        scale[scale == 0] = 1.0
        whole = np.rint(values / scale).astype(np.int8)
        error = float(np.square(whole * scale - values, dtype=np.float64).sum())
        yield error, whole, scale


def _cast(stored: str, name: str) -> NodeProto:
    return helper.make_node("Cast", [stored], [name], name=f"{name}_cast", to=TensorProto.FLOAT)
