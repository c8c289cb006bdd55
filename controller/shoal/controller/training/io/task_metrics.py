"""Measures of a model of tensors by its task, on items whose answer is known.

Classification, multi-label, regression and anomaly are measured by scikit-learn. Boxes as in
PASCAL VOC from 2010 on: the average precision is the area under the interpolated precision-recall
curve, at 50 % overlap. The character error rate is Levenshtein's distance over the length of the
right text; recall@1 the share of items whose nearest other item has the same label.
"""

import warnings
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from sklearn import metrics as sk

from shoal import task_outputs
from shoal.controller.training.io import truths
from shoal.controller.training.io.truths import Truth
from shoal.task_outputs import NONE, Boxes
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
from shoal.tensors import Named

#: Metric by which a release is judged, where more is better.
MAIN: dict[type, str] = {
    Classification: "balanced_accuracy", MultiLabel: "average_precision", Regression: "r2",
    AnomalyScore: "auroc", Embedding: "recall_at_1", Detection: "map50", Segmentation: "miou",
    SequenceText: "character_accuracy",
}  # fmt: skip
#: Labels or targets whose own measure is given.
MOST_EACH = 16
#: Boxes below the task's confidence count for the precision-recall curve from this score on.
_LEAST_SCORE, _OVERLAP = 0.001, 0.5
#: Chance has to be exceeded by so much of it.
_BEYOND = 1.05
_CHUNK = 512
#: Share of fp32's answers that a variant has to give.
LEAST_AGREEMENT = 0.98
Arrays = npt.NDArray[Any]


class Measured(NamedTuple):
    """metrics of the task; guessing: why the model is no better than guessing, "" if it is, or if
    that cannot be told; items that were measured."""

    metrics: dict[str, float]
    guessing: str
    items: int


class Agreement(NamedTuple):
    """metrics: how far a variant answers as fp32 does; why: too little, "" if it is enough."""

    metrics: dict[str, float]
    why: str


def measure(task: Task, items: Iterable[tuple[Named, Truth]]) -> Measured:
    """Measure a model on items.

    items   outputs of each item (items first, of one item), and its truth (truths.truth_of); read
            once, one by one

    InputError where outputs do not have the task's shape.
    """
    metrics, chance, count = _MEASURES[type(task)](task, items)
    main = MAIN[type(task)]
    guessing = ""
    if main in metrics and chance is not None and not metrics[main] > chance * _BEYOND:
        guessing = (
            f"{words(main)} {metrics[main]:.2f} on {count} items: guessing gives {chance:.2f}"
        )
    return Measured({k: v for k, v in metrics.items() if np.isfinite(v)}, guessing, count)


def agreement(
    task: Task, reference_outputs: Sequence[Named], outputs: Sequence[Named]
) -> Agreement:
    """How far `outputs` mean the same as `reference_outputs`, an entry an item (items first).

    Classification, multi-label, anomaly: share of the same decisions. Regression: R2. Embedding:
    worst cosine. Detection: F1 of the boxes. Segmentation: mean IoU. Sequence: share of characters.
    NaN where the reference has a number fails.
    """
    name, value = _AGREEMENTS[type(task)](task, reference_outputs, outputs)
    why = ""
    if not value >= LEAST_AGREEMENT:
        why = f"{words(name)} to fp32's answers {value:.3f}, {LEAST_AGREEMENT:g} needed"
    return Agreement({name: float(value)}, why)


def words(metric: str) -> str:
    """A metric's name for people.

    >>> words("balanced_accuracy"), words("map50")
    ('balanced accuracy', 'mAP at 50 % overlap')
    """
    return _WORDS.get(metric, metric.replace("_", " "))


_WORDS = {
    "map50": "mAP at 50 % overlap", "miou": "mean IoU", "auroc": "area under the ROC curve",
    "recall_at_1": "recall at 1", "r2": "R²", "mae": "mean absolute error",
}  # fmt: skip


# ------------------------------------------------------------------------------------- by task

Result = tuple[dict[str, float], float | None, int]
Items = Iterable[tuple[Named, Truth]]


