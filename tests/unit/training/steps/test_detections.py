"""Boxes of detectors against a plain suppression in numpy."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from shoal.errors import ModelError, SettingError
from shoal.tensors import Array
from training_steps import answered, composed, outputs, photo

FLOAT = TensorProto.FLOAT


def overlap(a: Array, b: Array) -> float:
    sides = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    both = sides.clip(0).prod()
    return float(both / ((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - both))


def suppressed(
    boxes: Array, scores: Array, confidence: float, iou: float
) -> list[tuple[int, float, Array]]:
    """(class, score, corners) of one image, best first; boxes (A, 4) and scores (A, C)."""
    kept: list[tuple[int, float, Array]] = []
    for i in np.argsort(-scores.max(1), kind="stable"):
        name, score = int(scores[i].argmax()), float(scores[i].max())
        if score <= confidence:
            break
        if all(name != other or overlap(boxes[i], box) <= iou for other, _, box in kept):
            kept.append((name, score, boxes[i]))
    return kept


def candidates(seed: int, count: int = 200, classes: int = 3) -> tuple[Array, Array]:
    """Corners (A, 4) and scores (A, classes): float32."""
    rng = np.random.default_rng(seed)
    corner, size = rng.uniform(0, 80, (count, 2)), rng.uniform(5, 40, (count, 2))
    boxes = np.hstack([corner, corner + size]).astype(np.float32)
    return boxes, rng.uniform(0, 1, (count, classes)).astype(np.float32)


def as_yolov8(boxes: Array, scores: Array) -> Array:
    middle, size = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    return np.hstack([middle, size, scores]).T.astype(np.float32)


def as_yolov5(boxes: Array, scores: Array) -> Array:
    rows = as_yolov8(boxes, np.hstack([np.full((len(boxes), 1), 0.5), 2 * scores])).T
    return np.ascontiguousarray(rows)


@pytest.mark.parametrize(
    ("layout", "form"), [("yolov8", as_yolov8), ("yolov5", as_yolov5)], ids=["yolov8", "yolov5"]
)
def test_boxes_that_overlap_a_better_one_of_their_class_are_left_out(
    layout: str, form: Any
) -> None:
    images = [candidates(seed) for seed in range(3)]
    images[2][1][:] = 0.1  # nothing is found on the last one
    step = {"step": "nms", "layout": layout, "confidence": 0.4, "iou": 0.45, "most": 250}
    names = {"step": "labels", "labels": ["a", "b", "c"], "unknown": ""}
    sent = np.stack([form(*image) for image in images])
    found = answered([step, names], sent)
    for i, (boxes, scores) in enumerate(images):
        wanted = suppressed(boxes, scores, 0.4, 0.45)
        count = int(found["out_count"][i])
        assert count == len(wanted)
        assert found["out"][i, :count].tolist() == ["abc"[name] for name, _, _ in wanted]
        assert np.allclose(found["out_scores"][i, :count], [s for _, s, _ in wanted], atol=1e-6)
        corners = np.array([box for _, _, box in wanted]).reshape(-1, 4)
        assert np.allclose(found["out_boxes"][i, :count], corners, atol=1e-4)
        assert (found["out"][i, count:] == "").all()
        assert not found["out_boxes"][i, count:].any()
    fewer = answered([{**step, "most": 2}], sent)
    assert fewer["out_boxes"].shape == (3, 2, 4)
    assert (fewer["out_scores"] == found["out_scores"][:, :2]).all()
    assert fewer["out_count"].tolist() == [2, 2, 0]


def detector(tensors: Mapping[str, list[int | str]], height: int, width: int) -> onnx.ModelProto:
    """Answers what it is sent, beside a picture that it does not look at."""
    shapes = {**tensors, "x": ["N", 3, height, width]}
    infos = [helper.make_tensor_value_info(name, FLOAT, shape) for name, shape in shapes.items()]
    answers = [
        helper.make_tensor_value_info(f"{name}_out", FLOAT, shape) for name, shape in shapes.items()
    ]
    nodes = [helper.make_node("Identity", [one.name], [f"{one.name}_out"]) for one in infos]
    graph = helper.make_graph(nodes, "g", infos, answers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


PLACES: dict[str, tuple[dict[str, Any], tuple[int, int]]] = {
    "letterbox": ({"fit": "letterbox", "width": 64, "height": 64}, (64, 64)),
    "corner": (
        {"fit": "letterbox", "width": 64, "height": 48, "place": "top-left"}, (48, 64)
    ),
    "stretch": ({"width": 64, "height": 32}, (32, 64)),
}  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
def test_boxes_are_in_the_pixels_of_the_picture_that_was_sent(place: str) -> None:
    fields, (height, width) = PLACES[place]
    sent_height, sent_width = 300, 200
    truth = np.float32([[20, 30, 120, 210], [150, 250, 200, 300]])
    ratio = np.array([width / sent_width, height / sent_height])
    shift = np.zeros(2)
    if place != "stretch":
        ratio[:] = ratio.min()
        if place == "letterbox":
            shift = (np.array([width, height]) - np.round([sent_width, sent_height] * ratio)) // 2
    seen = (truth.reshape(-1, 2, 2) * ratio + shift).reshape(1, 2, 4).astype(np.float32)
    steps = [{"step": "image"}, {"step": "resize", **fields}, {"step": "normalise"},
             {"step": "layout", "to": "CHW"}]  # fmt: skip
    nms = {"step": "nms", "layout": "corners", "scores": "s_out", "image": "image", "most": 4}
    declared = {
        "input": [{"name": "x", "steps": steps}],
        "output": [{"name": "b_out", "as": "found", "steps": [nms]}],
    }
    model = detector({"b": ["N", "A", 4], "s": ["N", "A", "C"]}, height, width)
    found = outputs(
        composed(model, declared),
        {"image": photo(sent_height, sent_width)[None], "b": seen,
         "s": np.float32([[[0.9, 0.1], [0.2, 0.8]]])},
    )  # fmt: skip
    assert found["found"].tolist() == [[0, 1, -1, -1]]
    assert np.abs(found["found_boxes"][0, :2] - truth).max() < 2.5


UNFIT: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "no scores": ({"layout": "corners"}, SettingError, 'with layout = "corners"'),
    "scores of another layout": (
        {"layout": "yolov8", "scores": "y"}, SettingError, 'with layout = "corners"'
    ),
    "no such output": ({"layout": "corners", "scores": "z"}, ModelError, "there are: y"),
    "no such image": ({"layout": "yolov8", "image": "photo"}, ModelError, "no image 'photo'"),
}  # fmt: skip


@pytest.mark.parametrize("what", UNFIT)
def test_suppression_that_makes_no_sense_is_refused(what: str) -> None:
    fields, kind, words = UNFIT[what]
    with pytest.raises(kind) as refused:
        answered([{"step": "nms", **fields}], np.zeros((1, 7, 5), np.float32))
    assert words in str(refused.value)
