"""Models of digits as rows of 64 pixels, small but of the kinds that people quantize.

Each body is drawn at random, by seed, and its last layer fitted: right on most digits, and made in
a second.
"""

import warnings

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_digits
from sklearn.neural_network import MLPClassifier

Array = np.ndarray
_OPSET = 17


def conv(opset: int = _OPSET) -> onnx.ModelProto:
    """Two convolutions, pooling and a dense layer."""
    random = np.random.default_rng(0)
    weights = {
        "image": np.array([-1, 1, 8, 8]),
        "k0": random.normal(size=(32, 1, 3, 3)) / 3,
        "k1": random.normal(size=(64, 32, 3, 3)) / 17,
    }
    nodes = [
        helper.make_node("Reshape", ["scaled", "image"], ["x0"]),
        helper.make_node("Conv", ["x0", "k0"], ["c0"], name="Conv_0", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c0"], ["r0"]),
        helper.make_node("Conv", ["r0", "k1"], ["c1"], name="Conv_1", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("MaxPool", ["r1"], ["p1"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Flatten", ["p1"], ["features"]),
    ]
    return _with_head(nodes, weights, 1024, opset)


def lstm() -> onnx.ModelProto:
    """An LSTM over the image's eight rows, and a dense layer on its states."""
    random, hidden = np.random.default_rng(0), 64
    weights = {
        "image": np.array([-1, 8, 8]),
        "w": random.normal(size=(1, 4 * hidden, 8)) / 2,
        "r": random.normal(size=(1, 4 * hidden, hidden)) / 8,
        "flat": np.array([-1, 8 * hidden]),
    }
    nodes = [
        helper.make_node("Reshape", ["scaled", "image"], ["x0"]),
        helper.make_node("Transpose", ["x0"], ["steps"], perm=[1, 0, 2]),
        helper.make_node("LSTM", ["steps", "w", "r"], ["y"], name="LSTM_0", hidden_size=hidden),
        helper.make_node("Transpose", ["y"], ["by_row"], perm=[2, 0, 1, 3]),
        helper.make_node("Reshape", ["by_row", "flat"], ["features"]),
    ]
    return _with_head(nodes, weights, 8 * hidden, _OPSET)


def wide_range() -> onnx.ModelProto:
    """A dense network whose first layer has one output that is 100,000 times the others.

    Eight bits for all of them leave nothing of the pixels.
    """
    x, y = load_digits(return_X_y=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # 60 rounds are enough here
        net = MLPClassifier((64, 32), max_iter=60, random_state=0).fit(x / 16, y)
    first = np.hstack([np.eye(64) / 16, np.zeros((64, 1))])
    weights = {"w": first, "b": np.array([0.0] * 64 + [1e5])}
    coefs = [np.vstack([net.coefs_[0], np.zeros((1, 64))]), *net.coefs_[1:]]
    nodes = [helper.make_node("Gemm", ["input", "w", "b"], ["x0"], name="Gemm_wide")]
    for i, (w, b) in enumerate(zip(coefs, net.intercepts_, strict=True)):
        weights |= {f"w{i}": w, f"b{i}": b}
        gemm = [f"x{i}", f"w{i}", f"b{i}"]
        nodes.append(helper.make_node("Gemm", gemm, [f"y{i}"], name=f"Gemm_{i}"))
        if i < 2:
            nodes.append(helper.make_node("Relu", [f"y{i}"], [f"x{i + 1}"]))
    nodes.append(helper.make_node("Softmax", ["y2"], ["output"], axis=1))
    return _model(nodes, weights, "output", 10, _OPSET)


def _with_head(
    nodes: list[onnx.NodeProto], weights: dict[str, Array], width: int, opset: int
) -> onnx.ModelProto:
    """The body with a fitted dense layer and a softmax."""
    body = [helper.make_node("Div", ["input", "sixteen"], ["scaled"]), *nodes]
    weights = {"sixteen": np.array(16.0)} | weights
    x, y = load_digits(return_X_y=True)
    session = onnxruntime.InferenceSession(
        _model(body, weights, "features", width, opset).SerializeToString()
    )
    (features,) = session.run(["features"], {"input": x.astype(np.float32)})
    features = np.hstack([features, np.ones((len(y), 1))]).astype(np.float64)
    squares = features.T @ features + 1e-3 * len(y) * np.eye(width + 1)
    head = 20 * np.linalg.solve(squares, features.T @ np.eye(10)[y])
    weights |= {"head": head[:-1], "bias": head[-1]}
    body += [
        helper.make_node("Gemm", ["features", "head", "bias"], ["logits"], name="Gemm_0"),
        helper.make_node("Softmax", ["logits"], ["output"], axis=1),
    ]
    return _model(body, weights, "output", 10, opset)


def _model(
    nodes: list[onnx.NodeProto], weights: dict[str, Array], output: str, width: int, opset: int
) -> onnx.ModelProto:
    stored = [
        numpy_helper.from_array(v if v.dtype == np.int64 else v.astype(np.float32), name)
        for name, v in weights.items()
    ]
    graph = helper.make_graph(
        nodes, "digits",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", 64])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["N", width])],
        stored,
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