def _classification(task: Classification, items: Items) -> Result:
    pairs = [(int(task_outputs.classes(task, out)[0]), int(truth)) for out, truth in items]
    found, y = np.array(pairs).reshape(-1, 2).T
    present = np.unique(y)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a class that is predicted but absent
        metrics = {
            "accuracy": float(sk.accuracy_score(y, found)),
            "balanced_accuracy": float(sk.balanced_accuracy_score(y, found)),
        }
    f1 = sk.f1_score(y, found, labels=present, average=None, zero_division=0)
    metrics["macro_f1"] = float(np.mean(f1))
    if len(present) <= MOST_EACH:
        metrics |= {
            f"f1 of {task.labels[at]}": float(one) for at, one in zip(present, f1, strict=True)
        }
    return metrics, 1 / len(present) if len(present) > 1 else None, len(y)


def _multi_label(task: MultiLabel, items: Items) -> Result:
    rows = [
        (task_outputs.label_shares(task, out)[0], task_outputs.given_labels(task, out)[0], truth)
        for out, truth in items
    ]
    shares, given, y = (np.array([row[at] for row in rows]) for at in range(3))
    both = y.any(0) & ~y.all(0)
    f1 = sk.f1_score(y, given, average=None, zero_division=0)
    metrics = {
        "macro_f1": float(np.mean(f1[y.any(0)])) if y.any() else float("nan"),
        "micro_f1": float(sk.f1_score(y, given, average="micro", zero_division=0)),
        "exact": float((given == y).all(1).mean()),
    }
    if both.any() and np.isfinite(shares).all():
        precision = sk.average_precision_score(y[:, both], shares[:, both], average="macro")
        metrics["average_precision"] = float(precision)
    if len(task.labels) <= MOST_EACH:
        metrics |= {
            f"f1 of {label}": float(one) for label, one in zip(task.labels, f1, strict=True)
        }
    return metrics, float(y[:, both].mean()) if both.any() else None, len(y)


def _regression(task: Regression, items: Items) -> Result:
    pairs = [(task_outputs.values(task, out)[0], truth) for out, truth in items]
    found, y = (np.array([pair[at] for pair in pairs], np.float64) for at in (0, 1))
    if not np.isfinite(found).all():
        return {"r2": float("-inf")}, 0.0, len(y)
    r2 = sk.r2_score(y, found, multioutput="raw_values") if len(y) > 1 else np.zeros(y.shape[1])
    mae = np.abs(y - found).mean(0)
    metrics = {"r2": float(r2.mean()), "mae": float(mae.mean()),
               "rmse": float(np.sqrt(np.square(y - found).mean()))}  # fmt: skip
    if 1 < len(task.names) <= MOST_EACH:
        metrics |= {f"r2 of {name}": float(one) for name, one in zip(task.names, r2, strict=True)}
        metrics |= {f"mae of {name}": float(one) for name, one in zip(task.names, mae, strict=True)}
    return metrics, 0.0 if len(y) > 1 else None, len(y)


def _anomaly(task: AnomalyScore, items: Items) -> Result:
    rows = [
        (task_outputs.oddness(task, out)[0], task_outputs.is_odd(task, out)[0], truth)
        for out, truth in items
    ]
    score, called, y = (np.array([row[at] for row in rows]) for at in range(3))
    metrics, chance = dict[str, float](), None
    if (~y).any():
        metrics["false_alarms"] = float(called[~y].mean())
    if y.any():
        metrics["found"] = float(called[y].mean())
    if y.any() and not y.all() and np.isfinite(score).all():
        metrics["auroc"], chance = float(sk.roc_auc_score(y, score)), 0.5
    return metrics, chance, len(y)


def _embedding(task: Embedding, items: Items) -> Result:
    pairs = [(task_outputs.vectors(task, out)[0], truth) for out, truth in items]
    vectors, y = np.array([v for v, _ in pairs], np.float64), np.array([t for _, t in pairs])
    _, label, count = np.unique(y, return_inverse=True, return_counts=True)
    shared = count[label] > 1
    if not shared.any():
        return {}, None, len(y)
    nearest = _nearest(vectors, task.compare)
    found = (label[nearest] == label) & np.isfinite(vectors).all(1)
    chance = ((count[label] - 1) / (len(y) - 1))[shared].mean()
    return {"recall_at_1": float(found[shared].mean())}, float(chance), len(y)


def _nearest(vectors: Arrays, compare: str) -> npt.NDArray[np.int64]:
    """Index of the nearest other vector of each of (n, d)."""
    clean = np.nan_to_num(vectors)
    if compare == "cosine":
        clean = clean / np.maximum(np.linalg.norm(clean, axis=1, keepdims=True), 1e-12)
    squares = np.square(clean).sum(1)
    found = []
    for at in range(0, len(clean), _CHUNK):
        some = clean[at : at + _CHUNK]
        distance = squares[None] - 2 * some @ clean.T
        distance[np.arange(len(some)), np.arange(at, at + len(some))] = np.inf
        found.append(distance.argmin(1))
    return np.concatenate(found)


