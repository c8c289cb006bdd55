"""Build the train graph, loss graph and inference graph of a federated task from a model."""

import numpy as np
import onnx
from google.protobuf.message import DecodeError

from shoal.controller.training.gradient.losses import Loss
from shoal.controller.training.gradient.make import loss_graph, prepare, step_graph
from shoal.controller.training.gradient.optimisers import Adam, Momentum, Optimiser, Sgd
from shoal.controller.training.gradient.personal import personal_of
from shoal.controller.training.gradient.selection import everything, named
from shoal.controller.training.jobs import TrainGraph, TrainGraphJob
from shoal.errors import ModelError

_OPTIMISERS: dict[str, type[Optimiser]] = {"sgd": Sgd, "momentum": Momentum, "adam": Adam}


def derive(job: TrainGraphJob) -> TrainGraph:
    """Differentiate the model; ModelError names the part that cannot be trained, with a hint."""
    try:
        model = onnx.load_model(job.onnx)
    except (DecodeError, ValueError, OSError) as error:
        raise ModelError(f"{job.onnx.name} cannot be read: {error}", "import it again") from error
    choose = named(job.trained) if job.trained else everything
    loss = Loss(job.loss, job.delta)
    prepared = prepare(model, loss, choose, output=job.output, answers=job.answers)
    graph = step_graph(
        prepared, _OPTIMISERS[job.optimiser](), proximal=job.proximal, shift=job.shift,
        clip_norm=job.clip_norm,
    )  # fmt: skip
    theta = prepared.theta.astype(np.float32)
    return TrainGraph(
        graph=graph.SerializeToString(),
        loss_graph=loss_graph(prepared).SerializeToString(),
        inference=prepared.inference.SerializeToString(),
        theta=theta.astype("<f4").tobytes(),
        size=theta.size,
        personal=personal_of(prepared, named(job.personal)) if job.personal else (),
    )
