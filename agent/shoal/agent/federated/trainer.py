"""Training and measuring by a train graph: arrays in, arrays out. The session is passed in.

A device's own state of the optimiser begins at zero in every round: what was learned since belongs
to other devices' rows. Shuffling comes from a generator that is passed in.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from shoal.agent.serving.labels import class_indices, number
from shoal.errors import RefusedError
from shoal.federated.messages import Slice
from shoal.federated.plan import Learning
from shoal.params import F32, TrainSpec

#: Batches in one call of a many-step graph; bytes of their x; rows of a batch when only measuring.
TOGETHER, TOGETHER_BYTES, MEASURED = 64, 1 << 21, 256

Array = npt.NDArray[Any]
#: (names of outputs, inputs by name) -> outputs: onnxruntime's `run`.
Run = Callable[[list[str], dict[str, Any]], list[Any]]


class Tensor(NamedTuple):
    """An input of the graph: ONNX type, and shape without the axes of batch and steps."""

    type: str
    shape: tuple[int, ...]


class Rows(NamedTuple):
    """x as the graph reads it (n, ...); y int64 (n,) or float32; both in one order."""

    x: Array
    y: Array


class Pull(NamedTuple):
    """What joins the gradient. mu towards `anchor` (P,); shift (P,). None where there is none."""

    mu: float = 0.0
    anchor: F32 | None = None
    shift: F32 | None = None


class Learned(NamedTuple):
    """theta (P,) after `steps` steps."""

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

    values   float32 (n, F), a row of the buffer each; classes: by index, empty for values
    """
    if math.prod(x.shape) != values.shape[1]:
        detail = f"the train graph reads {x.shape} a row, this device's rows have {values.shape[1]}"
        raise RefusedError(detail, "other-rows")
    truth = _truth(values, labels, classes, spec, y)
    sound = np.isfinite(values).all(axis=1)
    sound &= np.isfinite(truth.reshape(len(truth), -1)).all(axis=1) & _known(truth, spec)
    shaped = values[sound].reshape(-1, *x.shape).astype(_TYPES[x.type])
    return Rows(shaped, truth[sound].reshape(-1, *y.shape).astype(_TYPES[y.type]))


_TYPES = {"tensor(float)": np.float32, "tensor(double)": np.float64, "tensor(int64)": np.int64}


def _truth(
    values: F32, labels: Sequence[str], classes: Sequence[str], spec: TrainSpec, y: Tensor
) -> Array:
    """float64 (n, ...); -1 for a class that the model does not know, NaN for no number."""
    if spec.loss in ("cross-entropy", "bce") and classes:
        return np.array(class_indices(classes, labels), np.float64)
    wide = math.prod(y.shape)
    if wide == values.shape[1] and wide > 1:
        return values.astype(np.float64)  # an autoencoder: a row is its own label
    if wide != 1:
        detail = f"the train graph wants {wide} true values a row, this device has one"
        raise RefusedError(detail, "other-rows")
    return np.array([number(label) for label in labels], np.float64)


def _known(truth: Array, spec: TrainSpec) -> npt.NDArray[np.bool_]:
    if spec.loss == "cross-entropy":
        return (truth >= 0) & (truth < spec.classes)
    if spec.loss == "bce" and truth.ndim == 1:
        return (truth >= 0) & (truth <= 1)
    return np.ones(len(truth), np.bool_)


def learn(
    run: Run,
    spec: TrainSpec,
    theta: F32,
    rows: Rows,
    learning: Learning,
    pull: Pull,
    order: np.random.Generator,
) -> Learned:
    """Epochs over the rows, shuffled anew each; the last batch of an epoch may be smaller."""
    now, step = _Carried(theta, np.zeros(spec.state, np.float32)), 0
    fixed = _terms(spec, theta, pull)
    for _ in range(learning.epochs):
        shuffled = order.permutation(len(rows.y))
        for batches in _calls(shuffled, learning.batch, spec.many, rows.x[:1].nbytes):
            count = len(batches)
            scalars = (
                spec.many_scalars(learning.lr, step + 1, count)
                if spec.many
                else spec.scalars(learning.lr, step + 1)
            )
            places = np.stack(batches) if spec.many else batches[0]
            now = _called(run, now, rows.x[places], rows.y[places], {**fixed, **scalars})
            step += count
    return Learned(now.theta, step)


