"""Constant folding of integer arithmetic, which exporters use for shapes.

The batch size stays unknown: only the fixed entries of a shape become constants, which is what
reshapes, slices and splits mostly use.
"""

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from shoal.controller.training.gradient.forward import opset_of, set_nodes, shapes_of, with_shapes
from shoal.controller.training.gradient.graph import Dims, Node

_INTEGERS = (TensorProto.INT64, TensorProto.INT32, TensorProto.BOOL)
#: Passes over the graph: a folded shape can make another one foldable.
_PASSES = 8


def fold(model: ModelProto) -> None:
    """Replace nodes with constant results by initialisers, in place."""
    for _ in range(_PASSES):
        before = len(model.graph.node)
        _fold_once(model, shapes_of(with_shapes(model).graph))
        if len(model.graph.node) == before:
            return


def evaluate(proto: NodeProto, tensors: list[TensorProto], opset: int) -> list[npt.NDArray]:
    """Outputs of a node for these inputs."""
    outputs = [helper.make_empty_tensor_value_info(name) for name in proto.output if name]
    graph = helper.make_graph([proto], "alone", [], outputs, tensors)
    alone = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    return [np.asarray(value) for value in ReferenceEvaluator(alone).run(None, {})]


def _fold_once(model: ModelProto, shapes: dict[str, Dims]) -> None:
    known = {t.name: t for t in model.graph.initializer if t.data_type in _INTEGERS}
    partly: dict[str, Dims] = {}  # results of Shape with an unknown entry
    kept = []
    for proto in model.graph.node:
        values = _values(proto, known, partly, shapes, opset_of(model))
        if values is None:
            kept.append(proto)
            continue
        for name, value in zip(filter(None, proto.output), values, strict=True):
            tensor = numpy_helper.from_array(value, name)
            model.graph.initializer.append(tensor)
            if tensor.data_type in _INTEGERS:
                known[name] = tensor
    set_nodes(model, kept)


def _values(
    proto: NodeProto,
    known: dict[str, TensorProto],
    partly: dict[str, Dims],
    shapes: dict[str, Dims],
    opset: int,
) -> list[npt.NDArray] | None:
    """The node's results if they are constant; records a partly fixed shape in `partly`."""
    node = Node(proto)
    inputs = [name for name in node.inputs if name]
    if proto.domain or not inputs:
        return None
    if all(name in known for name in inputs):
        return evaluate(proto, [known[name] for name in dict.fromkeys(inputs)], opset)
    if node.kind == "Shape" and inputs[0] in shapes:
        dims = shapes[inputs[0]][node.get("start", 0) : node.get("end", None)]
        partly[node.outputs[0]] = dims
        return None if _has_unknown(dims) else [np.array(dims, np.int64)]
    if node.kind in ("Gather", "Slice") and inputs[0] in partly:
        return _selected(node, partly[inputs[0]], [known.get(name) for name in inputs[1:]], opset)
    return None


def _selected(
    node: Node, dims: Dims, others: list[TensorProto | None], opset: int
) -> list[npt.NDArray] | None:
    """Selected entries of a partly fixed shape, if none is unknown (written as -1)."""
    if any(tensor is None for tensor in others):
        return None
    marked = np.array([-1 if isinstance(size, str) else size for size in dims], np.int64)
    tensors = [numpy_helper.from_array(marked, node.inputs[0])]
    tensors += {tensor.name: tensor for tensor in others if tensor is not None}.values()
    values = evaluate(node.proto, tensors, opset)
    return None if (values[0] < 0).any() else values


def _has_unknown(dims: Dims) -> bool:
    return any(isinstance(size, str) for size in dims)
