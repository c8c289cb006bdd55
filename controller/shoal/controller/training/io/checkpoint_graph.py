"""Write a federated checkpoint into the inference graph that devices serve.

A task may leave the model's head on the devices (FedPer: Arivazhagan et al., "Federated Learning
with Personalization Layers", 2019). Then the rounds trained a backbone only, and the head that the
task started with no longer fits it. A release gets a new head, trained here on top of the
unchanged backbone with the rows of the dataset that are not held back; the gates then evaluate the
whole model. The heads of the devices are not signed, so none is ever served by Shoal.
"""

from pathlib import Path

import msgspec
import numpy as np
from onnx import ModelProto

from shoal.controller.training.gradient.losses import Kind, Loss
from shoal.controller.training.gradient.make import Prepared, prepare, step_graph
from shoal.controller.training.gradient.optimisers import Adam
from shoal.controller.training.gradient.selection import named
from shoal.controller.training.gradient.weights import write_theta
from shoal.controller.training.io import runtime
from shoal.controller.training.io.rows import Data, Rows
from shoal.controller.training.jobs import Checkpoint
from shoal.errors import ModelError
from shoal.params import F32, TrainSpec, spec_of

#: Training of a head with Adam.
LR, EPOCHS, BATCH = 0.01, 30, 32


def with_parameters(model: ModelProto, checkpoint: Checkpoint) -> ModelProto:
    """The model with the checkpoint's parameters; ModelError when they do not fit."""
    theta = np.frombuffer(checkpoint.theta.read_bytes(), "<f4")
    if not np.isfinite(theta).all():
        raise ModelError("the checkpoint holds NaN or infinity", "release an earlier round")
    return write_theta(model, _spec(checkpoint.graph), theta)


def with_head(
    model: ModelProto, checkpoint: Checkpoint, data: Data, seed: int
) -> tuple[ModelProto, list[str]]:
    """The model with a head trained on data.train, and a note; unchanged without personal parts.

    ModelError when a personal range covers only a part of a parameter.
    """
    if not checkpoint.personal:
        return model, []
    spec = _spec(checkpoint.graph)
    names = _names_in(spec, checkpoint.personal)
    prepared = prepare(model, Loss(msgspec.convert(spec.loss, Kind)), named(names))
    theta = _train_head(prepared, data.train, spec.loss, np.random.default_rng(seed))
    head = TrainSpec(parameters=prepared.parameters, state=0, optimiser="adam", loss=spec.loss)
    note = (
        f"its head ({', '.join(names)}) never left the devices; this one was trained on "
        f"{len(data.train.y)} rows of the dataset, above the layers trained in the rounds"
    )
    return write_theta(model, head, theta), [note]


def _spec(graph: Path) -> TrainSpec:
    model = ModelProto.FromString(graph.read_bytes())
    return spec_of({entry.key: entry.value for entry in model.metadata_props})


def _names_in(spec: TrainSpec, ranges: tuple[tuple[int, int], ...]) -> list[str]:
    """Names of the parameters in these ranges of theta."""
    inside = np.zeros(spec.size, bool)
    for start, stop in ranges:
        inside[start:stop] = True
    names = []
    for one in spec.parameters:
        share = inside[one.offset : one.offset + one.size].mean()
        if share not in (0, 1):
            raise ModelError(
                f"a part of {one.name!r} is personal", "make all of it personal, or none"
            )
        names += [one.name] * bool(share)
    return names


def _train_head(prepared: Prepared, rows: Rows, loss: str, random: np.random.Generator) -> F32:
    graph = step_graph(prepared, Adam())
    spec = spec_of({entry.key: entry.value for entry in graph.metadata_props})
    session = runtime.open_session(graph.SerializeToString(), "the train graph of the head")
    y = rows.y.astype(np.int64) if loss == "cross-entropy" else rows.y.astype(np.float32)[:, None]
    theta, state, step = prepared.theta, np.zeros(spec.state, np.float32), 0
    for _ in range(EPOCHS):
        order = random.permutation(len(y))
        for start in range(0, len(order), BATCH):
            batch, step = order[start : start + BATCH], step + 1
            feed = {"theta": theta, "state": state, "x": rows.x[batch], "y": y[batch]}
            theta, state = session.run(["theta_out", "state_out"], feed | spec.scalars(LR, step))
    return theta
