"""Canonicalize a user's model: one input, one output, plain operators, a free batch dimension."""

from collections.abc import Callable, Iterable
from typing import Any

from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper
from onnx.inliner import inline_local_functions
from onnx.version_converter import convert_version

from shoal.controller.training.gradient import classical
from shoal.controller.training.gradient.folding import evaluate, fold
from shoal.controller.training.gradient.forward import (
    copy_of,
    dims_of,
    opset_of,
    set_nodes,
    with_shapes,
)
from shoal.controller.training.gradient.graph import ONNX_TYPE, Node
from shoal.errors import ModelError

#: Minimum operator set, as Shoal's exporter writes it; a newer model keeps its own. Every
#: supported onnxruntime has it.
OPSET = 17
#: Matching version of the file format.
_IR = 8
#: Names of score outputs beside a label output.
_SCORES = ("output", "probabilities", "output_probability", "probs", "scores")


def read(model: ModelProto, output: str = "") -> ModelProto:
    """A trainable copy with the same outputs; ModelError names what cannot be trained.

    output   name of the output that is trained, where the model has several
    """
    copy = inline_local_functions(model) if model.functions else copy_of(model)
    _refuse_control_flow(copy.graph.node)
    _lift_constants(copy)
    wanted = _wanted_output(copy, output)
    _cut(copy, wanted)
    _lower(copy)
    copy = _at_least(copy, OPSET)
    _free_batch(copy)
    fold(copy)
    _cut(copy, wanted)
    _type_output(copy)
    return copy


def _refuse_control_flow(nodes: Iterable[NodeProto]) -> None:
    for proto in nodes:
        if any(a.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS) for a in proto.attribute):
            raise Node(proto).refuse("control flow", "export the model without If, Loop and Scan")


def _lift_constants(model: ModelProto) -> None:
    """Turn Constant nodes into initialisers and Dropout into Identity."""
    graph, kept = model.graph, []
    for proto in graph.node:
        if proto.op_type == "Constant":
            graph.initializer.append(_constant(proto))
        elif proto.op_type == "Dropout":
            kept.append(helper.make_node("Identity", proto.input[:1], proto.output[:1], proto.name))
        else:
            kept.append(proto)
    set_nodes(model, kept)


def _constant(proto: NodeProto) -> TensorProto:
    [value] = evaluate(proto, [], OPSET)
    return numpy_helper.from_array(value, proto.output[0])


def _wanted_output(model: ModelProto, output: str) -> str:
    names = [value.name for value in model.graph.output]
    if output in names:
        return output
    candidates = [name for name in _SCORES if name in names] if len(names) > 1 else names
    if output or not candidates:
        raise ModelError(
            f"the model has no output {output!r}" if output else "the model has several outputs",
            f"name the one that is trained, of: {', '.join(names)}",
        )
    return candidates[0]


def _cut(model: ModelProto, wanted: str) -> None:
    """Remove everything that does not lead to `wanted`."""
    graph, needed = model.graph, {wanted}
    kept: list[NodeProto] = []
    for proto in reversed(graph.node):
        if needed.intersection(proto.output):
            kept.append(proto)
            needed.update(proto.input)
    set_nodes(model, kept[::-1])
    _keep(graph.initializer, lambda tensor: tensor.name in needed)
    stored = {tensor.name for tensor in graph.initializer}
    _keep(graph.input, lambda value: value.name in needed - stored)
    _keep(graph.output, lambda value: value.name == wanted)
    if len(graph.input) != 1:
        listed = ", ".join(value.name for value in graph.input) or "none"
        raise ModelError(f"the model has inputs: {listed}", "export it with one input")


def _keep(repeated: Any, wanted: Callable[[Any], bool]) -> None:
    """Filter a protobuf list in place."""
    kept = [item for item in repeated if wanted(item)]
    del repeated[:]
    repeated.extend(kept)


def _lower(model: ModelProto) -> None:
    plain = classical.lower(list(model.graph.node))
    set_nodes(model, plain.nodes)
    model.graph.initializer.extend(plain.tensors)
    custom = [p for p in model.graph.node if p.domain not in ("", "ai.onnx")]
    kept = {o.domain: o.version for o in model.opset_import if o.domain != "ai.onnx"}
    kept[""] = opset_of(model)
    used = {"", *(p.domain for p in custom)}
    del model.opset_import[:]
    model.opset_import.extend(helper.make_opsetid(d, v) for d, v in kept.items() if d in used)


def _at_least(model: ModelProto, opset: int) -> ModelProto:
    if opset_of(model) >= opset:
        return model
    try:
        raised: ModelProto = convert_version(model, opset)
    except (RuntimeError, ValueError) as error:
        raise ModelError(
            f"opset {opset_of(model)} cannot be raised to {opset}: {error!s:.200}",
            f"export the model with opset {opset}",
        ) from error
    raised.ir_version = max(model.ir_version, _IR)
    return raised


def _free_batch(model: ModelProto) -> None:
    """Make axis 0 of the input a free batch dimension."""
    graph = model.graph
    del graph.value_info[:]
    shape = graph.input[0].type.tensor_type.shape
    if not shape.dim:
        raise ModelError("the model's input has no shape", "export it with shape (N, ...)")
    shape.dim[0].dim_param = "N"
    graph.output[0].type.tensor_type.ClearField("shape")


def _type_output(model: ModelProto) -> None:
    """Set the output's inferred shape; ModelError when its first axis is not the batch."""
    output = model.graph.output[0]
    found = with_shapes(model).graph.output[0].type.tensor_type
    dims = dims_of(found.shape.dim)
    if found.elem_type not in ONNX_TYPE.values():
        raise ModelError(f"output {output.name!r} is not float32", "train a float32 output")
    if not dims or not isinstance(dims[0], str):
        raise ModelError(
            f"output {output.name!r} has shape {dims}: it does not follow the batch",
            "export the model with a free batch dimension",
        )
    output.type.tensor_type.CopyFrom(found)
