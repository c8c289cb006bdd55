"""Outputs are read by their task, and become a few numbers per item."""

import numpy as np
import pytest

from shoal import task_outputs
from shoal.errors import InputError
from shoal.signature import Signature, Tensor
from shoal.task_outputs import NONE, output_columns
from shoal.tasks import (
    AnomalyScore,
    Classification,
    Detection,
    Embedding,
    MultiLabel,
    Regression,
    Segmentation,
    SequenceText,
    Tensors,
)

NAN = float("nan")


def f32(*rows: object) -> np.ndarray:
    return np.array(rows, np.float32)


def columns(task: object, **outputs: np.ndarray) -> dict[str, list[float]]:
    found = output_columns(task, outputs)  # type: ignore[arg-type]
    assert all(column.dtype == np.float32 and column.ndim == 1 for column in found.values())
    return {name: [round(one, 3) for one in column.tolist()] for name, column in found.items()}


def test_items_come_first_wherever_the_model_counts_them() -> None:
    signature = Signature(
        inputs=[],
        outputs=[
            Tensor(name="a", datatype="FP32", shape=[2, "N"], batch=1),
            Tensor(name="b", datatype="FP32", shape=[1, 5]),
        ],
    )
    turned = task_outputs.items_first(signature, {"a": np.zeros((2, 7)), "b": np.zeros((1, 5))})
    assert {name: array.shape for name, array in turned.items()} == {"a": (7, 2), "b": (1, 1, 5)}


def test_the_largest_of_several_probabilities_is_the_label() -> None:
    task = Classification(output="p", labels=["a", "b", "c"])
    got = columns(task, p=f32([0.1, 0.7, 0.2], [0.5, 0.25, 0.25], [NAN, 0.5, 0.5]))
    assert got["prediction"] == [1, 0, NONE]
    assert got["score"][:2] == [0.7, 0.5]


@pytest.mark.parametrize("shape", [(2, 2), (2, 1)])
def test_two_labels_are_split_at_the_threshold_from_two_numbers_or_one(shape: tuple) -> None:
    second = np.float32([0.25, 0.35])[:, None]
    both = np.hstack([1 - second, second])
    task = Classification(output="p", labels=["no", "yes"], threshold=0.3)
    outputs = {"p": both if shape[1] == 2 else second}
    assert task_outputs.classes(task, outputs).tolist() == [0, 1]
    assert columns(task, **outputs)["score"] == [0.25, 0.35]


def test_logits_become_probabilities_even_where_they_are_large() -> None:
    several = Classification(output="p", labels=["a", "b", "c"], form="logits")
    assert columns(several, p=f32([1_000, 0, -1_000]))["score"] == [1.0]
    one = Classification(output="p", labels=["no", "yes"], form="logits")
    assert columns(one, p=f32([1_000.0], [-1_000.0], [0.0]))["score"] == [1.0, 0.0, 0.5]


def test_labels_by_index_and_by_name_are_found_and_others_are_none() -> None:
    index = Classification(output="y", labels=["a", "b"], form="index")
    assert columns(index, y=np.array([[1], [0], [7], [-3]])) == {"prediction": [1, 0, NONE, NONE]}
    name = Classification(output="y", labels=["3", "7"], form="label")
    assert columns(name, y=np.array([7, 3, 1])) == {"prediction": [1, 0, NONE]}
    text = Classification(output="y", labels=["ok", "nok"], form="label")
    assert columns(text, y=np.array(["nok", "?"], object)) == {"prediction": [1, NONE]}


def test_each_label_has_a_threshold_of_its_own() -> None:
    task = MultiLabel(output="p", labels=["a", "b"], thresholds=[0.9, 0.1])
    got = columns(task, p=f32([0.8, 0.2], [0.95, 0.05]))
    assert got == {
        "labels": [1, 1], "score": [0.8, 0.95],
        "score of a": [0.8, 0.95], "score of b": [0.2, 0.05],
    }  # fmt: skip


def test_targets_are_named_across_outputs() -> None:
    task = Regression(outputs=["y", "z"], names=["left", "right", "top"])
    got = columns(task, y=f32([1, 2], [3, 4]), z=f32([5], [6]))
    assert got == {"left": [1, 3], "right": [2, 4], "top": [5, 6]}


