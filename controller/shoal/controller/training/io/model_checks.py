"""What an ONNX file says of itself, and static checks that refuse it before anything of it runs.

A file of a few hundred bytes can ask for hours or gigabytes, so this counts and never expands:
function calls are multiplied, bodies are walked, shapes are not inferred, and weights are not read.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import AttributeProto, GraphProto, ModelProto, TensorProto, ValueInfoProto

from shoal.controller.releases.records import ModelFacts, TensorFact
from shoal.controller.training.io import onnx_graph
from shoal.errors import ModelError
from shoal.onnx_outline import MAPPED_FROM, outline
from shoal.signature import MOST_TENSORS
from shoal.tensors import RANK

#: Bytes of a model of rows, which is read whole; nodes with functions in place; depth of bodies.
LIMIT, NODES, DEPTH = 512 << 20, 50_000, 64
_DATATYPES = {
    TensorProto.FLOAT: "FP32", TensorProto.DOUBLE: "FP64", TensorProto.FLOAT16: "FP16",
    TensorProto.BOOL: "BOOL", TensorProto.STRING: "BYTES",
    **{getattr(TensorProto, f"{kind}{bits}"): f"{kind}{bits}"
       for kind in ("INT", "UINT") for bits in (8, 16, 32, 64)},
}  # fmt: skip
#: Types of which several elements share a byte.
_PACKED_BITS = {"UINT4": 4, "INT4": 4, "FLOAT4E2M1": 4, "UINT2": 2, "INT2": 2}
_MAX_NAME = 200
#: Elements in a byte of a stored tensor, at most.
_PER_BYTE = 8
#: Resident MB to load a model: of the process, a stored MB, a thousand nodes. Fitted to 18 models
#: of 2 kB to 30 MB; the worst was 6.5 MB off.
_BASE_MB, _PER_STORED_MB, _PER_KILONODE_MB = 8.9, 2.24, 6.2
#: The same of weights that are mapped, and packed one by one.
_PER_MAPPED_MB = 1.1


class Stored(NamedTuple):
    """Where the tensors of a file are that are not in its ModelProto.

    itself     name of the file, where `left_out` bytes of its own tensors are
    data       names of the data files beside it -> bytes
    """

    itself: str = ""
    left_out: int = 0
    data: Mapping[str, int] = {}


def read_outline(path: Path, name: str, whole: int = MAPPED_FROM) -> tuple[ModelProto, int]:
    """The model in `path`, and how many bytes of large tensors are left out of it: these are
    external data of the file itself. A file of less than `whole` bytes is read whole.

    ModelError as `read_model`.
    """
    if path.stat().st_size < whole:
        return read_model(path, name), 0
    found = outline(path, name)
    if path.name in found.locations:
        raise ModelError(f"{name} says that it keeps weights in itself", "export it again")
    return _parse(found.content, name), found.left_out


def read_model(path: Path, name: str) -> ModelProto:
    """The model in `path`; ModelError, naming `name`, when it is no ONNX model or too large."""
    if path.stat().st_size > LIMIT:
        raise ModelError(f"{name} is larger than {LIMIT >> 20} MiB", "use a smaller model")
    return _parse(path.read_bytes(), name)


def _parse(data: bytes, name: str) -> ModelProto:
    try:
        model = onnx.load_model_from_string(data)
    except (DecodeError, ValueError) as error:
        raise ModelError(
            f"{name} is not an ONNX file", "export it with torch.onnx or similar"
        ) from error
    if not model.graph.output or not model.opset_import:
        raise ModelError(f"{name} is not an ONNX model: it has no graph", "export it again")
    return model


def check_model(model: ModelProto, name: str, elsewhere: Stored | None = None) -> ModelFacts:
    """Facts of a model that may be loaded; ModelError says why another one may not.

    elsewhere   weights that are not in `model`; None where none may be
    """
    _check_texts(model, name)
    nodes = _count_nodes(model, name)
    elsewhere = elsewhere or Stored()
    stored = [_stored(tensor, name, elsewhere) for tensor in tensors_of(model)]
    _check_named(model, name, elsewhere.data)
    inside = sum(one.inside for one in stored)
    mapped = sum(one.outside for one in stored) + elsewhere.left_out
    return ModelFacts(
        ir_version=model.ir_version,
        opsets={o.domain: o.version for o in model.opset_import},
        inputs=[_tensor(value) for value in onnx_graph.graph_inputs(model.graph)],
        outputs=[_tensor(value) for value in model.graph.output],
        operators=_operators(model),
        nodes=nodes,
        parameters=sum(one.elements for one in stored),
        stored_bytes=inside + mapped,
        memory_mb=_BASE_MB
        + (_PER_STORED_MB * inside + _PER_MAPPED_MB * mapped) / (1 << 20)
        + _PER_KILONODE_MB * nodes / 1_000,
    )


def check_servable(facts: ModelFacts, name: str) -> None:
    """ModelError unless every input and output has a datatype of the protocol."""
    for what, tensors in (("input", facts.inputs), ("output", facts.outputs)):
        if len(tensors) > MOST_TENSORS:
            raise ModelError(
                f"{name} has {len(tensors)} {what}s, {MOST_TENSORS} at most are served"
            )
        for tensor in tensors:
            if tensor.type not in _DATATYPES.values():
                raise ModelError(
                    f"{name}: {what} {tensor.name!r} is {tensor.type}, which no request can carry",
                    "export it with tensors of "
                    + ", ".join(sorted(set(_DATATYPES.values()))),
                )  # fmt: skip
            if not 0 < len(tensor.name) <= _MAX_NAME or len(tensor.shape or ()) > RANK:
                raise ModelError(
                    f"{name}: {what} {tensor.name[:40]!r} has a name of more than {_MAX_NAME} "
                    f"characters, or more than {RANK} axes",
                    "export it with shorter names",
                )
            if not tensor.name.isprintable():
                raise ModelError(
                    f"{name}: the name of {what} {tensor.name[:40]!r} has control characters",
                    "export it with other names",
                )


def _check_texts(model: ModelProto, name: str) -> None:
    """ModelError for names that are not UTF-8: protobuf gives them as bytes."""
    if not all(isinstance(text, str) for text in _texts_of(model)):
        raise ModelError(f"{name} has names that are not UTF-8", "export it again")


def _texts_of(model: ModelProto) -> Iterator[object]:
    yield from (opset.domain for opset in model.opset_import)
    for function in model.functions:
        yield from (function.name, function.domain, *function.input, *function.output)
    for graph in graphs_of(model):
        for value in (*graph.input, *graph.output):
            yield value.name
            yield from (dim.dim_param for dim in value.type.tensor_type.shape.dim)
    for tensor in tensors_of(model):
        yield tensor.name
        yield from (text for one in tensor.external_data for text in (one.key, one.value))
    for node in _all_nodes(model):
        yield from (node.name, node.domain, node.op_type, *node.input, *node.output)


def graphs_of(model: ModelProto) -> Iterator[GraphProto]:
    """The main graph and every body of If, Loop and Scan in it and in functions."""
    waiting = [model.graph]
    waiting += [body for f in model.functions for node in f.node for body in _bodies(node)]
    while waiting:
        graph = waiting.pop()
        yield graph
        waiting += [body for node in graph.node for body in _bodies(node)]


def _bodies(node: onnx.NodeProto) -> list[GraphProto]:
    bodies = []
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            bodies.append(attribute.g)
        bodies.extend(attribute.graphs)
    return bodies


def _all_nodes(model: ModelProto) -> Iterator[onnx.NodeProto]:
    for graph in graphs_of(model):
        yield from graph.node
    for function in model.functions:
        yield from function.node


def tensors_of(model: ModelProto) -> Iterator[TensorProto]:
    """Every stored tensor: initializers, and attributes such as those of Constant."""
    for graph in graphs_of(model):
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield from (sparse.values, sparse.indices)
    for node in _all_nodes(model):
        for attribute in node.attribute:
            if attribute.type == AttributeProto.TENSOR:
                yield attribute.t
            yield from attribute.tensors


class _Stored(NamedTuple):
    """Elements of a tensor; its bytes in the file, and in data files."""

    elements: int
    inside: int
    outside: int


def _stored(tensor: TensorProto, name: str, elsewhere: Stored) -> _Stored:
    elements, size = math.prod(tensor.dims), tensor.ByteSize()
    entries = {one.key: one.value for one in tensor.external_data}
    location = entries.get("location", "")
    is_left_out = bool(elsewhere.left_out) and location == elsewhere.itself
    is_inside = is_left_out or (
        tensor.data_location != TensorProto.EXTERNAL and not tensor.external_data
    )
    stored = size + (int(entries["length"]) if is_left_out else 0)
    too_few = is_inside and elements > _PER_BYTE * (stored + 1)
    if too_few or any(length < 0 for length in tensor.dims):
        raise ModelError(
            f"{name}: the stored tensor {tensor.name[:40]!r} has a shape that its {stored} bytes "
            "cannot have",
            "export it again",
        )
    if is_inside:
        return _Stored(elements, size, 0)
    if location not in elsewhere.data:
        raise ModelError(
            f"{name} keeps its weights in other files: {location[:100]!r}, which has "
            f"{tensor.name[:100]!r}, was not given",
            "shoal model import takes it from beside the file, or from --data FILE; in the API it "
            f"is the file data:{location[:100] or 'NAME'}",
        )
    start, length = span_of(tensor, name)
    if start + length > elsewhere.data[location]:
        raise ModelError(
            f"{name}: {tensor.name[:100]!r} is in bytes {start} to {start + length} of "
            f"{location}, which has {elsewhere.data[location]}",
            "is it the data file of this model, and complete?",
        )
    return _Stored(elements, tensor.ByteSize(), length)


def span_of(tensor: TensorProto, name: str) -> tuple[int, int]:
    """The first byte of a tensor in its data file, and how many it has; ModelError for none."""
    entries = {one.key: one.value for one in tensor.external_data}
    try:
        start = _whole_number(entries.get("offset") or "0")
        needed = math.prod(tensor.dims) * _item_bytes(tensor.data_type)
        length = _whole_number(entries.get("length") or str(math.ceil(needed)))
        if length != math.ceil(needed):
            raise ValueError(f"length {length}, and its shape needs {math.ceil(needed)}")
    except ValueError as error:
        raise ModelError(
            f"{name}: the data of {tensor.name[:100]!r} in another file: {error!s:.100}",
            "export it again",
        ) from error
    return start, length


def _check_named(model: ModelProto, name: str, given: Mapping[str, int]) -> None:
    """ModelError for a data file that was given and that the model does not name."""
    named = {
        entry.value
        for tensor in tensors_of(model)
        for entry in tensor.external_data
        if entry.key == "location"
    }
    if spare := sorted(set(given) - named):
        raise ModelError(
            f"{name} has no weights in {spare[0][:100]!r}; the data files that it names: "
            f"{', '.join(sorted(named))[:300] or 'none'}",
            "leave it out, or call it as the model does",
        )


def _whole_number(text: str) -> int:
    """A number of up to 19 digits."""
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise ValueError(f"{text[:40]!r} is no number of bytes")
    return int(text)


def _item_bytes(datatype: int) -> float:
    """Bytes of one element; half a byte or less for those that share one."""
    try:
        kind = TensorProto.DataType.Name(datatype)
    except ValueError:
        raise ValueError(f"unknown type {datatype}") from None
    if kind in ("STRING", "UNDEFINED"):
        raise ValueError(f"{kind} has no bytes of fixed length")
    if kind in _PACKED_BITS:
        return _PACKED_BITS[kind] / 8
    return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(datatype)).itemsize


def _operators(model: ModelProto) -> dict[str, int]:
    counts = Counter(
        f"{node.domain}.{node.op_type}" if node.domain not in ("", "ai.onnx") else node.op_type
        for node in _all_nodes(model)
    )
    return dict(sorted(counts.items()))


def _count_nodes(model: ModelProto, name: str) -> int:
    """Nodes with every function call replaced by its body, which is counted and never made."""
    functions = {(f.domain, f.name): f for f in model.functions}
    known: dict[tuple[str, str], int] = {}

    def count(nodes: Iterator[onnx.NodeProto], calls: tuple[tuple[str, str], ...]) -> int:
        total = 0
        for node in nodes:
            key = (node.domain, node.op_type)
            total += size(key, calls) if key in functions else 1
            for body in _bodies(node):
                total += count(iter(body.node), (*calls, ("", "body")))
            if total > NODES or len(calls) > DEPTH:
                raise ModelError(
                    f"{name} has more than {NODES} nodes once its functions are in place, "
                    f"or bodies more than {DEPTH} deep",
                    "export it without repeated functions, or split it",
                )
        return total

    def size(key: tuple[str, str], calls: tuple[tuple[str, str], ...]) -> int:
        if key in calls:
            raise ModelError(f"{name}: function {key[1]} calls itself", "export it again")
        if key not in known:
            known[key] = count(iter(functions[key].node), (*calls, key))
        return known[key]

    return count(iter(model.graph.node), ())


def _tensor(value: ValueInfoProto) -> TensorFact:
    kind = value.type.WhichOneof("value")
    if kind != "tensor_type":
        return TensorFact(name=value.name, type=_type_name(value.type), shape=None)
    tensor = value.type.tensor_type
    shape = [_dim(dim) for dim in tensor.shape.dim] if tensor.HasField("shape") else None
    return TensorFact(name=value.name, type=_type_name(value.type), shape=shape)


def _dim(dim: onnx.TensorShapeProto.Dimension) -> int | str:
    if dim.HasField("dim_value") and dim.dim_value >= 0:
        return int(dim.dim_value)
    return str(dim.dim_param[:_MAX_NAME]) or "?"


def _type_name(kind: onnx.TypeProto) -> str:
    """Such as "FP32", "BFLOAT16" or "sequence(map(INT64, FP32))"."""
    which = kind.WhichOneof("value")
    if which == "tensor_type":
        element = kind.tensor_type.elem_type
        known = element in TensorProto.DataType.values()
        return _DATATYPES.get(element) or (
            TensorProto.DataType.Name(element) if known else f"unknown type {element}"
        )
    if which == "sequence_type":
        return f"sequence({_type_name(kind.sequence_type.elem_type)})"
    if which == "optional_type":
        return f"optional({_type_name(kind.optional_type.elem_type)})"
    if which == "map_type":
        key = _DATATYPES.get(kind.map_type.key_type, "?")
        return f"map({key}, {_type_name(kind.map_type.value_type)})"
    return str(which or "untyped").removesuffix("_type").replace("_", " ")
