"""Each task is measured by its own measures, and a variant by how far it answers the same."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from shoal import tasks
from shoal.controller.data.items import Items
from shoal.controller.training.io import task_metrics, truths
from shoal.controller.training.io.task_metrics import agreement, measure
from shoal.errors import DatasetError
from shoal.task_outputs import Boxes
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

NAN = float("nan")
RNG = np.random.default_rng(11)


def outputs(name: str, rows: Any) -> list[dict[str, Array]]:
    """One item each, items first."""
    return [{name: np.array([row], np.float32)} for row in rows]


def boxes(*rows: Sequence[float]) -> Boxes:
    """Corners and a label's index each."""
    table = np.array(rows, np.float32).reshape(-1, 5)
    return Boxes(table[:, :4], np.ones(len(table), np.float32), table[:, 4].astype(np.int64))


def maps(truth: Array) -> Array:
    return np.eye(2, dtype=np.float32)[truth].transpose(2, 0, 1)


MAP = np.array([[0, 1], [1, 1]])
#: Word -> a task, outputs of items, their truths, and a metric's value.
MEASURED: dict[str, tuple[Task, list[dict[str, Array]], list[Any], dict[str, float]]] = {
    "classification": (
        Classification(output="y", labels=["a", "b"]),
        outputs("y", [[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.7, 0.3]]), [0, 1, 1, 0],
        {"accuracy": 0.75, "balanced_accuracy": 0.75, "f1 of a": 0.8, "f1 of b": 2 / 3},
    ),
    "multi-label": (
        MultiLabel(output="y", labels=["a", "b"]),
        outputs("y", [[0.9, 0.1], [0.8, 0.7], [0.1, 0.6]]),
        [np.array([True, False]), np.array([True, True]), np.array([False, False])],
        {"f1 of a": 1.0, "f1 of b": 2 / 3, "exact": 2 / 3, "average_precision": 1.0},
    ),
    "regression": (
        Regression(outputs=["y"], names=["x", "z"]),
        outputs("y", [[1, 10], [2, 20], [3, 31]]),
        [np.array([1.0, 10]), np.array([2.0, 20]), np.array([3.0, 30])],
        {"r2 of x": 1.0, "r2 of z": 1 - 1 / 200, "mae of z": 1 / 3, "mae": 1 / 6},
    ),
    "anomaly": (
        AnomalyScore(output="y", threshold=0.0, higher="normal"),
        outputs("y", [[0.5], [0.4], [-0.1], [-0.3], [0.1]]), [False, False, False, True, True],
        {"false_alarms": 1 / 3, "found": 0.5, "auroc": 5 / 6},
    ),
    "embedding": (
        Embedding(output="y"),
        outputs("y", [[1, 0], [5, 0.1], [0, 1], [0.1, 2], [0.9, 1]]), ["a", "a", "b", "b", "c"],
        {"recall_at_1": 1.0},
    ),
    "detection": (
        Detection(boxes="y", row="score, class", labels=["cat", "dog"]),
        outputs("y", [[[0, 0, 9, 9, 0.9, 0], [50, 50, 60, 60, 0.8, 0], [0, 0, 10, 9, 0.7, 1]],
                      [[0, 0, 5, 5, 0.1, 0], [0, 0, 9, 9, 0.0, 0], [0, 0, 9, 9, 0.0, 0]]]),
        [boxes([0, 0, 10, 10, 0], [0, 0, 10, 10, 1]), boxes([0, 0, 5, 5, 0])],
        {"ap50 of cat": 0.5 + 0.5 * 2 / 3, "ap50 of dog": 1.0, "precision": 2 / 3, "recall": 2 / 3},
    ),
    "segmentation": (
        Segmentation(output="y", labels=["floor", "wall"]),
        outputs("y", [maps(MAP), maps(np.array([[0, 0], [1, 1]]))]), [MAP, MAP],
        {"iou of floor": 2 / 3, "iou of wall": 5 / 6, "miou": 0.75, "accuracy": 7 / 8},
    ),
    "sequence": (
        SequenceText(output="y", alphabet=["", "l", "o"]),
        outputs("y", [np.eye(3)[[1, 0, 1, 2]], np.eye(3)[[2, 2, 0, 0]]]), ["llo", "ol"],
        {"character_error_rate": 0.2, "character_accuracy": 0.8, "exact": 0.5},
    ),
}  # fmt: skip


@pytest.mark.parametrize("word", MEASURED)
def test_a_task_is_measured_by_its_own_measures(word: str) -> None:
    task, answers, known, wanted = MEASURED[word]
    found = measure(task, zip(answers, known, strict=True))
    assert found.items == len(known)
    assert {name: found.metrics[name] for name in wanted} == pytest.approx(wanted)
    assert task_metrics.MAIN[type(task)] in found.metrics
    assert found.guessing == ""


def test_every_task_but_tensors_is_measured_and_compared() -> None:
    assert set(MEASURED) | {"tensors"} == set(tasks.KINDS)


