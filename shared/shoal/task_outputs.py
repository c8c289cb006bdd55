"""Outputs read by the task of their model: labels, values, boxes, texts; a few numbers per item.

Outputs are given with the items along axis 0 (`items_first`). Everything is plain numpy: devices
run it too.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from shoal.errors import InputError
from shoal.outputs import PREDICTION, SCORE, predicted
from shoal.signature import Signature
from shoal.tasks import (
    AnomalyScore,
    Classification,
    Detection,
    Embedding,
    MultiLabel,
    Regression,
    Segmentation,
    SequenceText,
    Task,
)
from shoal.tensors import Array, Named, size_of

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]
#: A class that is none of the labels.
NONE = -1
#: Boxes that are compared with each other, and given, at most for each item.
MOST_CANDIDATES, MOST_BOXES = 1_000, 300
#: Labels, targets or maps that get a column each in `output_columns`.
MOST_COLUMNS = 16


class Boxes(NamedTuple):
    """What was detected in one item, best first: corners (k, 4) as x1, y1, x2, y2; scores (k,);
    label indices (k,)."""

    corners: F32
    scores: F32
    classes: I64


class Text(NamedTuple):
    """A text that was read, and the mean score of its steps that are not blank (0 without)."""

    text: str
    length: int
    score: float


def items_first(signature: Signature, outputs: Named) -> dict[str, Array]:
    """Outputs with their items along axis 0; an output without a batch axis is of one item."""
    axes = {tensor.name: tensor.batch for tensor in signature.outputs}
    return {
        name: array[None] if (axis := axes.get(name)) is None else np.moveaxis(array, axis, 0)
        for name, array in outputs.items()
    }


# ------------------------------------------------------------------------------------- by task


def probabilities(task: Classification, outputs: Named) -> F32:
    """Probability of each label, (n, labels); not for the forms "index" and "label"."""
    values = _rows(task.output, outputs)
    if values.shape[1] == 1 and len(task.labels) == 2:
        second = _sigmoid(values) if task.form == "logits" else values
        return np.hstack([1 - second, second])
    _check_width(task.output, values, len(task.labels))
    return _softmax(values) if task.form == "logits" else values


def classes(task: Classification, outputs: Named) -> I64:
    """Index of each item's label, (n,); NONE for what is no label, and for NaN."""
    if task.form == "index":
        found = _scalars(task.output, outputs).astype(np.int64)
        return np.where((found >= 0) & (found < len(task.labels)), found, NONE)
    if task.form == "label":
        return label_indices(task.labels, _scalars(task.output, outputs))
    shares = probabilities(task, outputs)
    found = predicted(shares, task.threshold).astype(np.int64)
    return np.where(np.isnan(shares).any(1), NONE, found)


def label_indices(labels: Sequence[str], values: Array) -> I64:
    """Index of each label by name; NONE for others. True and 1.0 are "1" and so on.

    >>> label_indices(["3", "7"], np.array([7, 3, 5])).tolist()
    [1, 0, -1]
    """
    index = {label: at for at, label in enumerate(labels)}
    return np.array([index.get(label_text(value), NONE) for value in values.tolist()], np.int64)


def label_text(value: object) -> str:
    """A label as text: whole numbers without a point.

    >>> label_text(3.0), label_text(b"ok"), label_text(True)
    ('3', 'ok', '1')
    """
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, bool) or (isinstance(value, float) and value.is_integer()):
        return str(int(value))
    return str(value)


def label_shares(task: MultiLabel, outputs: Named) -> F32:
    """Probability of each label, (n, labels)."""
    values = _rows(task.output, outputs)
    _check_width(task.output, values, len(task.labels))
    return _sigmoid(values) if task.form == "logits" else values


def given_labels(task: MultiLabel, outputs: Named) -> npt.NDArray[np.bool_]:
    """Whether each item is given each label, (n, labels)."""
    limits = np.array(task.thresholds or [task.threshold], np.float32)
    return label_shares(task, outputs) >= limits


def values(task: Regression, outputs: Named) -> npt.NDArray[np.float64]:
    """The targets, (n, targets)."""
    found = np.hstack([_rows(name, outputs, np.float64) for name in task.outputs])
    _check_width(", ".join(task.outputs), found, len(task.names))
    return found


