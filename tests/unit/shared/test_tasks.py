"""What a task may say of a model's outputs, and which outputs fit it."""

import json

import msgspec
import pytest

from shoal import tasks
from shoal.errors import ModelError
from shoal.signature import Signature, Tensor
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
    Tensors,
)

SIGNATURE = Signature(
    inputs=[],
    outputs=[
        Tensor(name="p", datatype="FP32", shape=["N", 3], batch=0),
        Tensor(name="one", datatype="FP64", shape=["N", 1], batch=0),
        Tensor(name="id", datatype="INT64", shape=["N"], batch=0),
        Tensor(name="text", datatype="BYTES", shape=["N"], batch=0),
        Tensor(name="boxes", datatype="FP32", shape=["N", "K", 4], batch=0),
        Tensor(name="scores", datatype="FP32", shape=["N", "K", 3], batch=0),
        Tensor(name="yolo8", datatype="FP32", shape=["N", 7, 8400], batch=0),
        Tensor(name="map", datatype="FP32", shape=["N", 3, "H", "W"], batch=0),
        Tensor(name="heat", datatype="FP32", shape=["N", 1, "H", "W"], batch=0),
        Tensor(name="steps", datatype="FP32", shape=["T", "N", 3], batch=1),
    ],
    together="batch",
)
ABC = ["a", "b", "c"]
GOOD: dict[str, Task] = {
    "probabilities": Classification(output="p", labels=ABC),
    "one number of two labels": Classification(output="one", labels=["no", "yes"], form="logits"),
    "indices": Classification(output="id", labels=ABC, form="index"),
    "labels as text": Classification(output="text", labels=ABC, form="label"),
    "several labels": MultiLabel(output="p", labels=ABC, thresholds=[0.1, 0.5, 0.9]),
    "targets of two outputs": Regression(outputs=["one", "id"], names=["x", "y"], units=["m", ""]),
    "anomaly": AnomalyScore(output="one", threshold=0.0, higher="normal"),
    "embedding": Embedding(output="p", compare="l2"),
    "boxes and scores": Detection(boxes="boxes", scores="scores", labels=ABC, layout="cxcywh"),
    "boxes of YOLOv8": Detection(boxes="yolo8", turned=True, labels=ABC),
    "maps": Segmentation(output="map", labels=ABC),
    "one map": Segmentation(output="heat", labels=["background", "text"], threshold=0.3),
    "texts": SequenceText(output="steps", alphabet=["", "x", "y"], axis=1),
    "nothing claimed": Tensors(),
}
BAD: dict[str, tuple[Task, str]] = {
    "no such output": (Embedding(output="q"), "no output 'q'; its outputs are: p, one"),
    "labels that are too few": (Classification(output="p", labels=["a", "b"]), "3 numbers per"),
    "labels named twice": (Classification(output="p", labels=["a", "b", "a"]), "'a' is named"),
    "probabilities of integers": (Classification(output="id", labels=ABC), "is INT64"),
    "an index that is a float": (Classification(output="one", labels=ABC, form="index"), "FP64"),
    "thresholds of others": (MultiLabel(output="p", labels=ABC, thresholds=[0.1]), "1 thresholds"),
    "a target without a name": (Regression(outputs=["p"], names=["x"]), "name each of them"),
    "a unit too many": (Regression(outputs=["one"], names=["x"], units=["m", "s"]), "2 units"),
    "three scores": (AnomalyScore(output="p", threshold=0.0), "one per item is needed"),
    "a threshold that is none": (AnomalyScore(output="one", threshold=float("nan")), "no number"),
    "texts as a vector": (Embedding(output="text"), "BYTES"),
    "boxes of three numbers": (Detection(boxes="scores", scores="p", labels=ABC), "4 long"),
    "rows too narrow": (Detection(boxes="boxes", labels=ABC), "7 long"),
    "a background beyond": (
        Detection(boxes="boxes", scores="scores", labels=["a", "b"], background=3), "column 3 of 3"
    ),
    "classes without scores": (
        Detection(boxes="boxes", classes="id", labels=ABC), "name both outputs"
    ),
    "maps without an axis": (Segmentation(output="map", labels=ABC, axis=None), "set axis"),
    "an axis that is not there": (Segmentation(output="map", labels=ABC, axis=3), "no axis 3"),
    "an alphabet that is too short": (SequenceText(output="steps", alphabet=["", "x"]), "2 texts"),
    "a blank beyond": (SequenceText(output="steps", alphabet=["", "x", "y"], blank=3), "class 3"),
}  # fmt: skip


@pytest.mark.parametrize("task", GOOD.values(), ids=GOOD)
def test_a_task_fits_its_outputs_and_survives_its_json(task: Task) -> None:
    task.check(SIGNATURE)
    assert tasks.parse(msgspec.json.encode(task)) == task


@pytest.mark.parametrize(("task", "why"), BAD.values(), ids=BAD)
def test_a_task_that_does_not_fit_the_outputs_is_refused_by_name(task: Task, why: str) -> None:
    with pytest.raises(ModelError, match=f"task {task.word}.*{why}"):
        task.check(SIGNATURE)


def test_every_task_has_a_word_and_an_example_here() -> None:
    assert set(tasks.KINDS) == {task.word for task in GOOD.values()}
    assert {task.word for task, _ in BAD.values()} | {"tensors"} == set(tasks.KINDS)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "truncated"),
        ("[]", "array"),
        ('{"output": "p"}', "task None is unknown; there are: classification"),
        ('{"task": "pose"}', "'pose' is unknown"),
        (
            '{"task": "embedding", "output": "p", "comparison": "l2"}',
            "no field 'comparison'; there",
        ),
        ('{"task": "embedding"}', "no 'output', which is needed"),
        ('{"task": "embedding", "output": "p", "compare": "l1"}', "there are: cosine, l2"),
        ('{"task": "classification", "output": "p", "labels": ["a"]}', "labels"),
        ('{"task": "classification", "output": "p", "labels": ["a", "b"], "threshold": 7}', "<= 1"),
        ('{"task": "anomaly", "output": "p", "threshold": NaN}', "malformed"),
        ("[" * 5_000, "task"),
    ],
)
def test_settings_that_are_no_task_are_refused_with_what_there_is(text: str, why: str) -> None:
    with pytest.raises(ModelError, match=why):
        tasks.parse(text)


def test_more_labels_than_a_manifest_carries_are_refused() -> None:
    labels = [f"l{n}" for n in range(tasks.MOST_LABELS + 1)]
    with pytest.raises(ModelError, match="length <= 20000"):
        tasks.parse(json.dumps({"task": "classification", "output": "p", "labels": labels}))
