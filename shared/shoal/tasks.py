"""Tasks of models with named tensors: what the numbers of their outputs mean.

The task is declared when a model is imported and signed with its release. Controller, device and
console read outputs by it (`shoal.task_outputs`); measures and gates follow from it.

An output's axes: `batch` of its signature counts the items; "per item" below are the others.
"""

from collections import Counter
from collections.abc import Sequence
from math import isfinite, prod
from typing import Annotated, Literal

import msgspec

from shoal.errors import ModelError
from shoal.signature import Signature, Tensor
from shoal.validation_errors import decode_errors_as, field_error

#: Most labels, or texts of an alphabet: they are in the manifest, which has a limit in bytes.
MOST_LABELS = 20_000
_FLOATS = ("FP16", "FP32", "FP64")
_INTEGERS = ("UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64")
_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
_Text = Annotated[str, msgspec.Meta(max_length=200)]
_Labels = Annotated[list[_Name], msgspec.Meta(min_length=2, max_length=MOST_LABELS)]
_Classes = Annotated[list[_Name], msgspec.Meta(min_length=1, max_length=MOST_LABELS)]
_Names = Annotated[list[_Name], msgspec.Meta(min_length=1, max_length=256)]
_Share = Annotated[float, msgspec.Meta(ge=0.0, le=1.0)]
_AxisNumber = Annotated[int, msgspec.Meta(ge=0, lt=32)]
_FREE = -1


class _Task(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="task"):
    @property
    def word(self) -> str:
        """Its name in commands, the API and the manifest: "classification", ..."""
        return str(self.__struct_config__.tag)

    def check(self, signature: Signature) -> None:
        """ModelError where an output is missing, or is of a datatype or shape that cannot be read
        so."""


class Classification(_Task, frozen=True, kw_only=True, tag="classification"):
    """One label of several for each item.

    output      per item len(labels) numbers, or one: the second label's, where there are two
    form        "probabilities"; "logits", of which a softmax (one number: a sigmoid) makes some;
                "index", an integer per item; "label", the label itself as text or whole number
    threshold   probability of the second label from which it is chosen, where there are two
    """

    output: _Name
    labels: _Labels
    form: Literal["probabilities", "logits", "index", "label"] = "probabilities"
    threshold: _Share = 0.5

    def check(self, signature: Signature) -> None:
        _check_distinct(self, self.labels)
        tensor = _output(self, signature, self.output)
        if self.form in ("index", "label"):
            strings = ("BYTES", "BOOL") if self.form == "label" else ()
            _check_datatype(self, tensor, (*_INTEGERS, *strings))
            _check_size(self, tensor, (1,), "one per item")
            return
        _check_datatype(self, tensor, _FLOATS)
        sizes = (len(self.labels), 1) if len(self.labels) == 2 else (len(self.labels),)
        _check_size(self, tensor, sizes, f"one for each of {len(self.labels)} labels")


class MultiLabel(_Task, frozen=True, kw_only=True, tag="multi-label"):
    """Any number of labels for each item.

    output       per item len(labels) numbers
    form         "probabilities"; "logits", of which a sigmoid makes some
    threshold    probability from which a label is given
    thresholds   the same for each label; empty: `threshold` for all
    """

    output: _Name
    labels: _Classes
    form: Literal["probabilities", "logits"] = "probabilities"
    threshold: _Share = 0.5
    thresholds: Annotated[list[_Share], msgspec.Meta(max_length=MOST_LABELS)] = []

    def check(self, signature: Signature) -> None:
        _check_distinct(self, self.labels)
        if len(self.thresholds) not in (0, len(self.labels)):
            raise _wrong(self, f"{len(self.thresholds)} thresholds for {len(self.labels)} labels")
        tensor = _output(self, signature, self.output)
        _check_datatype(self, tensor, _FLOATS)
        _check_size(self, tensor, (len(self.labels),), f"one for each of {len(self.labels)} labels")


