"""Steps around a small model, run by onnxruntime."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

from shoal.controller.training.io import composed_model
from shoal.controller.training.steps import declaration
from shoal.tensors import Array

FLOAT = TensorProto.FLOAT


def identity(shape: Sequence[int | str], kind: int = FLOAT, opset: int = 18) -> onnx.ModelProto:
    """x -> y: x unchanged."""
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info("y", kind, shape)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def composed(model: onnx.ModelProto, declared: Mapping[str, Any]) -> onnx.ModelProto:
    """The model with these steps, as an import makes it."""
    steps = declaration.parse(msgspec.json.encode(declared))
    found = composed_model.compose(model, steps, "it")
    onnx.checker.check_model(found, full_check=True)
    return found


def outputs(model: onnx.ModelProto, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """Answers by name."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(feeds)), strict=True))


def prepared(
    steps: Sequence[Mapping[str, Any]], raw: Array, shape: Sequence[int | str], kind: int = FLOAT
) -> Array:
    """What a model reads of `raw` behind these steps."""
    declared = {"input": [{"name": "x", "from": "raw", "steps": list(steps)}]}
    return outputs(composed(identity(shape, kind), declared), {"raw": raw})["y"]


def answered(steps: Sequence[Mapping[str, Any]], scores: Array) -> dict[str, Array]:
    """What becomes of a model's scores, as output "out"."""
    shape = [None, *scores.shape[1:]]
    model = identity(shape, helper.np_dtype_to_tensor_dtype(scores.dtype))
    declared = {"output": [{"name": "y", "as": "out", "steps": list(steps)}]}
    return outputs(composed(model, declared), {"x": scores})


def photo(height: int, width: int, channels: int = 3, seed: int = 0) -> Array:
    """Waves, a ramp and noise: uint8 (height, width, channels)."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    parts = [
        128 + 100 * np.sin(x / 17) * np.cos(y / 9),
        x * 255 / width,
        rng.integers(0, 256, (height, width)),
    ]
    return np.stack(parts[:channels], -1).clip(0, 255).astype(np.uint8)
