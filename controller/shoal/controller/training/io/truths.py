"""What is known of items, in the form in which a task's answers are compared with it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from shoal import task_outputs
from shoal.controller.data.items import Items
from shoal.errors import DatasetError
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
from shoal.tensors import Array

#: Of an item, by task: a label's index; bool (labels,); float64 (targets,); whether it is odd; a
#: label; Boxes; label indices by place; a text.
Truth = Any
#: Labels of an anomaly task.
_ODD = {"0": False, "1": True, "normal": False, "odd": True}


class Truths(NamedTuple):
    """of: the truth of an item by its number. notes: how labels were read, a sentence each."""

    of: Callable[[int], Truth]
    notes: list[str]


def truths_of(task: Task, items: Items) -> Truths:
    """The truth of each item, from its label.

    classification   a label's name, or its index where no label has such names
    multi-label      numbers 0 and 1, (labels,), or names separated by commas
    regression       numbers, (targets,)
    anomaly          1 or "odd", 0 or "normal"
    embedding        any label: items of the same one are alike
    detection        boxes; or an array (k, 5) of x1, y1, x2, y2 and the label's index, in which
                     rows with a negative index or NaN are none
    segmentation     label indices, (height, width); other numbers are left out
    sequence         a text

    DatasetError, naming an item, for labels that are not so; for items without labels.
    """
    if isinstance(task, Detection):
        return _boxes(task, items)
    labels = items.labels()
    if isinstance(task, Classification):
        return _classes(task, items, labels)
    if isinstance(task, AnomalyScore):
        return _odd(items, labels)
    if isinstance(task, MultiLabel):
        return _several(task, items, labels)
    if isinstance(task, Regression):
        numbers = _numbers(items, labels, len(task.names))
        return Truths(lambda i: numbers[i], [])
    if isinstance(task, Segmentation):
        if labels.ndim < 2 or labels.dtype.kind not in "iu":
            raise _wrong(items, labels, "a map of label indices, whole numbers (height, width)")
        return Truths(lambda i: np.asarray(labels[i], np.int64), [])
    if isinstance(task, Embedding | SequenceText):
        texts = [task_outputs.label_text(one) for one in labels.tolist()]
        return Truths(lambda i: texts[i], [])
    raise DatasetError(f"task {task.word} has no labels", "leave the label out")


def check_map(truth: Array, size: int) -> None:
    """DatasetError unless a map has as many places as the model's answer."""
    if truth.size != size:
        raise DatasetError(
            f"a label is a map of {truth.size} places, the model's has {size}",
            "give labels of the size of the model's output",
        )


def _classes(task: Classification, items: Items, labels: Array) -> Truths:
    if labels.ndim != 1:
        raise _wrong(items, labels, "one label")
    index = task_outputs.label_indices(task.labels, labels)
    if (index != NONE).all():
        return Truths(lambda i: index[i], [])
    numbers = _as_indices(labels, len(task.labels)) if (index == NONE).all() else None
    if numbers is None:
        first = int(np.flatnonzero(index == NONE)[0])
        raise DatasetError(
            f"the label of {items.name(first)} is {labels[first]!s:.100}, none of the task's: "
            f"{', '.join(task.labels)[:200]}",
            "name labels as they are in the data, in the order of the model's outputs",
        )
    note = "labels are numbers, and were taken for the places of the named labels, from 0 on"
    return Truths(lambda i: numbers[i], [note])


def _as_indices(labels: Array, count: int) -> Array | None:
    try:
        numbers = labels.astype(np.float64)
    except ValueError:
        return None
    fits = (numbers == np.floor(numbers)) & (numbers >= 0) & (numbers < count)
    return numbers.astype(np.int64) if fits.all() else None


def _odd(items: Items, labels: Array) -> Truths:
    texts = [task_outputs.label_text(one).lower() for one in labels.ravel().tolist()]
    texts = [{"true": "1", "false": "0"}.get(text, text) for text in texts]
    if len(texts) != len(items) or not _ODD.keys() >= set(texts):
        raise _wrong(items, labels, 'one label: 1 or "odd", 0 or "normal"')
    return Truths(lambda i: _ODD[texts[i]], [])


def _several(task: MultiLabel, items: Items, labels: Array) -> Truths:
    if labels.dtype.kind in "USO" and labels.ndim == 1:
        given = [
            {part.strip() for part in task_outputs.label_text(one).split(",")} - {""}
            for one in labels.tolist()
        ]
        for i, names in enumerate(given):
            if unknown := sorted(names - set(task.labels)):
                raise DatasetError(
                    f"{items.name(i)} has label {unknown[0]!r:.100}, none of the task's",
                    f"they are: {', '.join(task.labels)[:300]}",
                )
        return Truths(lambda i: np.array([one in given[i] for one in task.labels]), [])
    numbers = _numbers(items, labels, len(task.labels))
    if not np.isin(numbers, (0, 1)).all():
        raise _wrong(items, labels, f"0 or 1 for each of {len(task.labels)} labels, or their names")
    return Truths(lambda i: numbers[i] == 1, [])


def _numbers(items: Items, labels: Array, count: int) -> Array:
    """Labels as (n, count)."""
    try:
        numbers = labels.astype(np.float64).reshape(len(labels), -1)
    except ValueError:
        raise _wrong(items, labels, f"{count} numbers") from None
    if numbers.shape[1] != count:
        raise _wrong(items, labels, f"{count} numbers")
    if not np.isfinite(numbers).all():
        first = int(np.flatnonzero(~np.isfinite(numbers).all(1))[0])
        raise DatasetError(f"the label of {items.name(first)} is no number", "leave the item out")
    return numbers


def _boxes(task: Detection, items: Items) -> Truths:
    if items.label_kind == "boxes":
        index = {label: at for at, label in enumerate(task.labels)}
        if unknown := sorted(set(items.classes) - index.keys()):
            raise DatasetError(
                f"the data has boxes of {unknown[0]!r:.100}, none of the task's labels",
                f"they are: {', '.join(task.labels)[:300]}",
            )

        def read(i: int) -> Boxes:
            found = items.boxes(i)
            classes = np.array([index[one] for one in found.classes], np.int64)
            return Boxes(found.xyxy, np.ones(len(classes), np.float32), classes)

        return Truths(read, [])
    labels = items.labels()
    if labels.ndim != 3 or labels.shape[2] != 5 or labels.dtype.kind not in "fiu":
        raise _wrong(items, labels, "boxes: (k, 5), x1, y1, x2, y2 and the label's index")
    return Truths(lambda i: _rows_of(np.asarray(labels[i], np.float64), len(task.labels)), [])


def _rows_of(rows: Array, count: int) -> Boxes:
    kept = rows[np.isfinite(rows).all(1) & (rows[:, 4] >= 0)]
    if (kept[:, 4] >= count).any():
        raise DatasetError(f"a box has label index {kept[:, 4].max():g} of {count} labels")
    classes = kept[:, 4].astype(np.int64)
    return Boxes(kept[:, :4].astype(np.float32), np.ones(len(kept), np.float32), classes)


def _wrong(items: Items, labels: Array, wanted: str) -> DatasetError:
    return DatasetError(
        f"labels are {labels.dtype} {list(labels.shape)}, and the task needs of each item {wanted}",
        'in a .npz that is the array "label"',
    )
