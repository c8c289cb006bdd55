"""Quantized and smaller forms of a model, by a recipe of firmware_profiles/variants.toml.

static            QDQ: weights and activations in 8 bits, activations calibrated on training rows
dynamic           weights in 8 bits, the scale of activations taken from each request
float16           weights and arithmetic in float16
float16-weights   weights stored in float16, widened when the model is loaded: half of the bytes

Only operators that multiply by weights are quantized, which is where bytes and time are; dynamic
quantization leaves Conv alone (ConvInteger takes 2.2 times fp32's time).
"""

import logging
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, helper, numpy_helper, version_converter
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process

from shoal.controller.training.io import runtime
from shoal.controller.training.io.onnx_graph import INPUT, nodes_of, opset_of
from shoal.controller.training.io.runtime import F32
from shoal.errors import ModelError
from shoal.profile import Recipe

#: Operators that multiply by weights.
OPERATORS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
DYNAMIC_OPERATORS = ("Gemm", "LSTM", "MatMul")
CALIBRATION_ROWS, _BATCH = 512, 64
_TREES = {"TreeEnsemble", "TreeEnsembleClassifier", "TreeEnsembleRegressor"}
_QUANTIZED = {
    "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "DynamicQuantizeLSTM",
    "DynamicQuantizeMatMul", "ConvInteger", "MatMulInteger", "MatMulNBits", "QLinearConv",
    "QLinearMatMul", "QGemm",
}  # fmt: skip
#: DequantizeLinear has an axis, which weights per channel need, from this opset.
_AXIS_OPSET, _CONVERTED_OPSET = 13, 17
#: Tried one after the other: the second where adjusting weights to int32 biases fails.
_OPTIONS: tuple[dict[str, bool], ...] = ({}, {"QDQDisableWeightAdjustForInt32Bias": True})
#: Elements from which a tensor is stored in float16, and the largest value that it holds.
_LEAST_ELEMENTS, _LARGEST = 64, 65_504.0


def not_quantizable(model: ModelProto, quantizer: str = "static") -> str:
    """Why this model has no such form; "" if it can be tried."""
    found = {node.op_type for node in nodes_of(model.graph)}
    if found & _TREES:
        return "tree ensembles do not quantize"
    if found & _QUANTIZED:
        return "it is already quantized"
    wanted = {"static": OPERATORS, "dynamic": DYNAMIC_OPERATORS}.get(quantizer)
    if wanted is not None and not found & set(wanted):
        return f"it has no operator to quantize ({', '.join(wanted)})"
    return ""


class Quantizer:
    """Makes the forms of one model; prepared and calibrated once, whatever is asked of it.

    rows   float32 (n, F) of the training data
    most   rows to calibrate with
    """

    def __init__(self, model: ModelProto, rows: F32, most: int = CALIBRATION_ROWS) -> None:
        self._model, self._rows, self._most = model, rows, most
        self._folder = tempfile.TemporaryDirectory()
        self._prepared: ModelProto | None = None

    def close(self) -> None:
        """Remove the temporary files."""
        self._folder.cleanup()

    def nodes(self) -> list[str]:
        """Names of the nodes that static quantization quantizes, in their order."""
        return [n.name for n in self._prepare().graph.node if n.op_type in OPERATORS]

    def make(self, recipe: Recipe, name: str, excluded: Collection[str] = ()) -> bytes:
        """ONNX bytes of the variant `name`; ModelError when it cannot be made.

        excluded   names of nodes to leave as they are, of a static recipe
        """
        try:
            with _quiet():
                if recipe.quantizer == "dynamic":
                    made = self._dynamic(recipe)
                elif recipe.quantizer == "float16":
                    made = _float16(self._model)
                elif recipe.quantizer == "float16-weights":
                    made = stored_as_float16(self._model)
                else:
                    made = self._static(recipe, excluded)
        except Exception as error:
            raise ModelError(f"{name}: quantization failed: {error!s:.300}") from error
        return _only_used_domains(made).SerializeToString()

    def _prepare(self) -> ModelProto:
        """The model optimised for quantization, of an opset that has what it needs."""
        if self._prepared is None:
            model = self._model
            if opset_of(model) < _AXIS_OPSET:
                model = version_converter.convert_version(model, _CONVERTED_OPSET)
            path = self._path("prepared.onnx")
            onnx.save(model, path)
            quant_pre_process(str(path), str(path), skip_symbolic_shape=True)
            self._prepared = _named(_flat_biases(onnx.load(path)))
            onnx.save(self._prepared, path)
        return self._prepared

    def _static(self, recipe: Recipe, excluded: Collection[str]) -> ModelProto:
        self._prepare()
        for options in _OPTIONS:
            try:
                return self._static_with(recipe, excluded, options)
            except Exception:
                if options == _OPTIONS[-1]:
                    raise
        raise AssertionError("unreachable")

    def _static_with(
        self, recipe: Recipe, excluded: Collection[str], options: dict[str, bool]
    ) -> ModelProto:
        after, ranges = self._path("after.onnx"), self._path("ranges.json")
        quantize_static(
            str(self._path("prepared.onnx")),
            str(after),
            _Calibration(self._rows, self._most),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.from_string(recipe.activation),
            weight_type=QuantType.from_string(recipe.weight),
            per_channel=recipe.per_channel,
            reduce_range=recipe.reduce_range,
            calibrate_method=CalibrationMethod.MinMax,
            op_types_to_quantize=list(OPERATORS),
            nodes_to_exclude=sorted(excluded),
            extra_options=dict(options),
            calibration_cache_path=str(ranges),
        )
        return onnx.load(after)

    def _dynamic(self, recipe: Recipe) -> ModelProto:
        self._prepare()
        after = self._path("after.onnx")
        quantize_dynamic(
            str(self._path("prepared.onnx")),
            str(after),
            op_types_to_quantize=list(DYNAMIC_OPERATORS),
            per_channel=recipe.per_channel,
            reduce_range=recipe.reduce_range,
            weight_type=QuantType.from_string(recipe.weight),
        )
        return onnx.load(after)

    def _path(self, name: str) -> Path:
        return Path(self._folder.name) / name


