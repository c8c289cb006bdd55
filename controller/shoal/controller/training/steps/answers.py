"""Steps behind a model that answers scores: probabilities, choices and names of classes."""

from typing import Annotated

import msgspec
import numpy as np

from shoal.controller.training.steps.graph import Graph, Value
from shoal.controller.training.steps.step import OutputStep
from shoal.errors import ModelError

Axis = Annotated[int, msgspec.Meta(ge=-8, le=7)]
Finite = Annotated[float, msgspec.Meta(ge=-1e30, le=1e30)]
_FLOATS = ("FP16", "FP32", "FP64")
#: Most class names; longest one.
MOST_LABELS, MOST_LABEL = 1_000_000, 1_000
Label = Annotated[str, msgspec.Meta(max_length=MOST_LABEL)]
Answer = dict[str, Value]


class Softmax(OutputStep, frozen=True, kw_only=True, tag="softmax"):
    """Probabilities of classes that exclude each other, of logits."""

    axis: Axis = -1

    def apply(self, g: Graph, answer: Answer) -> Answer:
        """Softmax of the main value."""
        value = _floats(self, answer)
        return {"": value._replace(name=g.op("Softmax", value.name, axis=self.axis))}


class Sigmoid(OutputStep, frozen=True, kw_only=True, tag="sigmoid"):
    """Probability of each class by itself, of logits."""

    def apply(self, g: Graph, answer: Answer) -> Answer:
        """Sigmoid of every element."""
        value = _floats(self, answer)
        return {"": value._replace(name=g.op("Sigmoid", value.name))}


class Temperature(OutputStep, frozen=True, kw_only=True, tag="temperature"):
    """Logits divided by a temperature, before softmax or sigmoid: calibration by one number.
    Source: Guo et al., On Calibration of Modern Neural Networks, 2017."""

    divide: Annotated[float, msgspec.Meta(gt=0, le=1e6)]

    def apply(self, g: Graph, answer: Answer) -> Answer:
        """Divide every element."""
        value = _floats(self, answer)
        by = g.scalar(self.divide, value.datatype)
        return {"": value._replace(name=g.op("Div", value.name, by))}


class Isotonic(OutputStep, frozen=True, kw_only=True, tag="isotonic"):
    """Each score through straight lines between the points (x, y), and through the first and last y
    beyond them: calibration as scikit-learn's IsotonicRegression(out_of_bounds="clip") has in
    X_thresholds_ and y_thresholds_."""

    x: Annotated[list[Finite], msgspec.Meta(min_length=2, max_length=10_000)]
    y: Annotated[list[Finite], msgspec.Meta(min_length=2, max_length=10_000)]

    def __post_init__(self) -> None:
        if len(self.x) != len(self.y):
            raise ValueError(f"x has {len(self.x)} points, y {len(self.y)}")
        steps = zip(self.x, self.x[1:], self.y, self.y[1:], strict=False)
        if any(a >= b or c > d for a, b, c, d in steps):
            raise ValueError("x increases from point to point, and y does not decrease")

    def apply(self, g: Graph, answer: Answer) -> Answer:
        """The first y, and of each piece its slope times how far the score is into it; float64."""
        value = _floats(self, answer)
        x, y = np.array(self.x), np.array(self.y)
        widths = np.diff(x)
        wide = g.op("Unsqueeze", g.cast(value, "FP64").name, g.ints(-1))
        into = g.op("Sub", wide, g.constant(x[:-1]))
        inside = g.op("Max", g.op("Min", into, g.constant(widths)), g.scalar(0, "FP64"))
        # A score that is NaN stays so: Max and Min keep it.
        rises = g.op("Mul", inside, g.constant(np.diff(y) / widths))
        total = g.op("ReduceSum", rises, g.ints(-1), keepdims=0)
        found = Value(g.op("Add", total, g.scalar(self.y[0], "FP64")), "FP64", value.shape)
        return {"": g.cast(found, value.datatype)}


