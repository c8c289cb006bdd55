"""Small releases of tensors: ONNX graphs of every datatype and form, in a folder each."""

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
from onnx import TensorProto, helper, numpy_helper

from onnx_files import kept_apart
from shoal import bundle
from shoal import manifest as manifests
from shoal.agent.installed.record import Slot
from shoal.agent.serving.engine import Engine
from shoal.agent.serving.inference import Inference
from shoal.agent.serving.io.client import tensor_request, tensors_of
from shoal.agent.serving.io.runtime import OrtLoader
from shoal.agent.serving.routes import Request
from shoal.golden import GoldenTensors, Vector
from shoal.manifest import TENSORS, TENSORS_SCHEMA, Manifest, Variant
from shoal.profile import profile
from shoal.signature import Signature, State, Tensor
from shoal.sketch import Reference, References
from shoal.tensors import DTYPES, Array, StoredTensor, to_bytes

MODEL = "any"
#: Nothing is sketched of a release of tensors.
NOTHING = References(inputs=Reference(features=[]), outputs=Reference(features=[]))
TYPES = {
    "BOOL": TensorProto.BOOL, "UINT8": TensorProto.UINT8, "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32, "UINT64": TensorProto.UINT64, "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16, "INT32": TensorProto.INT32, "INT64": TensorProto.INT64,
    "FP16": TensorProto.FLOAT16, "FP32": TensorProto.FLOAT, "FP64": TensorProto.DOUBLE,
    "BYTES": TensorProto.STRING,
}  # fmt: skip
#: Values that a careless reader changes, of each datatype.
EXTREMES: dict[str, list[Any]] = {
    "BOOL": [True, False, True],
    **{
        name: [np.iinfo(dtype).min, np.iinfo(dtype).max, 1]
        for name, dtype in DTYPES.items()
        if dtype.kind in "iu"
    },
    "FP16": [0.1, -65504.0, 6e-8],
    "FP32": [0.1, 3.4e38, 1e-45],
    "FP64": [0.1, 1.7976931348623157e308, 5e-324],
    "BYTES": ["", "é\0ü", "a\nb"],
}


class TensorModel(NamedTuple):
    """A graph, what is signed of it, and inputs that fit."""

    graph: bytes
    signature: Signature
    feeds: list[dict[str, Array]]


def tensor(name: str, datatype: Any, shape: Sequence[int | str], **more: Any) -> Tensor:
    """A tensor of a signature; an axis named "N" counts items."""
    batch = {"batch": list(shape).index("N")} if "N" in shape else {}
    return Tensor(name=name, datatype=datatype, shape=list(shape), **(batch | more))


