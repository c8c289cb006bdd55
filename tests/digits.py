"""Non-IID digits of many devices, and a model for them, for tests and benches.

Data: scikit-learn's load_digits, 1797 real images of 8 by 8.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from shoal.controller.training.gradient.losses import Loss
from shoal.controller.training.gradient.make import prepare, step_graph
from shoal.params import F32

LAYERS = {"w0": (64, 64), "b0": (64,), "w1": (64, 10), "b1": (10,)}
_TRAIN = 1437


class Rows(NamedTuple):
    """x float32 (N, 64) in 0..1, y int64 (N,)."""

    x: F32
    y: npt.NDArray[np.int64]

    def only(self, chosen: npt.NDArray) -> "Rows":
        return Rows(self.x[chosen], self.y[chosen])


def homes_of(
    devices: int, random: np.random.Generator, *, alike: float = 0.3, least: int = 2
) -> tuple[list[Rows], Rows]:
    """Rows of each device, and test rows.

    alike   Dirichlet parameter, per digit: a small one gives each device few digits
    least   smallest number of rows of a device
    """
    from sklearn.datasets import load_digits

    images, digits = load_digits(return_X_y=True)
    rows = Rows((images / 16).astype(np.float32), digits.astype(np.int64))
    order = random.permutation(len(digits))
    learn, test = order[:_TRAIN], order[_TRAIN:]
    homes: list[list[int]] = [[] for _ in range(devices)]
    for digit in range(10):
        of_it = learn[rows.y[learn] == digit]
        cuts = np.cumsum(random.dirichlet([alike] * devices) * len(of_it)).astype(int)[:-1]
        for home, part in zip(homes, np.split(of_it, cuts), strict=True):
            home.extend(part.tolist())
    for home in homes:
        home.extend(random.choice(learn, max(0, least - len(home))).tolist())
    return [rows.only(np.array(home)) for home in homes], rows.only(test)


def forward(seed: int = 0) -> onnx.ModelProto:
    """An untrained MLP 64-64-10: pixels in 0..1 to probabilities."""
    random = np.random.default_rng(seed)
    numbers = [
        numpy_helper.from_array((random.normal(size=shape) * 0.15).astype(np.float32), name)
        for name, shape in LAYERS.items()
    ]
    nodes = [
        helper.make_node("Gemm", ["x", "w0", "b0"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Gemm", ["r", "w1", "b1"], ["z"]),
        helper.make_node("Softmax", ["z"], ["p"]),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 64])
    p = helper.make_tensor_value_info("p", TensorProto.FLOAT, ["N", 10])
    graph = helper.make_graph(nodes, "digits", [x], [p], numbers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


class LocalTrainer:
    """Trains the MLP by its train graph with SGD, as on a device."""

    def __init__(self, seed: int = 0) -> None:
        prepared = prepare(forward(seed), Loss("cross-entropy"))
        self.theta = prepared.theta
        self._parameters = prepared.parameters
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 4
        self._session = onnxruntime.InferenceSession(
            step_graph(prepared).SerializeToString(), options, providers=["CPUExecutionProvider"]
        )

    def train(self, theta: F32, rows: Rows, epochs: int, random: np.random.Generator) -> F32:
        """Theta after training; batches of ten, learning rate 0.1."""
        lr = np.array(0.1, np.float32)
        for _ in range(epochs):
            order = random.permutation(len(rows.y))
            for start in range(0, len(order), 10):
                some = order[start : start + 10]
                feed = {"theta": theta, "x": rows.x[some], "y": rows.y[some], "lr": lr}
                theta = self._session.run(["theta_out"], feed)[0]
        return theta

    def predict(self, theta: F32, x: F32) -> npt.NDArray[np.int64]:
        """Predicted digits, (N,)."""
        by = {
            p.name.rpartition("/")[2]: theta[p.offset : p.offset + p.size].reshape(p.shape)
            for p in self._parameters
        }
        hidden = np.maximum(x @ by["w0"] + by["b0"], 0)
        return (hidden @ by["w1"] + by["b1"]).argmax(1)

    def accuracy(self, theta: F32, rows: Rows) -> float:
        return float((self.predict(theta, rows.x) == rows.y).mean())