def _detection(task: Detection, items: Items) -> Result:
    rows = [(task_outputs.boxes(task, out, _LEAST_SCORE)[0], truth) for out, truth in items]
    known = [truth for _, truth in rows]
    present = sorted({int(one) for truth in known for one in truth.classes})
    if not present:
        return {}, None, len(rows)
    each = {
        label: _average_precision([found for found, _ in rows], known, label) for label in present
    }
    sure = [_confident(found, task.confidence) for found, _ in rows]
    precision, recall = _precision_recall(sure, known)
    metrics = {"map50": float(np.mean(list(each.values()))), "precision": precision,
               "recall": recall}  # fmt: skip
    if len(present) <= MOST_EACH:
        metrics |= {f"ap50 of {task.labels[label]}": value for label, value in each.items()}
    return metrics, 0.01, len(rows)


def _confident(found: Boxes, least: float) -> Boxes:
    kept = found.scores >= least
    return Boxes(found.corners[kept], found.scores[kept], found.classes[kept])


def _hits(found: Boxes, truth: Boxes, label: int) -> npt.NDArray[np.bool_]:
    """Whether each found box of `label`, best first, is the first on a known one."""
    mine = found.corners[found.classes == label]
    known = truth.corners[truth.classes == label]
    hits = np.zeros(len(mine), bool)
    if not len(known):
        return hits
    overlap, taken = task_outputs.overlaps(mine, known), np.zeros(len(known), bool)
    for at, row in enumerate(overlap):
        best = int(np.where(taken, -1.0, row).argmax())
        if not taken[best] and row[best] >= _OVERLAP:
            hits[at] = taken[best] = True
    return hits


