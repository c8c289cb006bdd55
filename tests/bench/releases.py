"""Valid releases with random weights, made quickly."""

from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

from shoal import bundle
from shoal import manifest as manifests
from shoal.agent.installed.io.slots import DiskSlots
from shoal.agent.installed.record import Slot
from shoal.manifest import TENSORS, TENSORS_SCHEMA, Feature, Manifest, Variant
from shoal.profile import load_profiles
from shoal.sketch import F32, References, reference_of
from shoal.tensors import Array

MODEL, INPUT, OUTPUT = "plates", "input", "output"
CLASSES, OPSET = 10, 17
#: Hidden layers: of a small model and of one whose file is 5 MB.
SMALL, BIG = (32,), (1_080, 1_080)
_FLOAT = 1  # onnx.TensorProto.FLOAT


class Release(NamedTuple):
    """A complete release. files: name -> bytes, without the manifest."""

    manifest: Manifest
    files: dict[str, bytes]

    @property
    def data(self) -> bytes:
        """The manifest's bytes."""
        return manifests.encode(self.manifest)

    @property
    def size(self) -> int:
        """Bytes that a device without any of it has to fetch."""
        return sum(map(len, self.files.values())) + len(self.data)


def make_release(graph: bytes, *, features: int, version: int = 1) -> Release:
    """Make a release of `graph`, for every profile with fp32."""
    rng = np.random.default_rng(version)
    rows = rng.normal(size=(2_000, features)).astype(np.float32)
    said = _answers(graph, rows)
    files = {
        "fp32.onnx": graph,
        "reference.json": msgspec.json.encode(_references(rows, said)),
        "golden.npz": bundle.Golden(rows[:32], {"fp32": said[:32]}).to_bytes(),
    }
    return _packed(
        files,
        version=version,
        task="classification",
        input=INPUT,
        output=OUTPUT,
        features=[Feature(name=f"x{j}", low=-4, high=4) for j in range(features)],
        labels=[str(c) for c in range(CLASSES)],
        dataset="drawn@1",
        dataset_sha256="0" * 64,
    )


def make_tensor_release(graph: bytes, items: list[dict[str, Array]]) -> Release:
    """Make a release of tensors, as an import with a sample of `items` does."""
    import onnx

    from shoal.controller.training import tensor_references
    from shoal.controller.training.io import model_checks, runtime, tensor_runs

    facts = model_checks.check_model(onnx.load_model_from_string(graph), MODEL)
    found = tensor_runs.measure(runtime.open_session(graph, MODEL), facts, MODEL, items)
    kinds = {"image": "image", "frame": "audio"}
    sketching = tensor_references.sketching_of(
        found.signature,
        items,
        found.answers,
        {name: kind for name, kind in kinds.items() if name in items[0]},
    )
    files = {
        "fp32.onnx": graph,
        "reference.json": msgspec.json.encode(sketching.references),
        "golden.msgpack": found.golden,
    }
    return _packed(
        files,
        schema=TENSORS_SCHEMA,
        version=1,
        task=TENSORS,
        input="",
        output="",
        features=[],
        labels=[],
        dataset="",
        dataset_sha256="",
        signature=sketching.signature,
    )


def _packed(files: dict[str, bytes], **more: Any) -> Release:
    """A release of fp32, reference and golden vectors, for every profile; more: of its manifest."""
    model, reference, golden = (bundle.describe(name, data) for name, data in files.items())
    boards = [name for name, profile in load_profiles().items() if not profile.unsupported]
    manifest = Manifest(
        model=MODEL,
        release_counter=1,
        variants=[Variant(name="fp32", file=model)],
        profiles={name: ["fp32"] for name in boards},
        reference=reference,
        golden=golden,
        opset=OPSET,
        ort=">=1.31",
        created_s=0.0,
        **more,
    )
    return Release(manifest, files)