def oddness(task: AnomalyScore, outputs: Named) -> F32:
    """The score of each item, (n,), turned so that higher is odd."""
    scores = _scalars(task.output, outputs).astype(np.float32)
    return scores if task.higher == "odd" else -scores


def is_odd(task: AnomalyScore, outputs: Named) -> npt.NDArray[np.bool_]:
    """Whether each item is odd, (n,); NaN is."""
    limit = task.threshold if task.higher == "odd" else -task.threshold
    return ~(oddness(task, outputs) < np.float32(limit))


def vectors(task: Embedding, outputs: Named) -> F32:
    """The vector of each item, (n, d)."""
    return _rows(task.output, outputs)


def boxes(task: Detection, outputs: Named, confidence: float | None = None) -> list[Boxes]:
    """What is detected in each item; `confidence` in place of the task's own."""
    least = task.confidence if confidence is None else confidence
    return [_boxes_of(task, outputs, item, least) for item in range(len(outputs[task.boxes]))]


def label_maps(task: Segmentation, outputs: Named) -> I64:
    """Label index of each place, (n, ...); NONE for what is no label, and for NaN."""
    maps = outputs[task.output]
    if task.form == "index":
        found = maps.astype(np.int64)
        return np.where((found >= 0) & (found < len(task.labels)), found, NONE)
    if task.axis is None or maps.shape[1 + task.axis] == 1:
        one = maps if task.axis is None else maps.take(0, 1 + task.axis)
        second = _sigmoid(one) if task.form == "logits" else one
        return np.where(np.isnan(second), NONE, second >= task.threshold).astype(np.int64)
    axis = 1 + task.axis
    _check_width(task.output, np.moveaxis(maps, axis, 1), len(task.labels))
    if len(task.labels) == 2:
        first, second = (maps.take(at, axis).astype(np.float32) for at in (0, 1))
        share = _sigmoid(second - first) if task.form == "logits" else second
        return np.where(np.isnan(share), NONE, share >= task.threshold).astype(np.int64)
    return np.where(np.isnan(maps).any(axis), NONE, maps.argmax(axis))


def texts(task: SequenceText, outputs: Named) -> list[Text]:
    """The text of each item, read greedily: the best class of each step."""
    steps = np.moveaxis(outputs[task.output], 1 + task.axis, -1)
    _check_width(task.output, np.moveaxis(steps, -1, 1), len(task.alphabet))
    return [_text_of(task, one.reshape(-1, len(task.alphabet))) for one in steps]


# ------------------------------------------------------------------------------------- numbers


def output_columns(task: Task, outputs: Named) -> dict[str, F32]:
    """A few numbers of each item, by name, (n,) each: what is sketched of its outputs.

    classification   "prediction" (label index), "score" (probability of the second of two labels,
                     else of the chosen one); forms "index" and "label" have the prediction alone
    multi-label      "labels" given, "score" of the best, and each label's where there are few
    regression       each target
    anomaly          "score"
    embedding        "norm" of the vector
    detection        "count" of boxes; "score", and "prediction" (label index, NONE without a box)
                     of the best; mean "area" of the boxes, in the square of their unit
    segmentation     share of the places of each label, where there are few
    sequence         "length" in texts, mean "score" of its steps
    tensors          none

    outputs: items first. InputError where they do not have the task's shape. Few: MOST_COLUMNS.
    """
    columns = _COLUMNS.get(type(task))
    return {} if columns is None else {name: _f32(c) for name, c in columns(task, outputs).items()}


def categories(task: Task) -> dict[str, list[str]]:
    """Columns of `output_columns` that are indices, and the labels that they stand for."""
    if isinstance(task, Classification | Detection):
        return {PREDICTION: task.labels}
    return {}


def _classification_columns(task: Classification, outputs: Named) -> dict[str, Array]:
    found = {PREDICTION: classes(task, outputs)}
    if task.form in ("index", "label"):
        return found
    shares = probabilities(task, outputs)
    return found | {SCORE: shares[:, 1] if shares.shape[1] == 2 else shares.max(1)}