def stored_as_float16(model: ModelProto) -> ModelProto:
    """Copy whose float32 weights are stored in float16, each with a Cast that onnxruntime folds
    when it loads the model. Tensors that float16 cannot hold stay; ModelError when all do."""
    copy = ModelProto()
    copy.CopyFrom(model)
    casts = []
    for tensor in copy.graph.initializer:
        if narrow := _narrowed(tensor):
            casts.append(_cast(tensor.name))
            tensor.CopyFrom(narrow)
    for node in copy.graph.node:
        value = next((a for a in node.attribute if a.name == "value"), None)
        if node.op_type == "Constant" and value is not None and (narrow := _narrowed(value.t)):
            casts.append(_cast(node.output[0]))
            value.t.CopyFrom(narrow)
            node.output[0] += _NARROW
    if not casts:
        raise ModelError("it has no float32 weights to store in float16")
    nodes = [*copy.graph.node]
    constants = [node for node in nodes if node.op_type == "Constant"]
    rest = [node for node in nodes if node.op_type != "Constant"]
    del copy.graph.node[:]
    copy.graph.node.extend([*constants, *casts, *rest])
    return copy


_NARROW = "_float16"


def _narrowed(tensor: TensorProto) -> TensorProto | None:
    if tensor.data_type != TensorProto.FLOAT:
        return None
    values = numpy_helper.to_array(tensor)
    if values.size < _LEAST_ELEMENTS or not np.abs(values).max() <= _LARGEST:
        return None
    return numpy_helper.from_array(values.astype(np.float16), tensor.name + _NARROW)


def _cast(name: str) -> onnx.NodeProto:
    return helper.make_node(
        "Cast", [name + _NARROW], [name], name=f"{name}_widened", to=TensorProto.FLOAT
    )


def _float16(model: ModelProto) -> ModelProto:
    from onnxruntime.transformers import float16

    copy = ModelProto()
    copy.CopyFrom(model)
    made: ModelProto = float16.convert_float_to_float16(copy, keep_io_types=True)
    return made


class _Calibration(CalibrationDataReader):
    """Rows spread evenly over the table, in batches."""

    def __init__(self, rows: F32, most: int) -> None:
        at = np.linspace(0, len(rows) - 1, min(len(rows), most)).astype(int)
        chosen = rows[np.unique(at)]
        step = min(_BATCH, runtime.rows_per_run(chosen))
        self._batches = iter(chosen[i : i + step] for i in range(0, len(chosen), step))

    def get_next(self) -> dict[str, F32] | None:
        batch = next(self._batches, None)
        return None if batch is None else {INPUT: batch}


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the quantizer's warnings about its own preprocessing."""
    level = logging.root.level
    logging.root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logging.root.setLevel(level)


def _named(model: ModelProto) -> ModelProto:
    """With a name for each node, unlike any other's: nodes are excluded by it."""
    taken: set[str] = set()
    for at, node in enumerate(model.graph.node):
        if not node.name or node.name in taken:
            node.name = f"{node.op_type}_{at}"
        taken.add(node.name)
    return model


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