def test_an_item_is_odd_on_the_odd_side_of_the_threshold_and_without_a_number() -> None:
    scores = {"s": f32([-0.2], [0.1], [NAN])}
    normal = AnomalyScore(output="s", threshold=0.0, higher="normal")
    assert task_outputs.is_odd(normal, scores).tolist() == [True, False, True]
    odd = AnomalyScore(output="s", threshold=0.0)
    assert task_outputs.is_odd(odd, scores).tolist() == [False, True, True]
    assert columns(normal, s=f32([-0.2]))["score"] == pytest.approx([-0.2])


def test_a_vector_is_told_by_its_norm_and_tensors_by_nothing() -> None:
    assert columns(Embedding(output="v"), v=f32([3, 4], [0, 0])) == {"norm": [5, 0]}
    assert columns(Tensors(), v=f32([3, 4])) == {}


#: Two overlapping boxes of the first label, one of the second at the same place, one faint.
CORNERS = [[0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 10, 10], [50, 50, 60, 60]]
SHARES = [[0.9, 0], [0.8, 0], [0, 0.6], [0.1, 0]]


def _xywh(boxes: np.ndarray, centre: bool) -> np.ndarray:
    size = boxes[:, 2:] - boxes[:, :2]
    return np.hstack([boxes[:, :2] + (size / 2 if centre else 0), size])


def _layouts() -> dict[str, tuple[Detection, dict[str, np.ndarray]]]:
    boxes, shares = np.float32(CORNERS), np.float32(SHARES)
    labels = ["cat", "dog"]
    logits = np.log(np.clip(shares, 1e-6, 1)) - np.log1p(-np.clip(shares, 1e-6, 1))
    best = np.stack([shares.max(1), shares.argmax(1)], 1)
    background = np.log(np.clip(np.hstack([1 - shares.sum(1, keepdims=True), shares]), 1e-9, 1))
    ones = np.ones((4, 1), np.float32)
    return {
        "boxes, scores and classes": (
            Detection(boxes="b", scores="s", classes="c", labels=labels),
            {"b": boxes[None], "s": best[None, :, 0], "c": best[None, :, 1]},
        ),
        "score, class": (
            Detection(boxes="b", row="score, class", labels=labels),
            {"b": np.hstack([boxes, best])[None]},
        ),
        "yolov8": (
            Detection(boxes="b", turned=True, layout="cxcywh", labels=labels),
            {"b": np.hstack([_xywh(boxes, True), shares]).T[None]},
        ),
        "yolov5": (
            Detection(boxes="b", row="objectness, scores", layout="cxcywh", labels=labels),
            {"b": np.hstack([_xywh(boxes, True), ones, shares])[None]},
        ),
        "ssd": (
            Detection(boxes="b", scores="s", layout="yxyx", form="logits", labels=labels),
            {"b": boxes[None][:, :, [1, 0, 3, 2]], "s": logits[None]},
        ),
        "detr": (
            Detection(boxes="b", scores="s", form="logits", background=0, labels=labels,
                      layout="xywh"),
            {"b": _xywh(boxes, False)[None], "s": background[None]},
        ),
    }  # fmt: skip


@pytest.mark.parametrize("layout", _layouts())
def test_boxes_of_any_layout_are_the_same_boxes(layout: str) -> None:
    task, outputs = _layouts()[layout]
    (found,) = task_outputs.boxes(task, outputs)
    assert found.corners == pytest.approx(np.float32([CORNERS[0], CORNERS[2]]), abs=1e-4)
    assert found.scores == pytest.approx(np.float32([0.9, 0.6]), abs=1e-4)
    assert found.classes.tolist() == [0, 1]
    assert columns(task, **outputs) == {
        "count": [2], "score": [0.9], "prediction": [0], "area": [100],
    }  # fmt: skip


def test_a_model_that_suppresses_boxes_itself_keeps_all_and_an_item_may_have_none() -> None:
    task, outputs = _layouts()["score, class"]
    own = Detection(boxes="b", row="score, class", labels=task.labels, iou=None, confidence=0.0)
    (found,) = task_outputs.boxes(own, outputs)
    assert len(found.scores) == 4
    nothing = columns(task, b=np.zeros((1, 0, 6), np.float32))
    assert nothing == {"count": [0], "score": [0], "prediction": [NONE], "area": [0]}
    broken = np.full((1, 2, 6), NAN, np.float32)
    assert columns(task, b=broken)["count"] == [0]