def _average_precision(found: Sequence[Boxes], known: Sequence[Boxes], label: int) -> float:
    scores = np.concatenate([one.scores[one.classes == label] for one in found])
    hits = np.concatenate([_hits(f, k, label) for f, k in zip(found, known, strict=True)])
    total = sum(int((one.classes == label).sum()) for one in known)
    right = np.cumsum(hits[np.argsort(-scores, kind="stable")])
    precision = right / np.arange(1, len(right) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    recall = np.concatenate([[0.0], right / total])
    return float((np.diff(recall) * envelope).sum())


def _precision_recall(found: Sequence[Boxes], known: Sequence[Boxes]) -> tuple[float, float]:
    hits = sum(
        int(_hits(f, k, label).sum())
        for f, k in zip(found, known, strict=True)
        for label in np.unique(f.classes)
    )
    given, total = (sum(len(one.classes) for one in boxes) for boxes in (found, known))
    return hits / given if given else 0.0, hits / total if total else 0.0


def _segmentation(task: Segmentation, items: Items) -> Result:
    count, n = len(task.labels), 0
    confusion = np.zeros((count, count + 1), np.int64)
    for out, truth in items:
        found = task_outputs.label_maps(task, out)[0].reshape(-1)
        truths.check_map(truth, found.size)
        y = truth.reshape(-1)
        seen = (y >= 0) & (y < count)
        both = y[seen] * (count + 1) + np.where(found[seen] == NONE, count, found[seen])
        confusion += np.bincount(both, minlength=count * (count + 1)).reshape(count, count + 1)
        n += 1
    right = np.diag(confusion)
    known, given = confusion.sum(1), confusion.sum(0)[:count]
    either = known + given - right
    present = np.flatnonzero(known)
    if not present.size:
        return {}, None, n
    iou = right[present] / either[present]
    metrics = {"miou": float(iou.mean()), "accuracy": float(right.sum() / known.sum())}
    if len(present) <= MOST_EACH:
        metrics |= {
            f"iou of {task.labels[at]}": float(one) for at, one in zip(present, iou, strict=True)
        }
    constant = float(known.max() / known.sum() / len(present))
    return metrics, constant if len(present) > 1 else None, n


def _sequence(task: SequenceText, items: Items) -> Result:
    errors = length = exact = n = 0
    for out, truth in items:
        found = task_outputs.texts(task, out)[0].text
        errors += edit_distance(found, truth)
        length, exact, n = length + len(truth), exact + (found == truth), n + 1
    rate = errors / length if length else float("nan")
    metrics = {"character_error_rate": rate, "character_accuracy": max(0.0, 1 - rate),
               "exact": exact / n if n else float("nan")}  # fmt: skip
    return metrics, 0.05, n


def edit_distance(some: str, other: str) -> int:
    """Insertions, deletions and replacements from one text to the other (Levenshtein).

    >>> edit_distance("kitten", "sitting")
    3
    """
    before = list(range(len(other) + 1))
    for i, a in enumerate(some, 1):
        row = [i]
        for j, b in enumerate(other, 1):
            row.append(min(before[j] + 1, row[-1] + 1, before[j - 1] + (a != b)))
        before = row
    return before[-1]


_MEASURES: dict[type, Any] = {
    Classification: _classification, MultiLabel: _multi_label, Regression: _regression,
    AnomalyScore: _anomaly, Embedding: _embedding, Detection: _detection,
    Segmentation: _segmentation, SequenceText: _sequence,
}  # fmt: skip


# ------------------------------------------------------------------------------------- agreement

Agreed = tuple[str, float]


def _same(want: Iterable[Arrays], got: Iterable[Arrays]) -> Agreed:
    equal = [np.asarray(w == g).ravel() for w, g in zip(want, got, strict=True)]
    return "same_decisions", float(np.concatenate(equal).mean()) if equal else 1.0


def _same_classes(task: Classification, want: Sequence[Named], got: Sequence[Named]) -> Agreed:
    return _same(*([task_outputs.classes(task, one) for one in some] for some in (want, got)))


def _same_labels(task: MultiLabel, want: Sequence[Named], got: Sequence[Named]) -> Agreed:
    if any(np.isnan(task_outputs.label_shares(task, one)).any() for one in got):
        return "same_decisions", 0.0
    return _same(*([task_outputs.given_labels(task, one) for one in some] for some in (want, got)))


def _same_odd(task: AnomalyScore, want: Sequence[Named], got: Sequence[Named]) -> Agreed:
    if any(np.isnan(task_outputs.oddness(task, one)).any() for one in got):
        return "same_decisions", 0.0
    return _same(*([task_outputs.is_odd(task, one) for one in some] for some in (want, got)))


def _same_values(task: Regression, want: Sequence[Named], got: Sequence[Named]) -> Agreed:
    w, g = (
        np.concatenate([task_outputs.values(task, one) for one in some]) for some in (want, got)
    )
    if not np.isfinite(g).all():
        return "r2", float("-inf")
    left = np.square(w - g).sum(0)
    spread = np.maximum(np.square(w - w.mean(0)).sum(0), 1e-12)
    return "r2", float((1 - left / spread).min())


def _same_vectors(task: Embedding, want: Sequence[Named], got: Sequence[Named]) -> Agreed:
    w, g = (
        np.concatenate([task_outputs.vectors(task, one) for one in some]) for some in (want, got)
    )
    norms = np.linalg.norm(w, axis=1) * np.linalg.norm(g, axis=1)
    return "worst_cosine", float(((w * g).sum(1) / np.maximum(norms, 1e-12)).min())


def _same_boxes(task: Detection, want: Sequence[Named], got: Sequence[Named]) -> Agreed:
    w, g = ([task_outputs.boxes(task, one)[0] for one in some] for some in (want, got))
    if not any(len(one.classes) for one in (*w, *g)):
        return "f1", 1.0
    precision, recall = _precision_recall(g, w)
    return "f1", 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _same_maps(task: Segmentation, want: Sequence[Named], got: Sequence[Named]) -> Agreed:
    pairs = zip(got, (task_outputs.label_maps(task, one)[0] for one in want), strict=True)
    return "miou", _segmentation(task, pairs)[0].get("miou", 1.0)


def _same_texts(task: SequenceText, want: Sequence[Named], got: Sequence[Named]) -> Agreed:
    if any(np.isnan(one[task.output]).any() for one in got):
        return "character_accuracy", 0.0
    pairs = zip(got, (task_outputs.texts(task, one)[0].text for one in want), strict=True)
    found = _sequence(task, pairs)[0]["character_accuracy"]
    return "character_accuracy", 1.0 if np.isnan(found) else found


_AGREEMENTS: dict[type, Any] = {
    Classification: _same_classes, MultiLabel: _same_labels, Regression: _same_values,
    AnomalyScore: _same_odd, Embedding: _same_vectors, Detection: _same_boxes,
    Segmentation: _same_maps, SequenceText: _same_texts,
}  # fmt: skip
