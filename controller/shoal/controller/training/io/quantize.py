"""Static QDQ quantization by a recipe of firmware_profiles/variants.toml.

Activations are calibrated on training rows; only operators that multiply by weights are
quantized, which is where bytes and time are.
"""

import logging
import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, numpy_helper
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process

from shoal.controller.training.io.onnx_graph import INPUT, nodes_of
from shoal.controller.training.io.runtime import F32
from shoal.errors import ModelError
from shoal.profile import Recipe

#: Operators that multiply by weights.
OPERATORS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
CALIBRATION_ROWS, _BATCH = 512, 64
_TREES = ("TreeEnsemble", "TreeEnsembleClassifier", "TreeEnsembleRegressor")


def not_quantizable(model: ModelProto) -> str:
    """Why this model cannot be quantized; "" if it can."""
    found = {node.op_type for node in nodes_of(model.graph)}
    if found & set(_TREES):
        return "tree ensembles do not quantize"
    if "QuantizeLinear" in found or "DequantizeLinear" in found:
        return "it is already quantized"
    if not found & set(OPERATORS):
        return "it has no operator to quantize"
    return ""


def quantize(model: ModelProto, recipe: Recipe, rows: F32, name: str) -> bytes:
    """ONNX bytes of the variant; ModelError when the quantizer cannot.

    rows   float32 (n, F) of the training data
    """
    with tempfile.TemporaryDirectory() as folder:
        before, after = Path(folder) / "before.onnx", Path(folder) / "after.onnx"
        onnx.save(model, before)
        level = logging.root.level
        try:
            logging.root.setLevel(logging.ERROR)  # it warns about its own preprocessing
            quant_pre_process(str(before), str(before), skip_symbolic_shape=True)
            onnx.save(_flat_biases(onnx.load(before)), before)
            _quantize_file(before, after, recipe, rows)
        except Exception as error:
            raise ModelError(f"{name}: quantization failed: {error!s:.300}") from error
        finally:
            logging.root.setLevel(level)
        return _only_used_domains(onnx.load(after)).SerializeToString()


def _quantize_file(before: Path, after: Path, recipe: Recipe, rows: F32) -> None:
    quantize_static(
        str(before),
        str(after),
        _Calibration(rows),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.from_string(recipe.activation),
        weight_type=QuantType.from_string(recipe.weight),
        per_channel=recipe.per_channel,
        reduce_range=recipe.reduce_range,
        calibrate_method=CalibrationMethod.MinMax,
        op_types_to_quantize=list(OPERATORS),
    )


class _Calibration(CalibrationDataReader):
    """Rows spread evenly over the table, in batches."""

    def __init__(self, rows: F32) -> None:
        at = np.linspace(0, len(rows) - 1, min(len(rows), CALIBRATION_ROWS)).astype(int)
        chosen = rows[np.unique(at)]
        self._batches = iter(chosen[i : i + _BATCH] for i in range(0, len(chosen), _BATCH))

    def get_next(self) -> dict[str, F32] | None:
        batch = next(self._batches, None)
        return None if batch is None else {INPUT: batch}


def _flat_biases(model: ModelProto) -> ModelProto:
    """Biases of Gemm as (n,) instead of (1, n): the per-channel quantizer fails on the latter."""
    biases = {
        node.input[2]
        for node in model.graph.node
        if node.op_type == "Gemm" and len(node.input) == 3
    }
    for tensor in model.graph.initializer:
        if tensor.name in biases and len(tensor.dims) == 2 and tensor.dims[0] == 1:
            flat = numpy_helper.to_array(tensor).reshape(-1)
            tensor.CopyFrom(numpy_helper.from_array(flat, tensor.name))
    return model


def _only_used_domains(model: ModelProto) -> ModelProto:
    """Without unused opset imports left by optimisation: an older runtime may not know them."""
    used = {node.domain for node in nodes_of(model.graph)} | {""}
    kept = [opset for opset in model.opset_import if opset.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(kept)
    return model
