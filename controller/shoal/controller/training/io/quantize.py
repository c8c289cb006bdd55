"""Quantized and smaller forms of a model, by a recipe of firmware_profiles/variants.toml.

static            QDQ: weights and activations in 8 bits, activations calibrated on real inputs
dynamic           weights in 8 bits, the scale of activations taken from each request
float16           weights and arithmetic in float16
float16-weights, int8-weights   see stored_weights.py

Only operators that multiply by weights are quantized, which is where bytes and time are; dynamic
quantization leaves Conv alone (ConvInteger takes 2.2 times fp32's time).
"""

import logging
import tempfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import onnx
from onnx import ModelProto, numpy_helper, version_converter
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process

from shoal.controller.training.io import stored_weights
from shoal.controller.training.io.onnx_graph import nodes_of, opset_of
from shoal.errors import ModelError
from shoal.profile import Recipe
from shoal.tensors import Array, Named

#: Operators that multiply by weights.
OPERATORS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
DYNAMIC_OPERATORS = ("Gemm", "LSTM", "MatMul")
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

    feeds   inputs by name to calibrate with, a run each
    """

    def __init__(self, model: ModelProto, feeds: Sequence[Named]) -> None:
        self._model, self._feeds = model, feeds
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
                    made = stored_weights.as_float16(self._model)
                elif recipe.quantizer == "int8-weights":
                    made = stored_weights.as_int8(self._model)
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
            _Calibration(self._feeds),
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


def _float16(model: ModelProto) -> ModelProto:
    from onnxruntime.transformers import float16

    copy = ModelProto()
    copy.CopyFrom(model)
    made: ModelProto = float16.convert_float_to_float16(copy, keep_io_types=True)
    return made


class _Calibration(CalibrationDataReader):
    def __init__(self, feeds: Sequence[Named]) -> None:
        self._feeds = iter(feeds)

    def get_next(self) -> dict[str, Array] | None:
        feeds = next(self._feeds, None)
        return None if feeds is None else dict(feeds)


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
