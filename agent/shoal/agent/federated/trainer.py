"""Training and evaluation with an ONNX train graph: arrays in, arrays out.

The session is passed in, and so is the generator that shuffles. The optimiser's state starts at
zero in every round: the updates since then come from other devices' rows.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from shoal.agent.federated.secagg import Mask
from shoal.agent.installed.record import SavedUpdate
from shoal.agent.serving.labels import class_indices, number
from shoal.errors import RefusedError
from shoal.federated.config import Config
from shoal.federated.messages import Measured, Slice
from shoal.federated.plan import Learning
from shoal.params import F32, TrainSpec

#: Rows of a batch when evaluating.
EVALUATED = 256

Array = npt.NDArray[Any]
#: (names of outputs, inputs by name) -> outputs: onnxruntime's `run`.
Run = Callable[[list[str], dict[str, Any]], list[Any]]


class TrainingJob(msgspec.Struct, frozen=True, kw_only=True):
    """A job for the trainer's process. It reads the device's rows and writes the result in its
    sandbox, so that the agent's memory does not grow with the model.

    kind      train: train, and write the contribution (secure: the integers without masks);
              mask: add masks to the integers, and write the contribution;
              measure: evaluate theta on the device's rows
    labels    classes by index; empty for regression
    features  of a row, in order: rows with other features are skipped
    seed      32 random bytes for shuffling, rounding and noise, used for nothing else
    """

    kind: Literal["train", "mask", "measure"]
    config: Config
    labels: tuple[str, ...]
    features: tuple[str, ...]
    seed: bytes = b""
    masks: list[Mask] = []


class TrainingResult(msgspec.Struct, frozen=True, kw_only=True):
    """Result of a training job.

    contribution  on the disk; None for integers without masks, and for an evaluation
    rows          trained on; loss: mean over them before training
    steps         of training; seconds: of the process's CPU
    norm          L2, of the update before compression and masks
    """

    contribution: SavedUpdate | None = None
    rows: int = 0
    loss: float = 0.0
    steps: int = 0
    seconds: float = 0.0
    norm: float = 0.0
    rss_mb: float = 0.0
    measured: Measured | None = None


class Tensor(NamedTuple):
    """An input of the graph: ONNX type, and shape without the batch axis."""

    type: str
    shape: tuple[int, ...]


class Rows(NamedTuple):
    """x as the graph reads it (n, ...); y int64 (n,) or float32; both in one order."""

    x: Array
    y: Array


class GradientTerms(NamedTuple):
    """GradientTerms added to the gradient: mu towards `anchor` (P,); shift (P,)."""

    mu: float = 0.0
    anchor: F32 | None = None
    shift: F32 | None = None


class Trained(NamedTuple):
    """Parameters theta (P,) after `steps` steps."""

    theta: F32
    steps: int


def rows_of(
    values: F32,
    labels: Sequence[str],
    classes: Sequence[str],
    spec: TrainSpec,
    x: Tensor,
    y: Tensor,
) -> Rows:
    """Rows with a label that the model knows. RefusedError when they do not fit the graph.

    values   float32 (n, F), from the row buffer; classes: by index, empty for regression
    """
    if math.prod(x.shape) != values.shape[1]:
        detail = f"the train graph reads {x.shape} a row, this device's rows have {values.shape[1]}"
        raise RefusedError(detail, "other-rows")
    truth = _truth(values, labels, classes, spec, y)
    valid = np.isfinite(values).all(axis=1)
    valid &= np.isfinite(truth.reshape(len(truth), -1)).all(axis=1) & _known(truth, spec)
    shaped = values[valid].reshape(-1, *x.shape).astype(_TYPES[x.type])
    return Rows(shaped, truth[valid].reshape(-1, *y.shape).astype(_TYPES[y.type]))


_TYPES = {"tensor(float)": np.float32, "tensor(double)": np.float64, "tensor(int64)": np.int64}


def _truth(
    values: F32, labels: Sequence[str], classes: Sequence[str], spec: TrainSpec, y: Tensor
) -> Array:
    """Labels as float64 (n, ...); -1 for an unknown class, NaN for a label that is no number."""
    if spec.loss in ("cross-entropy", "bce") and classes:
        return np.array(class_indices(classes, labels), np.float64)
    width = math.prod(y.shape)
    if width == values.shape[1] and width > 1:
        return values.astype(np.float64)  # an autoencoder: a row is its own label
    if width != 1:
        detail = f"the train graph wants {width} true values a row, this device has one"
        raise RefusedError(detail, "other-rows")
    return np.array([number(label) for label in labels], np.float64)


def _known(truth: Array, spec: TrainSpec) -> npt.NDArray[np.bool_]:
    if spec.loss == "cross-entropy":
        return (truth >= 0) & (truth < spec.classes)
    if spec.loss == "bce" and truth.ndim == 1:
        return (truth >= 0) & (truth <= 1)
    return np.ones(len(truth), np.bool_)


def train(
    run: Run,
    spec: TrainSpec,
    theta: F32,
    rows: Rows,
    learning: Learning,
    terms: GradientTerms,
    order: "np.random.Generator",
) -> Trained:
    """Train for the plan's epochs, shuffling in each; the last batch of an epoch may be smaller."""
    now, step = _Parameters(theta, np.zeros(spec.state, np.float32)), 0
    fixed = _terms(spec, theta, terms)
    for _ in range(learning.epochs):
        shuffled = order.permutation(len(rows.y))
        for start in range(0, len(shuffled), learning.batch):
            batch = shuffled[start : start + learning.batch]
            step += 1
            inputs = {**fixed, **spec.scalars(learning.lr, step)}
            now = _step(run, now, rows.x[batch], rows.y[batch], inputs)
    return Trained(now.theta, step)


