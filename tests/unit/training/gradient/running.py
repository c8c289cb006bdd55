"""Running training graphs as a device does: the stock onnxruntime, one thread."""

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import onnxruntime
from onnx import ModelProto

from shoal.controller.training.gradient.make import Prepared, step_graph
from shoal.controller.training.gradient.optimisers import Momentum
from shoal.controller.training.gradient.registry import RULES, SEVERAL, UNROLLED
from shoal.params import F32, TrainSpec, spec_of

#: Every operator that has a gradient.
OPERATORS = sorted({*RULES, *SEVERAL, *UNROLLED})


def session(model: ModelProto) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


class Gradient:
    """Gradient and loss of the graph that devices run: momentum's state after a step from zero."""

    def __init__(self, prepared: Prepared) -> None:
        self.session = session(step_graph(prepared, Momentum(0.0)))

    def __call__(
        self, theta: npt.NDArray, x: npt.NDArray, y: npt.NDArray
    ) -> tuple[npt.NDArray, float]:
        feed = {"theta": theta, "state": np.zeros_like(theta), "x": x, "y": y}
        gradient, loss = self.session.run(
            ["state_out", "loss"], feed | {"lr": np.array(0, theta.dtype)}
        )
        return gradient, float(loss)


class Trainer:
    """Theta and the optimiser's state, moved step by step through a train graph."""

    def __init__(self, graph: ModelProto, theta: F32) -> None:
        self.session = session(graph)
        self.spec: TrainSpec = spec_of(self.session.get_modelmeta().custom_metadata_map)
        self.theta = theta
        self.state = np.zeros(self.spec.state, np.float32)
        self.steps = 0

    def step(self, x: npt.NDArray, y: npt.NDArray, lr: float, **terms: npt.ArrayLike) -> float:
        """One step; the loss before it."""
        feed = {"theta": self.theta, "x": x, "y": y, **self.spec.scalars(lr, self.steps + 1)}
        feed |= {name: np.asarray(value, np.float32) for name, value in terms.items()}
        return float(self._run(feed))

    def train(self, batches: Iterable[tuple[npt.NDArray, npt.NDArray]], lr: float) -> list[float]:
        return [self.step(x, y, lr) for x, y in batches]

    def _run(self, feed: dict[str, npt.NDArray]) -> F32:
        names = ["loss", "theta_out"]
        if self.spec.state:
            feed["state"] = self.state
            names.append("state_out")
        loss, self.theta, *state = self.session.run(names, feed)
        self.state = state[0] if state else self.state
        self.steps += 1
        return loss