class Argmax(OutputStep, frozen=True, kw_only=True, tag="argmax"):
    """Number of the largest score along an axis, the first of equal ones: int64."""

    axis: Axis = -1

    def apply(self, g: Graph, answer: Answer) -> Answer:
        """ArgMax, without the axis."""
        value = _floats(self, answer)
        shape = None
        if value.shape is not None:
            axis = self.axis % len(value.shape) if value.shape else 0
            shape = tuple(n for at, n in enumerate(value.shape) if at != axis)
        name = g.op("ArgMax", value.name, axis=self.axis, keepdims=0)
        return {"": Value(name, "INT64", shape)}


class TopK(OutputStep, frozen=True, kw_only=True, tag="top-k"):
    """The k largest scores along the last axis, largest first: their numbers (int64), and as
    another output with "_scores" behind its name, the scores."""

    k: Annotated[int, msgspec.Meta(ge=1, le=10_000)]

    def apply(self, g: Graph, answer: Answer) -> Answer:
        """TopK along the last axis."""
        value = _floats(self, answer)
        shape = None if value.shape is None else (*value.shape[:-1], self.k)
        last = value.shape[-1] if value.shape else None
        if isinstance(last, int) and last < self.k:
            raise ModelError(f"steps: top-k of {self.k}, the output has {last} scores")
        scores, numbers = g.ops("TopK", value.name, g.ints(self.k), outputs=2)
        return {"": Value(numbers, "INT64", shape), "_scores": Value(scores, value.datatype, shape)}


class Column(OutputStep, frozen=True, kw_only=True, tag="column"):
    """One score along the last axis, such as the probability of "defect"."""

    index: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)]

    def apply(self, g: Graph, answer: Answer) -> Answer:
        """Gather along the last axis, without it."""
        value = _floats(self, answer)
        last = value.shape[-1] if value.shape else None
        if isinstance(last, int) and last <= self.index:
            raise ModelError(f"steps: column {self.index}, the output has 0 to {last - 1}")
        name = g.op("Gather", value.name, g.scalar(self.index, "INT64"), axis=-1)
        return {"": value._replace(name=name, shape=value.shape and value.shape[:-1])}


class Threshold(OutputStep, frozen=True, kw_only=True, tag="threshold"):
    """Whether each score is at least `at`: bool; NaN is not."""

    at: Finite

    def apply(self, g: Graph, answer: Answer) -> Answer:
        """Compare every element."""
        value = _floats(self, answer)
        at = g.scalar(self.at, value.datatype)
        return {"": Value(g.op("GreaterOrEqual", value.name, at), "BOOL", value.shape)}


class Labels(OutputStep, frozen=True, kw_only=True, tag="labels"):
    """Names in place of numbers, behind argmax, top-k, nms or threshold (two names: below, above).
    Numbers without a name give `unknown`."""

    labels: Annotated[list[Label], msgspec.Meta(min_length=1, max_length=MOST_LABELS)]
    unknown: Label = "?"

    def apply(self, g: Graph, answer: Answer) -> Answer:
        """LabelEncoder of ai.onnx.ml."""
        value = answer[""]
        if value.datatype not in ("INT64", "INT32", "BOOL"):
            raise self.refused(value, "put argmax, top-k or threshold before it")
        if value.datatype == "BOOL" and len(self.labels) != 2:
            raise ModelError("steps: labels behind threshold are two: below, above")
        name = g.ml(
            "LabelEncoder",
            g.cast(value, "INT64").name,
            keys_int64s=list(range(len(self.labels))),
            values_strings=self.labels,
            default_string=self.unknown,
        )
        return answer | {"": Value(name, "BYTES", value.shape)}


def _floats(step: OutputStep, answer: Answer) -> Value:
    value = answer[""]
    if value.datatype not in _FLOATS:
        raise step.refused(value, f"{step.tag()} is for scores: put it first")
    return value
