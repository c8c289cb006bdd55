"""The forward graph of a model, with inferred shapes."""

from collections.abc import Iterable
from typing import NamedTuple, TypeVar

import numpy.typing as npt
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, numpy_helper
from onnx.shape_inference import InferenceError, infer_shapes

from shoal.controller.training.gradient.graph import FORWARD, Dims, Node
from shoal.errors import ModelError

M = TypeVar("M", ModelProto, NodeProto, ValueInfoProto)


class Forward(NamedTuple):
    """A forward graph prepared for differentiation.

    nodes          in order; copies that may be modified
    initializers   stored tensors by name
    constants      their values
    shapes         of every tensor that could be inferred; axis 0 of the input is "N"
    input, output  names
    """

    nodes: list[Node]
    initializers: dict[str, TensorProto]
    constants: dict[str, npt.NDArray]
    shapes: dict[str, Dims]
    input: str
    output: str


def analyse(model: ModelProto) -> Forward:
    """Analyse a model for differentiation; names are unchanged."""
    graph = with_shapes(model).graph
    shapes = shapes_of(graph)
    tensors = {t.name: t for t in graph.initializer}
    return Forward(
        [Node(proto) for proto in graph.node],
        tensors,
        {name: numpy_helper.to_array(t) for name, t in tensors.items()},
        shapes,
        graph.input[0].name,
        graph.output[0].name,
    )


def with_shapes(model: ModelProto) -> ModelProto:
    """A copy with every shape that onnx can infer; ModelError when the shapes contradict."""
    try:
        inferred: ModelProto = infer_shapes(copy_of(model), data_prop=True)
    except InferenceError as error:
        raise ModelError(f"its shapes contradict: {error!s:.300}", "export it again") from error
    return inferred


def shapes_of(graph: GraphProto) -> dict[str, Dims]:
    """Shapes by tensor of a graph with inferred shapes."""
    shapes: dict[str, Dims] = {t.name: tuple(t.dims) for t in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        if value.type.tensor_type.HasField("shape"):
            shapes[value.name] = dims_of(value.type.tensor_type.shape.dim)
    return shapes


def with_prefix(model: ModelProto) -> ModelProto:
    """A copy whose input is "x" and whose other names start with "forward/": no collisions."""
    copy = copy_of(model)
    graph = copy.graph
    source = graph.input[0].name

    def renamed(name: str) -> str:
        return "x" if name == source else name and FORWARD + name

    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = [renamed(name) for name in names]
    for named in (*graph.initializer, *graph.input, *graph.output):
        named.name = renamed(named.name)
    return copy


def opset_of(model: ModelProto) -> int:
    """Version of the standard operator set."""
    return next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)


def copy_of(message: M) -> M:
    copy = type(message)()
    copy.CopyFrom(message)
    return copy


def set_nodes(model: ModelProto, nodes: Iterable[NodeProto]) -> None:
    """Replace a model's nodes; the new ones may be some of the old."""
    kept = [copy_of(proto) for proto in nodes]
    del model.graph.node[:]
    model.graph.node.extend(kept)


def dims_of(dims: Iterable) -> Dims:
    return tuple(d.dim_value if d.HasField("dim_value") else d.dim_param or "?" for d in dims)
