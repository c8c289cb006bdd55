"""A model's train graph and what goes with it: what a federated task gives to its devices."""

import numpy as np
import onnx
from google.protobuf.message import DecodeError

from shoal.controller.training.gradient.losses import Loss
from shoal.controller.training.gradient.make import loss_graph, prepare, step_graph
from shoal.controller.training.gradient.optimisers import Adam, Momentum, Optimiser, Sgd
from shoal.controller.training.gradient.personal import personal_of
from shoal.controller.training.gradient.selection import everything, named
from shoal.controller.training.jobs import Derivation, Derived
from shoal.errors import ModelError

_OPTIMISERS: dict[str, type[Optimiser]] = {"sgd": Sgd, "momentum": Momentum, "adam": Adam}


def derive(wish: Derivation) -> Derived:
    """Differentiate the model; ModelError names what in it cannot be trained, with a hint."""
    try:
        model = onnx.load_model(wish.onnx)
    except (DecodeError, ValueError, OSError) as error:
        raise ModelError(f"{wish.onnx.name} cannot be read: {error}", "import it again") from error
    choose = named(wish.trained) if wish.trained else everything
    loss = Loss(wish.loss, wish.delta)
    prepared = prepare(model, loss, choose, output=wish.output, answers=wish.answers)
    graph = step_graph(
        prepared, _OPTIMISERS[wish.optimiser](), proximal=wish.proximal, shift=wish.shift,
        clip_norm=wish.clip_norm,
    )  # fmt: skip
    theta = prepared.theta.astype(np.float32)
    return Derived(
        graph=graph.SerializeToString(),
        loss_graph=loss_graph(prepared).SerializeToString(),
        inference=prepared.inference.SerializeToString(),
        theta=theta.astype("<f4").tobytes(),
        size=theta.size,
        personal=personal_of(prepared, named(wish.personal)) if wish.personal else (),
    )