class Regression(_Task, frozen=True, kw_only=True, tag="regression"):
    """One quantity or several for each item.

    outputs   their numbers per item, one output after the other, are the targets
    names     of the targets; units: of the targets, "" for none; empty for none at all
    """

    outputs: _Names
    names: _Names
    units: Annotated[list[_Text], msgspec.Meta(max_length=256)] = []

    def check(self, signature: Signature) -> None:
        _check_distinct(self, self.names)
        _check_distinct(self, self.outputs)
        if len(self.units) not in (0, len(self.names)):
            raise _wrong(self, f"{len(self.units)} units for {len(self.names)} targets")
        tensors = [_output(self, signature, name) for name in self.outputs]
        for tensor in tensors:
            _check_datatype(self, tensor, (*_FLOATS, *_INTEGERS))
        sizes = [item_size(tensor) for tensor in tensors]
        if _FREE not in sizes and sum(sizes) != len(self.names):
            raise _wrong(
                self, f"{', '.join(self.outputs)} has {sum(sizes)} numbers per item and "
                f"{len(self.names)} names ({', '.join(self.names)[:200]})", "name each of them",
            )  # fmt: skip


class AnomalyScore(_Task, frozen=True, kw_only=True, tag="anomaly"):
    """How unusual an item is.

    output      one number per item
    higher      what a higher number is: "odd", or "normal" (scikit-learn's decision_function)
    threshold   the number from which on an item is odd (up to which, where higher is normal)
    """

    output: _Name
    threshold: float
    higher: Literal["odd", "normal"] = "odd"

    def check(self, signature: Signature) -> None:
        if not isfinite(self.threshold):
            raise _wrong(self, f"threshold {self.threshold} is no number")
        tensor = _output(self, signature, self.output)
        _check_datatype(self, tensor, _FLOATS)
        _check_size(self, tensor, (1,), "one per item")


class Embedding(_Task, frozen=True, kw_only=True, tag="embedding"):
    """A vector for each item; items that are alike have vectors that are close.

    output    its numbers per item are the vector
    compare   closeness: "cosine", or "l2", the Euclidean distance
    """

    output: _Name
    compare: Literal["cosine", "l2"] = "cosine"

    def check(self, signature: Signature) -> None:
        _check_datatype(self, _output(self, signature, self.output), _FLOATS)


class Detection(_Task, frozen=True, kw_only=True, tag="detection"):
    """Boxes, each with a label and a score, for each item.

    boxes        output of the boxes, per item (K, 4), or one row a box that begins with its four
                 numbers
    scores       output with a score for each box, per item (K,) or (K, 1), or with one for each
                 label, (K, labels); "": they follow the four numbers, see `row`
    classes      output of label indices, per item (K,); "" where scores have a column per label
    row          what follows the four numbers where `scores` is "": "scores" of all labels
                 (YOLOv8), "objectness, scores" (YOLOv5, YOLOX; the score is their product), or
                 "score, class" (most exports with their own NMS)
    turned       (4 + labels, K) per item instead of (K, 4 + labels)
    layout       the four numbers: corners, or the centre (cxcywh) or upper left corner (xywh) and
                 width, height; "yxyx": corners, y first (TensorFlow)
    normalised   coordinates are shares of the image's width and height, not pixels of the input
    form         scores are "probabilities", or "logits" (sigmoid; softmax with a `background`)
    background   column of the scores that stands for no label; None where there is none
    confidence   boxes of a lower score are left out
    iou          of two boxes of a label that overlap by more (area in common / area of both), the
                 one of lower score is left out; None: the model has done so itself
    """

    boxes: _Name
    labels: _Classes
    scores: _Text = ""
    classes: _Text = ""
    row: Literal["scores", "objectness, scores", "score, class"] = "scores"
    turned: bool = False
    layout: Literal["xyxy", "xywh", "cxcywh", "yxyx"] = "xyxy"
    normalised: bool = False
    form: Literal["probabilities", "logits"] = "probabilities"
    background: Annotated[int, msgspec.Meta(ge=0, le=MOST_LABELS)] | None = None
    confidence: _Share = 0.25
    iou: _Share | None = 0.5

    @property
    def columns(self) -> int:
        """Columns of scores by label, with the background's."""
        return len(self.labels) + (self.background is not None)

    def check(self, signature: Signature) -> None:
        _check_distinct(self, self.labels)
        if self.background is not None and self.background >= self.columns:
            raise _wrong(self, f"background is column {self.background} of {self.columns}")
        if self.classes and not self.scores:
            raise _wrong(self, "classes are named and scores are not", "name both outputs")
        boxes = _output(self, signature, self.boxes)
        _check_datatype(self, boxes, _FLOATS)
        after = {"scores": self.columns, "objectness, scores": 1 + self.columns, "score, class": 2}
        width = 4 if self.scores else 4 + after[self.row]
        _check_last(self, boxes, width, -2 if self.turned else -1)
        if not self.scores:
            return
        scores = _output(self, signature, self.scores)
        _check_datatype(self, scores, _FLOATS)
        if self.classes:
            labels = _output(self, signature, self.classes)
            _check_datatype(self, labels, (*_FLOATS, *_INTEGERS))
        else:
            _check_last(self, scores, self.columns, -2 if self.turned else -1)


