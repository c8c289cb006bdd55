"""An int8 backbone that every site shares, and a float head that is a site's own."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import ModelProto, numpy_helper
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_static,
)

from shoal.controller.training.gradient.losses import Loss
from shoal.controller.training.gradient.make import prepare, step_graph
from shoal.controller.training.gradient.selection import last_layer, named
from shoal.controller.training.gradient.weights import write_theta
from shoal.errors import ModelError
from unit.training.gradient.models import written
from unit.training.gradient.running import Trainer, session

ROWS = np.random.default_rng(0).standard_normal((64, 1, 32)).astype(np.float32)
LABELS = (ROWS.std((1, 2)) * 8).astype(np.int64) % 4


class Calibration(CalibrationDataReader):
    def __init__(self) -> None:
        self.rows: Iterator[npt.NDArray] = iter([ROWS])

    def get_next(self) -> dict[str, npt.NDArray] | None:
        rows = next(self.rows, None)
        return None if rows is None else {"x": rows}


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> ModelProto:
    """Two convolutions in int8 (QDQ, per channel), and a Gemm left in float32."""
    rng, folder = np.random.default_rng(1), tmp_path_factory.mktemp("int8")
    tensors = {
        "c1": rng.standard_normal((8, 1, 5)).astype(np.float32) / 2,
        "c2": rng.standard_normal((8, 8, 3)).astype(np.float32) / 5,
        "w": rng.standard_normal((4, 48)).astype(np.float32) / 7,
        "b": np.zeros(4, np.float32),
    }
    model = written(
        """cnn (float[N,1,32] x) => (float[N,4] out) {
            a = Conv<pads=[2,2]>(x, c1)  r = Relu(a)  p = MaxPool<kernel_shape=[2], strides=[2]>(r)
            d = Conv<pads=[1,1]>(p, c2)  s = Relu(d)
            q = AveragePool<kernel_shape=[3], strides=[3], pads=[1,1]>(s)
            f = Flatten(q)  z = Gemm<transB=1>(f, w, b)  out = Softmax(z) }""",
        tensors,
    )
    onnx.save(model, folder / "float.onnx")
    quantize_static(
        folder / "float.onnx",
        folder / "int8.onnx",
        Calibration(),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=["Conv", "MaxPool", "Relu"],
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    return onnx.load(folder / "int8.onnx")


def stored(model: ModelProto) -> dict[str, bytes]:
    return {t.name: numpy_helper.to_array(t).tobytes() for t in model.graph.initializer}


def test_training_the_head_leaves_every_bit_of_the_backbone(quantized: ModelProto) -> None:
    prepared = prepare(quantized, Loss("cross-entropy"), last_layer)
    assert [p.name for p in prepared.parameters] == ["w", "b"]
    trainer = Trainer(step_graph(prepared), prepared.theta)
    losses = [trainer.step(ROWS, LABELS, 0.5) for _ in range(60)]
    assert losses[-1] < losses[0]
    before = stored(quantized)
    after = stored(write_theta(prepared.inference, trainer.spec, trainer.theta))
    assert {name for name in before if after[name] != before[name]} == {"w", "b"}
    assert (
        sum(
            value.dtype == np.int8
            for value in map(numpy_helper.to_array, quantized.graph.initializer)
        )
        >= 2
    )


def test_the_head_learns_from_exactly_the_features_that_inference_sees(
    quantized: ModelProto,
) -> None:
    prepared = prepare(quantized, Loss("cross-entropy"), last_layer)
    trainer = Trainer(step_graph(prepared), prepared.theta)
    flatten = next(n for n in quantized.graph.node if n.op_type == "Flatten").output[0]
    cut = ModelProto()
    cut.CopyFrom(quantized)
    cut.graph.output.append(onnx.helper.make_tensor_value_info(flatten, 1, None))
    features = session(cut).run([flatten], {"x": ROWS})[0].astype(np.float64)
    w, b = (part.astype(np.float64) for part in trainer.spec.split(prepared.theta).values())
    for _ in range(20):
        trainer.step(ROWS, LABELS, 0.1)
        z = features @ w.T + b
        p = np.exp(z - z.max(1, keepdims=True))
        p = (p / p.sum(1, keepdims=True) - np.eye(4)[LABELS]) / len(LABELS)
        w, b = w - 0.1 * p.T @ features, b - 0.1 * p.sum(0)
    np.testing.assert_allclose(trainer.theta, np.concatenate([w.ravel(), b]), atol=1e-5)


def test_a_quantized_layer_cannot_be_trained_and_the_error_names_the_layers_that_can(
    quantized: ModelProto,
) -> None:
    scales = [
        t.name
        for t in quantized.graph.initializer
        if t.name.startswith("c2") and t.name.endswith("scale")
    ]
    with pytest.raises(ModelError, match="keep the layers that are to be trained in float32"):
        step_graph(prepare(quantized, Loss("cross-entropy"), named(scales)))
