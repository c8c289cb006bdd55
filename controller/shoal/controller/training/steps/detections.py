"""The step of detectors: boxes with scores, without those that overlap a better one.

Layouts are those of Ultralytics' exports; each box counts for its best class only, as in
Ultralytics' predict, and a box is compared with boxes of its class (NonMaxSuppression of ONNX).
"""

from typing import Annotated, Literal, NamedTuple

import msgspec
import numpy as np

from shoal.controller.training.steps.graph import Graph, Placement, Value
from shoal.controller.training.steps.step import OutputStep
from shoal.errors import ModelError

Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
_CORNERS = 4


class _Candidates(NamedTuple):
    """Boxes (N, A, 4) of corners x1, y1, x2, y2, and scores (N, C, A): float32 tensors."""

    boxes: str
    scores: str


class Nms(OutputStep, frozen=True, kw_only=True, tag="nms"):
    """At most `most` boxes of each image, best first. Their classes (N, most; int64, -1 where there
    are fewer) are the main answer, which labels may follow; further outputs are named with "_boxes"
    (N, most, 4: x1, y1, x2, y2), "_scores" (N, most) and "_count" (N).

    layout       "yolov8": (N, 4 + classes, boxes) of x, y of the middle, width, height, and scores
                 "yolov5": (N, boxes, 5 + classes), with a score of the object before the classes'
                 "corners": (N, boxes, 4) of x1, y1, x2, y2, and the output named by `scores`
    scores       of "corners": name of the output (N, boxes, classes)
    confidence   boxes of a lower or the same score are left out
    iou          of two boxes of one class whose intersection is more than so much of their union,
                 the one with the lower score is left out
    image        name of the sent image: boxes are in its pixels, and end at its sides; "" for the
                 pixels that the model reads
    """

    layout: Literal["yolov8", "yolov5", "corners"]
    scores: str = ""
    confidence: Share = 0.25
    iou: Share = 0.45
    most: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 300
    image: str = ""

    def __post_init__(self) -> None:
        if (self.layout == "corners") != bool(self.scores):
            raise ValueError('scores names an output with layout = "corners", and only then')

    def apply(self, g: Graph, answer: dict[str, Value]) -> dict[str, Value]:
        """Best class of each box, suppression, then the best ones of each image."""
        value = answer[""]
        if value.datatype != "FP32" or (value.shape is not None and len(value.shape) != 3):
            raise self.refused(value, "nms is for float32 of three axes: put it first")
        found = self._candidates(g, value)
        best = g.op("ReduceMax", found.scores, g.ints(1), keepdims=1)
        classes = g.op("ArgMax", found.scores, axis=1, keepdims=0)
        kept = self._kept(g, found, best, classes)
        scores, places = g.ops("TopK", kept, g.ints(self.most), outputs=2, axis=1)
        real = g.op("Greater", scores, g.scalar(0, "FP32"))
        # Places of padding are beyond the boxes.
        count = g.op("Shape", found.boxes, start=1, end=2)
        inside = g.op("Min", places, g.op("Sub", count, g.ints(1)))
        named = g.op("Where", real, g.op("GatherElements", classes, inside, axis=1), g.ints(-1))
        columns = g.op("Expand", g.op("Unsqueeze", inside, g.ints(2)), g.ints([1, 1, _CORNERS]))
        corners = self._in_image(g, g.op("GatherElements", found.boxes, columns, axis=1))
        corners = g.op("Where", g.op("Unsqueeze", real, g.ints(2)), corners, g.scalar(0, "FP32"))
        n = value.shape[0] if value.shape is not None else f"{named}_N"
        total = g.op("ReduceSum", g.op("Cast", real, to=7), g.ints(1), keepdims=0)
        return {
            "": Value(named, "INT64", (n, self.most)),
            "_boxes": Value(corners, "FP32", (n, self.most, _CORNERS)),
            "_scores": Value(scores, "FP32", (n, self.most)),
            "_count": Value(total, "INT64", (n,)),
        }

    def _candidates(self, g: Graph, value: Value) -> _Candidates:
        last = np.iinfo(np.int64).max
        if self.layout == "corners":
            other = g.outputs.get(self.scores)
            if other is None or other.datatype != "FP32":
                raise ModelError(
                    f"steps: nms: no float32 output {self.scores!r:.80} has the scores",
                    f"there are: {', '.join(g.outputs)[:400]}",
                )
            return _Candidates(value.name, g.op("Transpose", other.name, perm=[0, 2, 1]))
        rows = value.name
        if self.layout == "yolov8":
            rows = g.op("Transpose", value.name, perm=[0, 2, 1])
        head = _CORNERS + (self.layout == "yolov5")
        middle = g.op("Slice", rows, g.ints(0), g.ints(2), g.ints(2))
        half = g.op("Mul", g.op("Slice", rows, g.ints(2), g.ints(4), g.ints(2)), g.floats([0.5]))
        boxes = g.op("Concat", g.op("Sub", middle, half), g.op("Add", middle, half), axis=2)
        scores = g.op("Slice", rows, g.ints(head), g.ints(last), g.ints(2))
        if self.layout == "yolov5":
            sure = g.op("Slice", rows, g.ints(4), g.ints(5), g.ints(2))
            scores = g.op("Mul", scores, sure)
        return _Candidates(boxes, g.op("Transpose", scores, perm=[0, 2, 1]))

    def _kept(self, g: Graph, found: _Candidates, best: str, classes: str) -> str:
        """(N, A + most): the score of each box that is kept, 0 of the others and of padding."""
        shape = g.op("Shape", found.scores)
        count = g.op("Slice", shape, g.ints(1), g.ints(2))
        numbers = g.op("Range", g.scalar(0, "INT64"), g.op("Squeeze", count), g.scalar(1, "INT64"))
        column = g.op("Unsqueeze", numbers, g.ints([0, 2]))
        mine = g.op("Equal", g.op("Unsqueeze", classes, g.ints(1)), column)
        masked = g.op("Where", mine, best, g.scalar(0, "FP32"))
        chosen = g.op(
            "NonMaxSuppression", found.boxes, masked, g.ints(self.most),
            g.floats([self.iou]), g.floats([self.confidence]),
        )  # fmt: skip
        places = g.op("Gather", chosen, g.ints([0, 2]), axis=1)  # image and box
        flat = g.op("Squeeze", best, g.ints(1))
        scores = g.op("GatherND", flat, places)
        kept = g.op("ScatterND", g.zeros_like(flat), places, scores)
        return g.op("Pad", kept, g.ints([0, self.most]), "", g.ints(1))

    def _in_image(self, g: Graph, corners: str) -> str:
        if not self.image:
            return corners
        placement = g.placements.get(self.image)
        if placement is None:
            raise ModelError(
                f"steps: nms: no image {self.image!r:.80} is resized once, and not cropped after",
                f"there are: {', '.join(g.placements) or 'none'}; leave image out for the pixels "
                "that the model reads",
            )
        return _unplaced(g, corners, placement)


def _unplaced(g: Graph, corners: str, placement: Placement) -> str:
    """Corners in the pixels of the image before it was resized and padded."""

    def pair(x: str, y: str) -> str:
        return g.op("Cast", g.op("Concat", x, y, x, y, axis=0), to=1)

    old = pair(placement.width, placement.height)
    new = pair(placement.new_width, placement.new_height)
    moved = g.op("Sub", corners, pair(placement.left, placement.top))
    scaled = g.op("Div", g.op("Mul", moved, old), new)
    return g.op("Max", g.op("Min", scaled, old), g.scalar(0, "FP32"))