def mean_loss(run: Run, spec: TrainSpec, theta: F32, rows: Rows) -> float:
    """Mean loss of theta over all rows, from the train graph at a learning rate of zero."""
    total, state = 0.0, np.zeros(spec.state, np.float32)
    fixed = _terms(spec, theta, GradientTerms())
    for start in range(0, len(rows.y), EVALUATED):
        part = slice(start, start + EVALUATED)
        x, y = rows.x[part], rows.y[part]
        feed = {"theta": theta, "x": x, "y": y}
        feed |= {"state": state} if spec.state else {}
        (loss,) = run(["loss"], {**feed, **fixed, **spec.scalars(0.0, 1)})
        total += float(loss) * len(y)
    return total / max(1, len(rows.y))


def evaluate(run: Run, theta: F32, rows: Rows) -> Slice:
    """Loss and correct answers of theta on some rows, from the loss graph."""
    total, correct = 0.0, -1
    for start in range(0, len(rows.y), EVALUATED):
        part = slice(start, start + EVALUATED)
        feed = {"theta": theta, "x": rows.x[part], "y": rows.y[part]}
        loss, output = run(["loss", "answer"], feed)
        total += float(loss) * len(rows.y[part])
        if rows.y.dtype == np.int64 and output.ndim == 2:
            correct = max(correct, 0) + int((output.argmax(axis=1) == rows.y[part]).sum())
    return Slice(rows=len(rows.y), loss=total if math.isfinite(total) else 1e300, correct=correct)


def by_class(rows: Rows, classes: Sequence[str]) -> dict[str, Rows]:
    """Rows by their true class, for a cross-entropy."""
    if rows.y.dtype != np.int64 or not classes:
        return {}
    found = {name[:64]: rows.y == index for index, name in enumerate(classes)}
    return {name: Rows(rows.x[of], rows.y[of]) for name, of in found.items() if of.any()}


def control_after(own: F32, shared: F32, delta: F32, steps: int, lr: float) -> F32:
    """SCAFFOLD's c_i after `steps` steps of SGD with rate `lr` that changed theta by delta.

    Option II of Karimireddy et al. 2020: the mean gradient, float32 (P,). Every gradient had
    `shift` = c - c_i added; `shared` is c, `own` is c_i.

    >>> one = np.ones(1, np.float32)
    >>> control_after(own=0 * one, shared=0 * one, delta=-one, steps=10, lr=0.1).tolist()
    [1.0]
    """
    gradient = -delta.astype(np.float64) / (steps * lr)
    return (own - shared.astype(np.float64) + gradient).astype(np.float32)


def personalised(theta: F32, own: F32 | None, ranges: Sequence[tuple[int, int]]) -> F32:
    """theta with the device's personal parameters, those of `ranges` (start, stop)."""
    if own is None or not ranges:
        return theta
    mixed = theta.copy()
    for start, stop in ranges:
        mixed[start:stop] = own[start:stop]
    return mixed


class _Parameters(NamedTuple):
    theta: F32
    state: F32


def _step(run: Run, now: _Parameters, x: Array, y: Array, others: Mapping[str, Any]) -> _Parameters:
    feed = {"theta": now.theta, "x": x, "y": y, **others}
    if not now.state.size:
        (theta,) = run(["theta_out"], feed)
        return _Parameters(theta, now.state)
    return _Parameters(*run(["theta_out", "state_out"], {**feed, "state": now.state}))


def _terms(spec: TrainSpec, theta: F32, terms: GradientTerms) -> dict[str, Any]:
    """Inputs that are the same in every step; RefusedError for a term that the graph lacks."""
    if (terms.mu and not spec.proximal) or (terms.shift is not None and not spec.shift):
        raise RefusedError("the train graph does not take the terms of this round", "other-terms")
    found: dict[str, Any] = {}
    if spec.proximal:
        anchor = theta if terms.anchor is None else terms.anchor
        found |= {"mu": np.array(terms.mu, np.float32), "theta0": anchor}
    if spec.shift:
        found["shift"] = np.zeros_like(theta) if terms.shift is None else terms.shift
    return found