def test_ten_thousand_boxes_are_read_within_bounds() -> None:
    rng = np.random.default_rng(3)
    rows = rng.random((1, 10_000, 6), np.float32)
    task = Detection(boxes="b", row="score, class", labels=["a", "b"], confidence=0.0)
    (found,) = task_outputs.boxes(task, {"b": rows})
    assert len(found.scores) <= task_outputs.MOST_BOXES


def test_maps_are_read_from_labels_from_one_map_and_from_indices() -> None:
    several = Segmentation(output="m", labels=["a", "b", "c"])
    maps = np.zeros((1, 3, 2, 2), np.float32)
    maps[0, 2, 0] = 1
    assert columns(several, m=maps) == {"share of a": [0.5], "share of b": [0], "share of c": [0.5]}
    one = Segmentation(output="m", labels=["background", "text"], threshold=0.3)
    assert columns(one, m=f32([[[0.4, 0.2], [0.1, NAN]]]))["share of text"] == [0.25]
    flat = Segmentation(output="m", labels=["background", "text"], threshold=0.3, axis=None)
    assert columns(flat, m=f32([[0.4, 0.2], [0.1, 0.0]]))["share of text"] == [0.25]
    last = Segmentation(output="m", labels=["a", "b"], axis=2, form="logits", threshold=0.9)
    assert columns(last, m=f32([[[0, 9], [0, 1]]]))["share of b"] == [0.5]
    index = Segmentation(output="m", labels=["a", "b"], axis=None, form="index")
    assert columns(index, m=np.array([[[0, 1], [9, 1]]])) == {
        "share of a": [0.25], "share of b": [0.5],
    }  # fmt: skip


def test_a_text_is_its_steps_without_repeats_and_blanks() -> None:
    steps = np.eye(3, dtype=np.float32)[[1, 1, 0, 1, 2, 2]] * 0.8
    task = SequenceText(output="t", alphabet=["", "l", "o"])
    (found,) = task_outputs.texts(task, {"t": steps[None]})
    assert (found.text, found.length) == ("llo", 3)
    assert columns(task, t=steps[None]) == {"length": [3], "score": [0.8]}
    each = SequenceText(output="t", alphabet=["", "l", "o"], repeats="each")
    assert task_outputs.texts(each, {"t": steps[None]})[0].text == "llloo"
    turned = SequenceText(output="t", alphabet=["", "l", "o"], axis=0)
    assert task_outputs.texts(turned, {"t": steps.T[None]})[0].text == "llo"
    silent = np.eye(3, dtype=np.float32)[[0, 0]]
    assert columns(task, t=silent[None]) == {"length": [0], "score": [0]}


@pytest.mark.parametrize(
    ("task", "outputs"),
    [
        (Classification(output="y", labels=["a", "b", "c"]), f32([1, 2])),
        (AnomalyScore(output="y", threshold=0), f32([1, 2])),
        (Regression(outputs=["y"], names=["a", "b", "c"]), f32([1, 2])),
        (Detection(boxes="y", labels=["a"]), np.zeros((1, 5, 9))),
        (Segmentation(output="y", labels=["a", "b", "c"]), np.zeros((1, 2, 4, 4))),
        (SequenceText(output="y", alphabet=["", "a"]), np.zeros((1, 5, 3))),
    ],
)
def test_outputs_of_another_shape_than_was_signed_are_refused(
    task: object, outputs: np.ndarray
) -> None:
    with pytest.raises(InputError):
        output_columns(task, {"y": outputs})  # type: ignore[arg-type]


def test_outputs_of_no_items_are_no_numbers() -> None:
    task = Classification(output="y", labels=["a", "b"])
    assert columns(task, y=np.zeros((0, 2), np.float32)) == {"prediction": [], "score": []}
    assert columns(Embedding(output="y"), y=np.zeros((0, 2), np.float32)) == {"norm": []}
    assert columns(Detection(boxes="y", labels=["a"]), y=np.zeros((0, 4, 5)))["count"] == []
