"""Normalised ONNX graphs: one input float32 (N, F), one output float32 (N, C), fixed names."""

from collections.abc import Iterator

import onnx
from onnx import AttributeProto, GraphProto, ModelProto, TensorProto, helper

INPUT, OUTPUT = "input", "output"


def nodes_of(graph: GraphProto) -> Iterator[onnx.NodeProto]:
    """Every node, including those in the bodies of If, Loop and Scan."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                yield from nodes_of(attribute.g)


def normalise(model: ModelProto, wanted: str, features: int, columns: int) -> ModelProto:
    """Copy of `model` that outputs tensor `wanted`, with Shoal's names and a free batch dimension.

    Nodes that do not lead to `wanted` are removed, such as the label branch of a classifier.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    source = graph_inputs(graph)[0].name
    _cut(graph, wanted)
    _rename(graph, source, INPUT)
    if wanted == source:  # a model that returns its input: through an Identity node
        wanted = INPUT
    _rename(graph, wanted, OUTPUT) if wanted != INPUT else _pass_through(graph)
    del graph.input[:], graph.output[:], graph.value_info[:]
    graph.input.append(_value(INPUT, features))
    graph.output.append(_value(OUTPUT, columns))
    return copy


def append_softmax(model: ModelProto) -> ModelProto:
    """Copy of a normalised model whose logits go through a softmax."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    _rename(copy.graph, OUTPUT, "logits")
    copy.graph.output[0].name = OUTPUT
    copy.graph.node.append(helper.make_node("Softmax", ["logits"], [OUTPUT], axis=1))
    return copy


def graph_inputs(graph: GraphProto) -> list[onnx.ValueInfoProto]:
    """Inputs that a caller must feed: those without a stored value."""
    stored = {tensor.name for tensor in graph.initializer}
    return [value for value in graph.input if value.name not in stored]


def opset_of(model: ModelProto) -> int:
    """Version of the standard operator set."""
    return next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)


def _value(name: str, width: int) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", width])


def _cut(graph: GraphProto, wanted: str) -> None:
    needed, kept = {wanted}, []
    for node in reversed(graph.node):
        if needed & set(node.output):
            kept.append(node)
            needed |= _read_by(node)
    del graph.node[:]
    graph.node.extend(reversed(kept))
    stored = [tensor for tensor in graph.initializer if tensor.name in needed]
    del graph.initializer[:]
    graph.initializer.extend(stored)


def _read_by(node: onnx.NodeProto) -> set[str]:
    """Names that a node reads, including those read by its bodies from outside."""
    names = set(node.input)
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            names |= {name for inner in attribute.g.node for name in _read_by(inner)}
    return names


def _rename(graph: GraphProto, old: str, new: str) -> None:
    if old == new:
        return
    _rename_one(graph, new, f"{new}_was_taken")  # rename the other tensor of that name
    _rename_one(graph, old, new)


def _rename_one(graph: GraphProto, old: str, new: str) -> None:
    for node in graph.node:
        for names in (node.input, node.output):
            for i, name in enumerate(names):
                if name == old:
                    names[i] = new
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                _rename_one(attribute.g, old, new)
    for tensor in graph.initializer:
        if tensor.name == old:
            tensor.name = new


def _pass_through(graph: GraphProto) -> None:
    graph.node.append(helper.make_node("Identity", [INPUT], [OUTPUT]))