class Segmentation(_Task, frozen=True, kw_only=True, tag="segmentation"):
    """A label for each place of an item, such as each pixel.

    output      per item a map of each label, or one map: of the second label's numbers where there
                are two, or of label indices ("index")
    axis        of one item's output, that counts the labels (0 of (labels, height, width)); None
                where there is one map without it
    form        "probabilities", "logits" (softmax over labels; one map: sigmoid) or "index"
    threshold   probability of the second label from which it is chosen, where there are two
    """

    output: _Name
    labels: _Labels
    axis: _AxisNumber | None = 0
    form: Literal["probabilities", "logits", "index"] = "probabilities"
    threshold: _Share = 0.5

    def check(self, signature: Signature) -> None:
        _check_distinct(self, self.labels)
        tensor = _output(self, signature, self.output)
        _check_datatype(self, tensor, _INTEGERS if self.form == "index" else _FLOATS)
        _check_axis(self, tensor, self.axis)
        one = self.form == "index" or len(self.labels) == 2
        if self.axis is None and not one:
            raise _wrong(
                self, f"{len(self.labels)} labels need an axis that counts them", "set axis"
            )
        if self.axis is not None:
            length = _item_dims(tensor)[self.axis]
            fits = {_FREE, *([1] if one else []),
                    *([len(self.labels)] if self.form != "index" else [])}  # fmt: skip
            if length not in fits:
                raise _wrong(
                    self,
                    f"axis {self.axis} of {tensor.name!r} {tensor.shape_text} has {length} maps, "
                    f"and there are {len(self.labels)} labels",
                )


class SequenceText(_Task, frozen=True, kw_only=True, tag="sequence"):
    """A text for each item, read step by step: speech, a line of print.

    output     scores of each text of the alphabet at each step, per item (steps, alphabet)
    alphabet   the text of each class, by index; that of `blank` is ignored
    axis       of one item's output, that counts the classes
    blank      class that stands for nothing
    repeats    "one": the same class at neighbouring steps is one text (CTC); "each": each step is
               one (token by token)
    """

    output: _Name
    alphabet: Annotated[list[_Text], msgspec.Meta(min_length=2, max_length=MOST_LABELS)]
    axis: _AxisNumber = 1
    blank: Annotated[int, msgspec.Meta(ge=0, lt=MOST_LABELS)] = 0
    repeats: Literal["one", "each"] = "one"

    def check(self, signature: Signature) -> None:
        tensor = _output(self, signature, self.output)
        _check_datatype(self, tensor, _FLOATS)
        _check_axis(self, tensor, self.axis)
        if self.blank >= len(self.alphabet):
            raise _wrong(self, f"blank is class {self.blank} of {len(self.alphabet)}")
        dims = _item_dims(tensor)
        if dims[self.axis] not in (_FREE, len(self.alphabet)):
            raise _wrong(
                self,
                f"axis {self.axis} of {tensor.name!r} {tensor.shape_text} per item has "
                f"{dims[self.axis]} classes, and the alphabet has {len(self.alphabet)} texts",
            )
        others = [d for at, d in enumerate(dims) if at != self.axis]
        if sum(d != 1 for d in others) > 1:
            raise _wrong(self, f"{tensor.name!r} {tensor.shape_text} has several axes of steps")


class Tensors(_Task, frozen=True, kw_only=True, tag="tensors"):
    """Nothing is claimed: tensors in, tensors out."""


Task = (
    Classification | MultiLabel | Regression | AnomalyScore | Embedding | Detection | Segmentation
    | SequenceText | Tensors
)  # fmt: skip
_KINDS: tuple[type[Task], ...] = (
    Classification, MultiLabel, Regression, AnomalyScore, Embedding, Detection, Segmentation,
    SequenceText, Tensors,
)  # fmt: skip
#: Tasks by their words.
KINDS: dict[str, type[Task]] = {str(kind.__struct_config__.tag): kind for kind in _KINDS}


