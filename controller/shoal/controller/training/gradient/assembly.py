"""Assemble a train graph: unpacking of theta, the forward graph, loss, gradients and update."""

from collections.abc import Sequence

import msgspec
import onnx
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper

from shoal.controller.training.gradient.forward import Forward
from shoal.controller.training.gradient.graph import FORWARD, OWN, Builder
from shoal.params import METADATA, Parameter, TrainSpec

#: Newest file format that is written: what the oldest onnxruntime of an agent reads.
_NEWEST_IR = 10


def assemble(
    b: Builder,
    forward: Forward,
    spec: TrainSpec,
    base: ModelProto,
    inputs: Sequence[ValueInfoProto],
    outputs: Sequence[ValueInfoProto],
) -> ModelProto:
    """The train graph as a model; nodes that lead to no output are dropped.

    base   model with the operator sets and file format to use
    """
    first = Builder({}, {}, b.dtype, prefix=f"{OWN}theta/")
    _unpack(first, spec.parameters)
    trained = {FORWARD + parameter.name for parameter in spec.parameters}
    stored = [t for name, t in forward.initializers.items() if name not in trained]
    nodes = [*first.nodes, *(node.proto for node in forward.nodes), *b.nodes]
    tensors = [*first.tensors, *stored, *b.tensors]
    kept, used = _reachable(nodes, tensors, {value.name for value in outputs})
    graph = helper.make_graph(kept, "train", list(inputs), list(outputs), used)
    return _finished(graph, base, spec)


def _finished(graph: onnx.GraphProto, base: ModelProto, spec: TrainSpec) -> ModelProto:
    """A checked model of `graph` with the training metadata."""
    model = helper.make_model(graph, producer_name="shoal", opset_imports=base.opset_import)
    model.ir_version = min(max(base.ir_version, 8), _NEWEST_IR)
    helper.set_model_props(model, {METADATA: msgspec.json.encode(spec).decode()})
    onnx.checker.check_model(model)
    return model


def _unpack(b: Builder, parameters: Sequence[Parameter]) -> None:
    """Split theta into the parameters of the forward graph."""
    parts = ["theta"]
    if len(parameters) > 1:
        sizes = b.ints([p.size for p in parameters])
        parts = b.ops("Split", "theta", sizes, outputs=len(parameters), axis=0)
    for part, parameter in zip(parts, parameters, strict=True):
        b.into(FORWARD + parameter.name, "Reshape", part, b.ints(parameter.shape))


def flatten(b: Builder, gradients: Sequence[str]) -> str:
    """Concatenate gradients in the layout of theta."""
    vectors = [b.op("Reshape", gradient, b.ints(-1)) for gradient in gradients]
    return b.op("Concat", *vectors, axis=0) if len(vectors) > 1 else vectors[0]


def _reachable(
    nodes: Sequence[NodeProto], tensors: Sequence[TensorProto], wanted: set[str]
) -> tuple[list[NodeProto], list[TensorProto]]:
    """Nodes and stored tensors that lead to the outputs."""
    needed, kept = set(wanted), []
    for node in reversed(nodes):
        if needed.intersection(node.output):
            kept.append(node)
            needed.update(node.input)
    return kept[::-1], [tensor for tensor in tensors if tensor.name in needed]