def _multi_label_columns(task: MultiLabel, outputs: Named) -> dict[str, Array]:
    shares = label_shares(task, outputs)
    found = {"labels": given_labels(task, outputs).sum(1), SCORE: shares.max(1)}
    each = task.labels if len(task.labels) <= MOST_COLUMNS else []
    return found | {f"score of {label}": shares[:, at] for at, label in enumerate(each)}


def _regression_columns(task: Regression, outputs: Named) -> dict[str, Array]:
    return dict(zip(task.names[:MOST_COLUMNS], values(task, outputs).T, strict=False))


def _anomaly_columns(task: AnomalyScore, outputs: Named) -> dict[str, Array]:
    return {SCORE: _scalars(task.output, outputs)}


def _embedding_columns(task: Embedding, outputs: Named) -> dict[str, Array]:
    return {"norm": np.linalg.norm(vectors(task, outputs), axis=1)}


def _detection_columns(task: Detection, outputs: Named) -> dict[str, Array]:
    found = boxes(task, outputs)
    return {
        "count": np.array([len(one.scores) for one in found]),
        SCORE: np.array([one.scores[0] if len(one.scores) else 0.0 for one in found]),
        PREDICTION: np.array([one.classes[0] if len(one.scores) else NONE for one in found]),
        "area": np.array([_areas(one.corners).mean() if len(one.scores) else 0 for one in found]),
    }


def _segmentation_columns(task: Segmentation, outputs: Named) -> dict[str, Array]:
    maps = label_maps(task, outputs)
    flat = maps.reshape(len(maps), -1)
    named = task.labels[:MOST_COLUMNS]
    return {f"share of {label}": (flat == at).mean(1) for at, label in enumerate(named)}


def _sequence_columns(task: SequenceText, outputs: Named) -> dict[str, Array]:
    found = texts(task, outputs)
    return {
        "length": np.array([one.length for one in found]),
        SCORE: np.array([one.score for one in found]),
    }


_COLUMNS: Mapping[type, Any] = {
    Classification: _classification_columns,
    MultiLabel: _multi_label_columns,
    Regression: _regression_columns,
    AnomalyScore: _anomaly_columns,
    Embedding: _embedding_columns,
    Detection: _detection_columns,
    Segmentation: _segmentation_columns,
    SequenceText: _sequence_columns,
}


# ------------------------------------------------------------------------------------- boxes


def overlaps(some: F32, others: F32) -> F32:
    """Intersection over union of boxes (a, 4) and (b, 4) as corners: (a, b); 0 for empty boxes.

    >>> overlaps(np.float32([[0, 0, 2, 2]]), np.float32([[0, 0, 2, 1], [5, 5, 6, 6]])).tolist()
    [[0.5, 0.0]]
    """
    low = np.maximum(some[:, None, :2], others[None, :, :2])
    high = np.minimum(some[:, None, 2:], others[None, :, 2:])
    common = np.clip(high - low, 0, None).prod(2)
    either = _areas(some)[:, None] + _areas(others)[None] - common
    return np.divide(common, either, out=np.zeros_like(common), where=either > 0)


def _boxes_of(task: Detection, outputs: Named, item: int, least: float) -> Boxes:
    corners, scores, labels = _candidates(task, outputs, item)
    kept = np.flatnonzero((scores >= least) & np.isfinite(corners).all(1))
    kept = kept[np.argsort(-scores[kept], kind="stable")][:MOST_CANDIDATES]
    corners, scores, labels = _corners(task, corners[kept]), scores[kept], labels[kept]
    if task.iou is not None:
        best = _not_suppressed(corners, labels, task.iou)
        corners, scores, labels = corners[best], scores[best], labels[best]
    return Boxes(corners[:MOST_BOXES], scores[:MOST_BOXES], labels[:MOST_BOXES])