def labels_of(task: Task) -> list[str]:
    """Its labels by index; empty for a task without."""
    if isinstance(task, Classification | MultiLabel | Detection | Segmentation):
        return task.labels
    return []


def outputs_of(task: Task) -> list[str]:
    """Names of the outputs that it reads.

    >>> outputs_of(Detection(boxes="b", scores="s", labels=["cup"]))
    ['b', 's']
    """
    single = [getattr(task, field, "") for field in ("output", "boxes", "scores", "classes")]
    return [name for name in (*single, *getattr(task, "outputs", [])) if name]


def parse(data: bytes | str) -> Task:
    """A task from JSON such as {"task": "embedding", "output": "vector"}.

    ModelError, naming the field, for anything else.
    """
    with decode_errors_as(lambda cause: ModelError(f"task: {cause}")):
        fields = msgspec.json.decode(data, type=dict[str, object])
    return of_fields(fields)


def of_fields(fields: dict[str, object]) -> Task:
    """A task from its fields, "task" among them; ModelError, naming the field, for others."""
    word = fields.get("task")
    kind = KINDS.get(word) if isinstance(word, str) else None
    if kind is None:
        raise ModelError(f"task {word!r:.100} is unknown", f"there are: {', '.join(KINDS)}")
    if unknown := sorted(set(fields) - {"task", *kind.__struct_encode_fields__}):
        known = ", ".join(kind.__struct_encode_fields__)
        raise ModelError(f"task {word} has no field {unknown[0]!r:.100}", f"there are: {known}")
    try:
        return msgspec.convert(fields, kind)
    except msgspec.ValidationError as error:
        found = field_error(error, kind)
        where = f"{word}: {found.where}" if found.where else str(word)
        raise ModelError(f"task {where}: {found.what}", found.hint) from error


def item_size(tensor: Tensor) -> int:
    """Numbers of an output per item; -1 where an axis is free.

    >>> item_size(Tensor(name="y", datatype="FP32", shape=["N", 1, 5], batch=0))
    5
    """
    dims = _item_dims(tensor)
    return _FREE if _FREE in dims else prod(dims)


def _item_dims(tensor: Tensor) -> list[int]:
    return [d for at, d in enumerate(tensor.dims) if at != tensor.batch]


def _wrong(task: _Task, what: str, hint: str = "") -> ModelError:
    return ModelError(f"task {task.word}: {what}", hint)


def _output(task: _Task, signature: Signature, name: str) -> Tensor:
    outputs = signature.by_name()[1]
    if name not in outputs:
        raise _wrong(
            task,
            f"the model has no output {name!r}",
            f"its outputs are: {', '.join(outputs)}"[:500],
        )
    return outputs[name]


def _check_distinct(task: _Task, names: Sequence[str]) -> None:
    if len(set(names)) != len(names):
        twice = Counter(names).most_common(1)[0][0]
        raise _wrong(task, f"{twice!r} is named twice", "each is named once")


def _check_datatype(task: _Task, tensor: Tensor, allowed: Sequence[str]) -> None:
    if tensor.datatype not in allowed:
        raise _wrong(
            task,
            f"output {tensor.name!r} is {tensor.datatype}, {' or '.join(allowed)} is needed",
            "name another output, or another `form` of it",
        )


def _check_size(task: _Task, tensor: Tensor, allowed: Sequence[int], what: str) -> None:
    if (size := item_size(tensor)) not in (_FREE, *allowed):
        raise _wrong(
            task,
            f"output {tensor.name!r} {tensor.shape_text} has {size} numbers per item, "
            f"{what} is needed",
        )


def _check_last(task: _Task, tensor: Tensor, width: int, axis: int) -> None:
    """Unless the per-item axes, from the last one on, have `width` at `axis`."""
    dims = _item_dims(tensor)
    if len(dims) < -axis or dims[axis] not in (_FREE, width):
        raise _wrong(
            task, f"output {tensor.name!r} {tensor.shape_text}: axis {axis} has to be {width} long",
            "labels, layout, row and turned have to fit it",
        )  # fmt: skip


def _check_axis(task: _Task, tensor: Tensor, axis: int | None) -> None:
    if axis is not None and axis >= len(_item_dims(tensor)):
        raise _wrong(
            task,
            f"output {tensor.name!r} {tensor.shape_text} has no axis {axis} per item",
            "axes of an item are counted from 0, without the one that counts items",
        )
