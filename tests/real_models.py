"""Small hand-made ONNX releases in a folder, for the real onnxruntime."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from shoal import bundle
from shoal import manifest as manifests
from shoal.agent.installed.record import Slot
from shoal.manifest import Feature, File, Manifest, Variant
from shoal.sketch import References, reference_of

FEATURES, LABELS = 4, ["a", "b", "c"]


def mlp(
    *,
    opset: int = 20,
    ir: int = 10,
    hidden: int = 8,
    layers: int = 1,
    seed: int = 0,
    trained: int = 0,
) -> onnx.ModelProto:
    """input float (n, 4) -> `layers` of `hidden` -> output: probabilities of three classes.

    trained   seed of a small change of the same weights
    """
    rng, more = np.random.default_rng(seed), np.random.default_rng(trained)
    sizes = [FEATURES, *[hidden] * layers, len(LABELS)]
    nodes, weights, last = [], [], "input"
    for i, (rows, columns) in enumerate(itertools.pairwise(sizes)):
        drawn = rng.normal(size=(rows, columns))
        if trained:
            drawn += 1e-4 * more.normal(size=(rows, columns))
        weight = (drawn / np.sqrt(rows)).astype(np.float32)
        weights.append(numpy_helper.from_array(weight, f"w{i}"))
        nodes.append(helper.make_node("MatMul", [last, f"w{i}"], [f"h{i}"]))
        last = f"h{i}"
        if i < layers:
            nodes.append(helper.make_node("Relu", [last], [f"r{i}"]))
            last = f"r{i}"
    nodes.append(helper.make_node("Softmax", [last], ["output"], axis=1))
    return model_of(nodes, weights, opset=opset, ir=ir)


def model_of(
    nodes: Sequence[Any],
    weights: Sequence[Any] = (),
    *,
    opset: int = 20,
    ir: int = 10,
    given: int = TensorProto.FLOAT,
    domain: str = "",
) -> onnx.ModelProto:
    """A model of these nodes, from "input" to "output"."""
    graph = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info("input", given, ["n", FEATURES])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["n", len(LABELS)])],
        list(weights),
    )
    opsets = [helper.make_opsetid("", opset)]
    if domain:
        opsets.append(helper.make_opsetid(domain, 1))
    return helper.make_model(graph, opset_imports=opsets, ir_version=ir)


def answers(model: bytes, rows: np.ndarray) -> np.ndarray:
    import onnxruntime

    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return session.run(["output"], {"input": rows})[0]


def put_release(
    folder: Path,
    *,
    version: int = 1,
    models: dict[str, bytes] | None = None,
    golden: dict[str, np.ndarray] | None = None,
    profile: str = "x86-vnni",
    **changes: Any,
) -> Manifest:
    """Write a complete, valid bundle; `golden` replaces the models' outputs."""
    folder.mkdir(parents=True, exist_ok=True)
    models = models or {"fp32": mlp(seed=version).SerializeToString()}
    rows = np.random.default_rng(9).normal(size=(16, FEATURES)).astype(np.float32)
    outputs = golden or {name: answers(model, rows) for name, model in models.items()}
    first = next(iter(outputs.values()))
    references = References(
        inputs=reference_of({f"x{i}": rows[:, i].astype(np.float64) for i in range(FEATURES)}),
        outputs=reference_of(
            {"score": first.max(1).astype(np.float64), "prediction": first.argmax(1) * 1.0}
        ),
    )
    made = Manifest(
        model="parts",
        version=version,
        release_counter=1,
        task="classification",
        input="input",
        output="output",
        features=[Feature(name=f"x{i}", low=-3, high=3) for i in range(FEATURES)],
        labels=LABELS,
        variants=[
            Variant(name=name, file=_put(folder, f"{name}.onnx", data))
            for name, data in models.items()
        ],
        profiles={profile: list(models)},
        reference=_put(folder, "reference.json", msgspec.json.encode(references)),
        golden=_put(folder, "golden.npz", bundle.Golden(rows, outputs).to_bytes()),
        opset=20,
        ort=">=1.31",
        created_s=1e9,
        dataset="d@1",
        dataset_sha256="0" * 64,
    )
    manifest = msgspec.structs.replace(made, **changes)
    (folder / bundle.MANIFEST).write_bytes(manifests.encode(manifest))
    return manifest


def slot_of(version: int = 1) -> Slot:
    """Slot a with variant fp32 of a release."""
    return Slot(
        slot="a", model="parts", release=f"parts@{version}", path="release/parts/1/manifest.json",
        sha256="", variant="fp32", model_sha256="", counter=1,
    )  # fmt: skip


def _put(folder: Path, name: str, data: bytes) -> File:
    (folder / name).write_bytes(data)
    return bundle.describe(name, data)
