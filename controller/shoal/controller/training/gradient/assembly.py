"""Putting a training graph together: theta unpacked, the forward graph, what was appended."""

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
    """The model; what leads to no output is left out.

    base   whose operator sets and file format are kept
    """
    first = Builder({}, {}, b.dtype, prefix=f"{OWN}theta/")
    unpack(first, spec.parameters)
    trained = {FORWARD + parameter.name for parameter in spec.parameters}
    stored = [t for name, t in forward.initializers.items() if name not in trained]
    nodes = [*first.nodes, *(node.proto for node in forward.nodes), *b.nodes]
    tensors = [*first.tensors, *stored, *b.tensors]
    kept, used = _alive(nodes, tensors, {value.name for value in outputs})
    graph = helper.make_graph(kept, "train", list(inputs), list(outputs), used)
    return finished(graph, base, spec)


def finished(graph: onnx.GraphProto, base: ModelProto, spec: TrainSpec) -> ModelProto:
    """A checked model of `graph` that says how it trains."""
    model = helper.make_model(graph, producer_name="shoal", opset_imports=base.opset_import)
    model.ir_version = min(max(base.ir_version, 8), _NEWEST_IR)
    helper.set_model_props(model, {METADATA: msgspec.json.encode(spec).decode()})
    onnx.checker.check_model(model)
    return model


def unpack(b: Builder, parameters: Sequence[Parameter]) -> None:
    """Append theta's parts, under the names that the forward graph knows them by."""
    parts = ["theta"]
    if len(parameters) > 1:
        sizes = b.ints([p.size for p in parameters])
        parts = b.ops("Split", "theta", sizes, outputs=len(parameters), axis=0)
    for part, parameter in zip(parts, parameters, strict=True):
        b.into(FORWARD + parameter.name, "Reshape", part, b.ints(parameter.shape))


def flat(b: Builder, gradients: Sequence[str]) -> str:
    """Gradients back to back, as theta is."""
    vectors = [b.op("Reshape", gradient, b.ints(-1)) for gradient in gradients]
    return b.op("Concat", *vectors, axis=0) if len(vectors) > 1 else vectors[0]


def _alive(
    nodes: Sequence[NodeProto], tensors: Sequence[TensorProto], wanted: set[str]
) -> tuple[list[NodeProto], list[TensorProto]]:
    """Nodes and stored tensors that lead to what is wanted."""
    needed, kept = set(wanted), []
    for node in reversed(nodes):
        if needed.intersection(node.output):
            kept.append(node)
            needed.update(node.input)
    return kept[::-1], [tensor for tensor in tensors if tensor.name in needed]