def install(release: Release, models: Path) -> Slot:
    """Put `release` into slot a under `models`, as an update does; return the slot."""
    slots = DiskSlots(models)
    folder = slots.path(MODEL, "a")
    folder.mkdir(parents=True)
    for name, data in {**release.files, bundle.MANIFEST: release.data}.items():
        (folder / name).write_bytes(data)
    slot = Slot(
        slot="a",
        model=MODEL,
        release=release.manifest.release,
        path=f"release/{MODEL}/{release.manifest.version}/{bundle.MANIFEST}",
        sha256=bundle.describe(bundle.MANIFEST, release.data).sha256,
        variant="fp32",
        model_sha256=release.manifest.variant("fp32").file.sha256,
        counter=1,
    )
    slots.point(MODEL, slot)
    return slot


def perceptron(features: int, hidden: tuple[int, ...] = SMALL, seed: int = 0) -> bytes:
    """ONNX of a dense network with softmax; file of about 4 bytes a weight."""
    graph = _Graph(seed)
    at, width = INPUT, features
    for size in hidden:
        at = graph.add("Relu", graph.add("Gemm", at, graph.weights(width, size)))
        width = size
    graph.add("Softmax", graph.add("Gemm", at, graph.weights(width, CLASSES)), out=OUTPUT)
    return graph.to_bytes(features)


def convolutional(seed: int = 0) -> bytes:
    """ONNX of two convolutions on images of 8x8 that come as 64 values, and softmax."""
    graph = _Graph(seed)
    image = graph.add("Reshape", INPUT, graph.constant([-1, 1, 8, 8]))
    first = graph.add("Relu", graph.add("Conv", image, graph.weights(16, 1, 3, 3), pads=_SAME))
    second = graph.add("Relu", graph.add("Conv", first, graph.weights(32, 16, 3, 3), pads=_SAME))
    flat = graph.add("Reshape", second, graph.constant([-1, 32 * 64]))
    graph.add("Softmax", graph.add("Gemm", flat, graph.weights(32 * 64, CLASSES)), out=OUTPUT)
    return graph.to_bytes(64)


_SAME = [1, 1, 1, 1]


class _Graph:
    """Nodes and weights as they are added; a value is known by its name."""

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)
        self._nodes: list[Any] = []
        self._constants: list[Any] = []

    def add(self, operator: str, *inputs: str, out: str = "", **attributes: Any) -> str:
        from onnx import helper

        out = out or f"v{len(self._nodes)}"
        self._nodes.append(helper.make_node(operator, list(inputs), [out], **attributes))
        return out

    def weights(self, *shape: int) -> str:
        fan_in = shape[0] if len(shape) == 2 else int(np.prod(shape[1:]))
        drawn = self._random.normal(size=shape) / np.sqrt(fan_in)
        return self._keep(drawn.astype(np.float32))

    def constant(self, values: list[int]) -> str:
        return self._keep(np.array(values, np.int64))

    def to_bytes(self, features: int) -> bytes:
        from onnx import helper

        given = helper.make_tensor_value_info(INPUT, _FLOAT, ["n", features])
        wanted = helper.make_tensor_value_info(OUTPUT, _FLOAT, ["n", CLASSES])
        graph = helper.make_graph(self._nodes, "drawn", [given], [wanted], self._constants)
        opset = [helper.make_opsetid("", OPSET)]
        model = helper.make_model(graph, opset_imports=opset, ir_version=8)
        data: bytes = model.SerializeToString()
        return data

    def _keep(self, array: Any) -> str:
        from onnx import numpy_helper

        name = f"c{len(self._constants)}"
        self._constants.append(numpy_helper.from_array(array, name))
        return name


def _answers(graph: bytes, rows: F32) -> F32:
    from shoal.agent.serving.io.session import import_ort

    session = import_ort().InferenceSession(graph, providers=["CPUExecutionProvider"])
    said: F32 = session.run([OUTPUT], {INPUT: rows})[0]
    return said


def _references(rows: F32, said: F32) -> References:
    columns = {f"x{j}": column.astype(np.float64) for j, column in enumerate(rows.T)}
    score, winner = said.max(1).astype(np.float64), said.argmax(1).astype(np.float64)
    steps = [c - 0.5 for c in range(CLASSES + 1)]
    outputs = reference_of({"score": score, "prediction": winner}, {"prediction": steps})
    return References(inputs=reference_of(columns), outputs=outputs)
