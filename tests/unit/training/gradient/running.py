"""Running training graphs as a device does: the stock onnxruntime, one thread."""

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import onnxruntime
from onnx import ModelProto

from shoal.params import F32, TrainSpec, spec_of


def session(model: ModelProto) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


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
        return float(self._run(feed, 1))

    def steps_at_once(self, x: npt.NDArray, y: npt.NDArray, lr: float) -> F32:
        """x (K, N, ...), y (K, N): K steps in one call; their losses."""
        scalars = self.spec.many_scalars(lr, self.steps + 1, len(x))
        return self._run({"theta": self.theta, "x": x, "y": y, **scalars}, len(x))

    def train(self, batches: Iterable[tuple[npt.NDArray, npt.NDArray]], lr: float) -> list[float]:
        return [self.step(x, y, lr) for x, y in batches]

    def _run(self, feed: dict[str, npt.NDArray], steps: int) -> F32:
        names = ["loss", "theta_out"]
        if self.spec.state:
            feed["state"] = self.state
            names.append("state_out")
        loss, self.theta, *state = self.session.run(names, feed)
        self.state = state[0] if state else self.state
        self.steps += steps
        return loss