#: Answers that have nothing to do with the truth, of 200 items.
N = 200
GUESSES: dict[str, tuple[Task, list[dict[str, Array]], list[Any]]] = {
    "classification": (
        Classification(output="y", labels=["a", "b"]),
        outputs("y", np.tile([0.9, 0.1], (N, 1))), [i % 2 for i in range(N)],
    ),
    "multi-label": (
        MultiLabel(output="y", labels=["a", "b"]),
        outputs("y", np.full((N, 2), 0.5)), list(RNG.random((N, 2)) < 0.3),
    ),
    "regression": (
        Regression(outputs=["y"], names=["x"]),
        outputs("y", RNG.normal(size=(N, 1))), list(RNG.normal(size=(N, 1))),
    ),
    "anomaly": (
        AnomalyScore(output="y", threshold=0.0),
        outputs("y", np.zeros((N, 1))), [i % 4 == 0 for i in range(N)],
    ),
    "detection": (
        Detection(boxes="y", row="score, class", labels=["cat"]),
        outputs("y", np.tile([90, 90, 99, 99, 0.9, 0], (N, 1, 1))), [boxes([0, 0, 9, 9, 0])] * N,
    ),
    "segmentation": (
        Segmentation(output="y", labels=["floor", "wall"]), outputs("y", [maps(MAP * 0)] * 4),
        [MAP] * 4,
    ),
    "sequence": (
        SequenceText(output="y", alphabet=["", "l", "o"]),
        outputs("y", [np.eye(3)[[0, 0, 0]]] * 4), ["llo"] * 4,
    ),
}  # fmt: skip


@pytest.mark.parametrize("word", GUESSES)
def test_a_model_no_better_than_guessing_is_told_so(word: str) -> None:
    task, answers, known = GUESSES[word]
    assert "guessing gives" in measure(task, zip(answers, known, strict=True)).guessing


@pytest.mark.parametrize("word", MEASURED)
def test_the_same_answers_agree_and_others_and_nan_do_not(word: str) -> None:
    task, answers, _, _ = MEASURED[word]
    assert agreement(task, answers, answers).why == ""
    (name,) = answers[0]
    broken = [{name: np.full_like(one[name], NAN)} for one in answers]
    assert "needed" in agreement(task, answers, broken).why
    if word != "segmentation":
        turned = [{name: one[name][:, ::-1] * -7 + 1} for one in answers]
        assert "needed" in agreement(task, answers, turned).why


def test_nan_in_the_outputs_is_never_a_good_measure() -> None:
    for word, (task, answers, known, _) in MEASURED.items():
        (name,) = answers[0]
        broken = [{name: np.full_like(one[name], NAN)} for one in answers]
        found = measure(task, zip(broken, known, strict=True))
        assert not found.metrics.get(task_metrics.MAIN[type(task)], 0.0) > 0.0, word


class Labelled(Items):
    """Items of which only labels are asked."""

    kind, inputs, label_kind = "tensors", ("x",), "numbers"

    def __init__(self, labels: Any) -> None:
        self._labels = np.array(labels)

    def __len__(self) -> int:
        return len(self._labels)

    def read(self, index: int) -> dict[str, Array]:
        raise NotImplementedError

    def name(self, index: int) -> str:
        return f"item {index}"

    def labels(self) -> Array:
        return self._labels

    def sites(self) -> Array:
        raise NotImplementedError

    def groups(self) -> Array | None:
        return None


ABC = Classification(output="y", labels=["a", "b", "c"])


def known(task: Task, labels: Any) -> list[Any]:
    found = truths.truths_of(task, Labelled(labels))
    return [np.asarray(found.of(i)).tolist() for i in range(len(labels))]


def test_labels_are_read_as_their_task_has_them() -> None:
    assert known(ABC, ["c", "a"]) == [2, 0]
    assert known(ABC, [2, 0]) == [2, 0]
    assert known(MEASURED["multi-label"][0], ["a,b", "", "b"]) == [
        [True, True], [False, False], [False, True]
    ]  # fmt: skip
    assert known(MEASURED["multi-label"][0], [[1, 0]]) == [[True, False]]
    assert known(MEASURED["anomaly"][0], ["odd", "normal"]) == [True, False]
    assert known(MEASURED["anomaly"][0], [True, False]) == [True, False]
    assert known(MEASURED["regression"][0], [[1, 2]]) == [[1.0, 2.0]]
    assert known(MEASURED["sequence"][0], ["lo"]) == ["lo"]
    padded = [[[0, 0, 9, 9, 1], [NAN, 0, 0, 0, 0], [0, 0, 0, 0, -1]]]
    (found,) = [truths.truths_of(MEASURED["detection"][0], Labelled(padded)).of(0)]
    assert (found.corners.tolist(), found.classes.tolist()) == ([[0, 0, 9, 9]], [1])


def test_numbers_in_place_of_names_are_said() -> None:
    assert "places of the named labels" in truths.truths_of(ABC, Labelled([2, 0])).notes[0]


@pytest.mark.parametrize(
    ("word", "labels", "why"),
    [
        ("classification", ["a", "x"], "item 1 is x, none of the task's: a, b"),
        ("classification", [0, 7], "none of the task's"),
        ("anomaly", ["good", "bad"], '1 or "odd"'),
        ("multi-label", [[0, 2]], "0 or 1 for each"),
        ("multi-label", ["a,q"], "label 'q', none"),
        ("regression", [1.0, 2.0], "2 numbers"),
        ("regression", [[1.0, NAN]], "item 0 is no number"),
        ("regression", ["x"], "2 numbers"),
        ("segmentation", [1, 0], "a map of label indices"),
        ("detection", [[0, 0, 1, 1]], r"boxes: \(k, 5\)"),
    ],
)
def test_labels_of_another_task_are_refused_with_what_is_needed(
    word: str, labels: Any, why: str
) -> None:
    with pytest.raises(DatasetError, match=why):
        truths.truths_of(MEASURED[word][0], Labelled(labels))