def _candidates(task: Detection, outputs: Named, item: int) -> tuple[F32, F32, I64]:
    """Numbers (k, 4), scores (k,) and label indices (k,) of every box, as the model gives them."""
    rows = _turned(task, outputs[task.boxes][item])
    if not task.scores and task.row == "score, class":
        _check_width(task.boxes, rows, 6)
        return rows[:, :4], rows[:, 4], _whole(rows[:, 5])
    if task.classes:
        scores = np.float32(outputs[task.scores][item]).reshape(-1)
        labels = _whole(np.asarray(outputs[task.classes][item]).reshape(-1))
        if not len(rows) == len(scores) == len(labels):
            raise InputError(
                f"{len(rows)} boxes, {len(scores)} scores and {len(labels)} classes of an item"
            )
        return rows[:, :4], scores, labels
    objectness = None
    if task.scores:
        shares = _turned(task, outputs[task.scores][item])
    elif task.row == "objectness, scores":
        objectness, shares = rows[:, 4:5], rows[:, 5:]
    else:
        shares = rows[:, 4:]
    _check_width(task.scores or task.boxes, shares, task.columns)
    if len(shares) != len(rows):
        raise InputError(f"{len(rows)} boxes and {len(shares)} rows of scores of an item")
    if task.form == "logits":
        shares = _softmax(shares) if task.background is not None else _sigmoid(shares)
        objectness = None if objectness is None else _sigmoid(objectness)
    if task.background is not None:
        shares = np.delete(shares, task.background, axis=1)
    if objectness is not None:
        shares = shares * objectness
    labels = shares.argmax(1)
    return rows[:, :4], shares[np.arange(len(shares)), labels], labels


def _turned(task: Detection, rows: Array) -> F32:
    """Rows (k, width) of one item, whose other axes are of length one."""
    if rows.ndim < 2 or size_of(rows.shape[:-2]) != 1:
        raise InputError(f"boxes of an item have shape {list(rows.shape)}, rows are needed")
    two = _f32(rows).reshape(rows.shape[-2:])
    return two.T if task.turned else two


def _corners(task: Detection, numbers: F32) -> F32:
    if task.layout == "xyxy":
        return numbers
    if task.layout == "yxyx":
        return numbers[:, [1, 0, 3, 2]]
    size = numbers[:, 2:]
    low = numbers[:, :2] - (size / 2 if task.layout == "cxcywh" else 0)
    return np.hstack([low, low + size])


def _not_suppressed(corners: F32, labels: I64, most: float) -> I64:
    """Indices of boxes, sorted best first, that overlap no better one of their label by more."""
    left, kept = np.arange(len(corners)), []
    while left.size:
        best, left = left[0], left[1:]
        kept.append(best)
        too_close = overlaps(corners[best : best + 1], corners[left])[0] > most
        left = left[~(too_close & (labels[left] == labels[best]))]
    return np.array(kept, np.int64)


def _areas(corners: F32) -> F32:
    return np.clip(corners[:, 2:] - corners[:, :2], 0, None).prod(1)


# ------------------------------------------------------------------------------------- arrays


def _text_of(task: SequenceText, scores: Array) -> Text:
    best = scores.argmax(1)
    kept = best != task.blank
    if task.repeats == "one":
        kept[1:] &= best[1:] != best[:-1]
    if not kept.any():
        return Text("", 0, 0.0)
    parts = [task.alphabet[at] for at in best[kept]]
    return Text("".join(parts), len(parts), float(scores.max(1)[kept].mean()))


def _rows(name: str, outputs: Named, dtype: type = np.float32) -> Array:
    """Output `name` as (n, numbers)."""
    array = outputs[name]
    return array.reshape(len(array), size_of(array.shape[1:])).astype(dtype)


def _scalars(name: str, outputs: Named) -> Array:
    array = outputs[name]
    if array.size != len(array):
        raise InputError(f"output {name!r} has shape {list(array.shape)}, one per item is needed")
    return array.reshape(-1)


def _whole(values: Array) -> I64:
    finite = np.isfinite(values)
    return np.where(finite, np.where(finite, values, 0), NONE).astype(np.int64)


def _f32(column: Array) -> F32:
    return np.asarray(column, np.float32)


def _check_width(name: str, values: Array, width: int) -> None:
    if values.ndim < 2 or values.shape[1] != width:
        raise InputError(f"output {name!r} has shape {list(values.shape)}, {width} wide is needed")


def _sigmoid(values: Array) -> F32:
    return _f32(0.5 * (1 + np.tanh(0.5 * values.astype(np.float32))))


def _softmax(values: Array, axis: int = 1) -> F32:
    shifted = np.exp(values - values.max(axis, keepdims=True))
    return _f32(shifted / shifted.sum(axis, keepdims=True))
