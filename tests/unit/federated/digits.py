"""Twenty devices with digits that are not alike, and the model that they learn."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from onnx import TensorProto, helper, numpy_helper

from shoal.controller.gradient.losses import Loss
from shoal.controller.gradient.make import prepare, step_graph
from shoal.params import F32
from unit.gradient.running import session


class Rows(NamedTuple):
    """x float32 (N, 64) in 0..1, y int64 (N,)."""

    x: F32
    y: npt.NDArray[np.int64]


def homes_of(devices: int, seed: int = 0) -> tuple[list[Rows], Rows]:
    """Each device's rows (Dirichlet 0.3 by digit, two or more), and rows that nobody has."""
    from sklearn.datasets import load_digits

    random = np.random.default_rng(seed)
    images, digits = load_digits(return_X_y=True)
    x, y = (images / 16).astype(np.float32), digits.astype(np.int64)
    order = random.permutation(len(y))
    learn, test = order[:1437], order[1437:]
    homes: list[list[int]] = [[] for _ in range(devices)]
    for digit in range(10):
        of_it = learn[y[learn] == digit]
        cuts = np.cumsum(random.dirichlet([0.3] * devices) * len(of_it)).astype(int)[:-1]
        for home, part in zip(homes, np.split(of_it, cuts), strict=True):
            home.extend(part.tolist())
    for home in homes:
        home.extend(random.choice(learn, max(0, 2 - len(home))).tolist())
    return [Rows(x[home], y[home]) for home in homes], Rows(x[test], y[test])


class Learner:
    """An MLP 64-64-10 by its train graph, plain SGD."""

    def __init__(self, seed: int = 0) -> None:
        random = np.random.default_rng(seed)
        shapes = {"w0": (64, 64), "b0": (64,), "w1": (64, 10), "b1": (10,)}
        numbers = [
            numpy_helper.from_array((random.normal(size=s) * 0.15).astype(np.float32), name)
            for name, s in shapes.items()
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
        opset = [helper.make_opsetid("", 18)]
        model = helper.make_model(graph, opset_imports=opset, ir_version=9)
        prepared = prepare(model, Loss("cross-entropy"))
        self.theta = prepared.theta
        self._parameters = prepared.parameters
        self._session = session(step_graph(prepared))

    def train(self, theta: F32, rows: Rows, epochs: int, random: np.random.Generator) -> F32:
        """What theta becomes; batches of ten, learning rate 0.1."""
        lr = np.array(0.1, np.float32)
        for _ in range(epochs):
            order = random.permutation(len(rows.y))
            for start in range(0, len(order), 10):
                some = order[start : start + 10]
                feed = {"theta": theta, "x": rows.x[some], "y": rows.y[some], "lr": lr}
                theta = self._session.run(["theta_out"], feed)[0]
        return theta

    def accuracy(self, theta: F32, rows: Rows) -> float:
        by = {
            p.name.rpartition("/")[2]: theta[p.offset : p.offset + p.size].reshape(p.shape)
            for p in self._parameters
        }
        hidden = np.maximum(rows.x @ by["w0"] + by["b0"], 0)
        return float(((hidden @ by["w1"] + by["b1"]).argmax(1) == rows.y).mean())