def mean_loss(run: Run, spec: TrainSpec, theta: F32, rows: Rows) -> float:
    """Of theta over all rows, by the train graph with a learning rate of zero."""
    total, state = 0.0, np.zeros(spec.state, np.float32)
    fixed = _terms(spec, theta, Pull())
    for start in range(0, len(rows.y), MEASURED):
        part = slice(start, start + MEASURED)
        x, y = rows.x[part], rows.y[part]
        scalars = spec.many_scalars(0.0, 1, 1) if spec.many else spec.scalars(0.0, 1)
        feed = {"theta": theta, "x": x[None] if spec.many else x, "y": y[None] if spec.many else y}
        feed |= {"state": state} if spec.state else {}
        (loss,) = run(["loss"], {**feed, **fixed, **scalars})
        total += float(np.mean(loss)) * len(y)
    return total / max(1, len(rows.y))


def measure(run: Run, theta: F32, rows: Rows) -> Slice:
    """How theta does on some rows, by the loss graph."""
    total, correct = 0.0, -1
    for start in range(0, len(rows.y), MEASURED):
        part = slice(start, start + MEASURED)
        loss, said = run(["loss", "answer"], {"theta": theta, "x": rows.x[part], "y": rows.y[part]})
        total += float(loss) * len(rows.y[part])
        if rows.y.dtype == np.int64 and said.ndim == 2:
            correct = max(correct, 0) + int((said.argmax(axis=1) == rows.y[part]).sum())
    return Slice(rows=len(rows.y), loss=total if math.isfinite(total) else 1e300, correct=correct)


def by_class(rows: Rows, classes: Sequence[str]) -> dict[str, Rows]:
    """Rows by their true class, for a cross-entropy."""
    if rows.y.dtype != np.int64 or not classes:
        return {}
    found = {name[:64]: rows.y == index for index, name in enumerate(classes)}
    return {name: Rows(rows.x[of], rows.y[of]) for name, of in found.items() if of.any()}


class _Carried(NamedTuple):
    theta: F32
    state: F32


def _called(run: Run, now: _Carried, x: Array, y: Array, others: Mapping[str, Any]) -> _Carried:
    feed = {"theta": now.theta, "x": x, "y": y, **others}
    if not now.state.size:
        (theta,) = run(["theta_out"], feed)
        return _Carried(theta, now.state)
    return _Carried(*run(["theta_out", "state_out"], {**feed, "state": now.state}))


def _calls(
    shuffled: npt.NDArray[np.intp], batch: int, many: bool, row_bytes: int
) -> Iterator[list[npt.NDArray[np.intp]]]:
    """Batches, as many together as one call takes; all of a call are of one size."""
    whole = len(shuffled) // batch * batch
    each = [shuffled[i : i + batch] for i in range(0, whole, batch)]
    most = max(1, min(TOGETHER, TOGETHER_BYTES // max(1, row_bytes * batch))) if many else 1
    for first in range(0, len(each), most):
        yield each[first : first + most]
    if whole < len(shuffled):
        yield [shuffled[whole:]]


def _terms(spec: TrainSpec, theta: F32, pull: Pull) -> dict[str, Any]:
    """Inputs that every step has alike; RefusedError for a term that the graph does not take."""
    if (pull.mu and not spec.proximal) or (pull.shift is not None and not spec.shift):
        raise RefusedError("the train graph does not take the terms of this round", "other-terms")
    found: dict[str, Any] = {}
    if spec.proximal:
        anchor = theta if pull.anchor is None else pull.anchor
        found |= {"mu": np.array(pull.mu, np.float32), "theta0": anchor}
    if spec.shift:
        found["shift"] = np.zeros_like(theta) if pull.shift is None else pull.shift
    return found