def graph(signature: Signature, nodes: Sequence[Any], weights: Mapping[str, Array] = {}) -> bytes:
    """ONNX bytes with the signature's inputs and outputs."""
    made = helper.make_graph(
        list(nodes),
        "g",
        [_info(t) for t in signature.inputs],
        [_info(t) for t in signature.outputs],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    opsets = [helper.make_opsetid("", 20)]
    return helper.make_model(made, opset_imports=opsets, ir_version=10).SerializeToString()


def raw(model: TensorModel, feeds: Mapping[str, Array], *outputs: str) -> list[Array]:
    """What onnxruntime itself answers."""
    import onnxruntime

    session = onnxruntime.InferenceSession(model.graph, providers=["CPUExecutionProvider"])
    return [np.asarray(array) for array in session.run([*outputs] or None, dict(feeds))]


def identity(datatype: str) -> TensorModel:
    """x (N, 3) -> y: x unchanged."""
    signature = Signature(
        inputs=[tensor("x", datatype, ["N", 3])], outputs=[tensor("y", datatype, ["N", 3])],
        together="batch", item_bytes=48,
    )  # fmt: skip
    nodes = [helper.make_node("Identity", ["x"], ["y"])]
    values = np.array([EXTREMES[datatype]], DTYPES[datatype])
    return TensorModel(graph(signature, nodes), signature, [{"x": values}])


def picture() -> TensorModel:
    """uint8 (N, 3, 4, 4) -> mean of each channel, and the brightest one; several outputs."""
    signature = Signature(
        inputs=[tensor("picture", "UINT8", ["N", 3, 4, 4])],
        outputs=[tensor("means", "FP32", ["N", 3]), tensor("best", "INT64", ["N"])],
        together="batch",
        item_bytes=68,
    )
    nodes = [
        helper.make_node("Cast", ["picture"], ["x"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["x", "axes"], ["means"], keepdims=0),
        helper.make_node("ArgMax", ["means"], ["best"], axis=1, keepdims=0),
    ]
    pixels = np.random.default_rng(3).integers(0, 256, (2, 3, 4, 4), np.uint8)
    model = graph(signature, nodes, {"axes": np.array([2, 3])})
    return TensorModel(model, signature, [{"picture": pixels}])


def scaled() -> TensorModel:
    """x (3, N) and a scale that may be left out -> y (3, N); items are on axis 1."""
    signature = Signature(
        inputs=[tensor("x", "FP64", [3, "N"]), tensor("scale", "FP64", [], default=[2.0])],
        outputs=[tensor("y", "FP64", [3, "N"])],
        together="batch",
        item_bytes=48,
    )
    nodes = [helper.make_node("Mul", ["x", "scale"], ["y"])]
    feeds = {"x": np.arange(6.0).reshape(3, 2) / 3, "scale": np.array(2.0)}
    return TensorModel(graph(signature, nodes), signature, [feeds])


def square() -> TensorModel:
    """A scalar -> a scalar: no axis at all."""
    signature = Signature(
        inputs=[tensor("x", "FP32", [])], outputs=[tensor("y", "FP32", [])], item_bytes=8
    )
    nodes = [helper.make_node("Mul", ["x", "x"], ["y"])]
    return TensorModel(graph(signature, nodes), signature, [{"x": np.array(1.5, np.float32)}])


def constant() -> TensorModel:
    """No input -> an output."""
    signature = Signature(inputs=[], outputs=[tensor("y", "INT32", [2])])
    nodes = [helper.make_node("Identity", ["w"], ["y"])]
    weights = {"w": np.array([3, 4], np.int32)}
    return TensorModel(graph(signature, nodes, weights), signature, [{}])


def lookup() -> TensorModel:
    """ids (N, T) of a vocabulary of five -> vectors (N, T, 2): other ids break the run."""
    signature = Signature(
        inputs=[tensor("ids", "INT64", ["N", "T"])],
        outputs=[tensor("vectors", "FP32", ["N", "T", 2])],
        together="batch",
        item_bytes=64,
    )
    nodes = [helper.make_node("Gather", ["table", "ids"], ["vectors"])]
    table = np.arange(10, dtype=np.float32).reshape(5, 2)
    model = graph(signature, nodes, {"table": table})
    return TensorModel(model, signature, [{"ids": np.array([[0, 4, 2]])}])


def stack(count: int, width: int) -> TensorModel:
    """x (N, width) -> y: so many layers with weights of width² floats each."""
    signature = Signature(
        inputs=[tensor("x", "FP32", ["N", width])], outputs=[tensor("y", "FP32", ["N", width])],
        together="batch", item_bytes=8 * width,
    )  # fmt: skip
    rng = np.random.default_rng(5)
    weights = {
        f"w{i}": (rng.normal(size=(width, width)) / width**0.5).astype(np.float32)
        for i in range(count)
    }
    names = ["x", *(f"h{i}" for i in range(1, count)), "y"]
    nodes = [helper.make_node("MatMul", [names[i], f"w{i}"], [names[i + 1]]) for i in range(count)]
    feeds = {"x": rng.normal(size=(2, width)).astype(np.float32)}
    return TensorModel(graph(signature, nodes, weights), signature, [feeds])


def table(rows: int, width: int) -> TensorModel:
    """ids (N,) -> vectors (N, width): row i of the table is i throughout."""
    signature = Signature(
        inputs=[tensor("ids", "INT64", ["N"])], outputs=[tensor("vectors", "FP32", ["N", "width"])],
        together="batch", item_bytes=8 + 4 * width,
    )  # fmt: skip
    nodes = [helper.make_node("Gather", ["table", "ids"], ["vectors"])]
    values = np.repeat(np.arange(rows, dtype=np.float32)[:, None], width, axis=1)
    model = graph(signature, nodes, {"table": values})
    return TensorModel(model, signature, [{"ids": np.array([0])}])


def running_sum() -> TensorModel:
    """x (1, 2) and a state -> their sum, which is the next state: recurrent."""
    signature = Signature(
        inputs=[tensor("x", "FP32", [1, 2]), tensor("h", "FP32", [1, 2])],
        outputs=[tensor("y", "FP32", [1, 2]), tensor("hn", "FP32", [1, 2])],
        states=[State(taken="h", given="hn", shape=[1, 2], initial=0.0)],
        item_bytes=32,
    )
    nodes = [
        helper.make_node("Add", ["x", "h"], ["y"]),
        helper.make_node("Identity", ["y"], ["hn"]),
    ]
    feeds = {"x": np.float32([[1, 2]]), "h": np.float32([[0, 0]])}
    return TensorModel(graph(signature, nodes), signature, [feeds])


def ask(
    inference: Inference,
    feeds: Mapping[str, Array],
    *,
    sequence: str | int | None = None,
    start: bool = False,
    end: bool = False,
) -> dict[str, Array]:
    """The outputs of a request in bytes, as a program on the device sends it."""
    head, parts = tensor_request(feeds, (), sequence, start, end)
    body = head + b"".join(parts)
    response = inference.respond(Request("POST", f"/v2/models/{MODEL}/infer", body, len(head)))
    assert response.status == 200, response.body[:500]
    found = json.loads(response.body[: response.json_bytes])
    return tensors_of(found["outputs"], response.body, response.json_bytes)


def same(a: Array, b: Array) -> bool:
    """Whether two arrays are the same, bit for bit."""
    return a.shape == b.shape and a.dtype == b.dtype and to_bytes(a) == to_bytes(b)


MODELS: dict[str, Callable[[], TensorModel]] = {
    **{f"identity {datatype}": functools.partial(identity, datatype) for datatype in TYPES},
    **{made.__name__: made for made in (picture, scaled, square, constant, lookup, running_sum)},
}


def put_tensors(
    folder: Path,
    model: TensorModel,
    *,
    version: int = 1,
    golden: Sequence[Mapping[str, Array]] | None = None,
    apart: Sequence[str] = (),
    **changes: Any,
) -> Manifest:
    """Write a complete, valid bundle; `golden` replaces the model's outputs of each vector.

    apart   names of data files to keep the graph's weights in
    """
    names = [output.name for output in model.signature.outputs]
    found = golden or [dict(zip(names, raw(model, f, *names), strict=True)) for f in model.feeds]
    vectors = [
        Vector(inputs=_stored(feeds), outputs={"fp32": _stored(outputs)})
        for feeds, outputs in zip(model.feeds, found, strict=True)
    ]
    graph, data = kept_apart(model.graph, apart) if apart else (model.graph, {})
    files = {
        "fp32.onnx": graph,
        **data,
        "reference.json": msgspec.json.encode(NOTHING),
        "golden.msgpack": GoldenTensors(vectors=vectors).to_bytes(),
    }
    made = manifest_of(model.signature, version, files)
    manifest = msgspec.structs.replace(made, **changes)
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in {**files, bundle.MANIFEST: manifests.encode(manifest)}.items():
        (folder / name).write_bytes(data)
    return manifest


def manifest_of(
    signature: Signature, version: int = 1, files: Mapping[str, bytes] | None = None
) -> Manifest:
    """The manifest of a release; without its files, of one that cannot be loaded."""
    described = {
        name: bundle.describe(name, (files or {}).get(name, b""))
        for name in ("fp32.onnx", "reference.json", "golden.msgpack", *(files or {}))
    }
    data = [described[name] for name in list(described)[3:]]
    return Manifest(
        schema=TENSORS_SCHEMA,
        model=MODEL,
        version=version,
        release_counter=1,
        task=TENSORS,
        input="",
        output="",
        features=[],
        labels=[],
        variants=[Variant(name="fp32", file=described["fp32.onnx"], data=data or msgspec.UNSET)],
        profiles={"x86-vnni": ["fp32"], "generic": ["fp32"]},
        reference=described["reference.json"],
        golden=described["golden.msgpack"],
        opset=20,
        ort=">=1.31",
        created_s=1e9,
        dataset="",
        dataset_sha256="",
        signature=signature,
    )


def engine_of(
    signature: Signature,
    session: Any = None,
    version: int = 1,
    references: References = NOTHING,
) -> Engine:
    """An engine without files; it answers as `session` does."""
    return Engine(
        slot=slot_of(version), manifest=manifest_of(signature, version), references=references,
        session=session, slow_s=1.0,
    )  # fmt: skip


def slot_of(version: int = 1, slot: str = "a") -> Slot:
    """A slot with variant fp32 of a release."""
    return Slot(
        slot=slot, model=MODEL, release=f"{MODEL}@{version}", path=f"release/{MODEL}/{version}",
        sha256=str(version), variant="fp32", model_sha256="", counter=1,
    )  # fmt: skip


def loaded(folder: Path, model: TensorModel, version: int = 1, **changes: Any) -> Engine:
    """The engine of a release, in onnxruntime."""
    folder = folder / str(version)
    put_tensors(folder, model, version=version, **changes)
    loader = OrtLoader(lambda model, slot: folder)
    return loader.load(slot_of(version), profile("x86-vnni"))


def _info(of: Tensor) -> Any:
    return helper.make_tensor_value_info(of.name, TYPES[of.datatype], of.shape)


def _stored(arrays: Mapping[str, Array]) -> dict[str, StoredTensor]:
    return {name: StoredTensor.of(array) for name, array in arrays.items()}
