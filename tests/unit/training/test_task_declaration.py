"""A task is what a person says, completed by what the outputs allow only; the rest is asked for."""

from typing import Any

import numpy as np
import pytest

from shoal import tasks
from shoal.controller.training import task_declaration
from shoal.errors import ModelError
from shoal.signature import Signature, State, Tensor
from shoal.tasks import AnomalyScore, Classification, Embedding, Regression, Task
from shoal.tensors import Array

RNG = np.random.default_rng(7)


def probabilities(*shape: int) -> Array:
    values = RNG.random(shape)
    return (values / values.sum(-1, keepdims=True)).astype(np.float32)


#: Outputs of one item, by a name that says what they are.
OUTPUTS: dict[str, Array] = {
    "probabilities": probabilities(1, 5),
    "two": probabilities(1, 2),
    "one": np.float32([[0.4]]),
    "logits": np.float32([[3.0, -2.0, 0.5]]),
    "shares": np.float32([[0.9, 0.8, 0.1]]),
    "index": np.array([4]),
    "text": np.array(["ok"], object),
    "value": np.float32([[31.5]]),
    "map": RNG.random((1, 3, 32, 32)).astype(np.float32),
    "boxes": (RNG.random((1, 50, 4)) * 100).astype(np.float32),
    "steps": probabilities(1, 40, 90),
}


def seen(*names: str, states: tuple[str, ...] = ()) -> list[task_declaration.Seen]:
    outputs = [
        Tensor(name=name, datatype="FP32", shape=["N", *OUTPUTS[name].shape[1:]], batch=0)
        if OUTPUTS[name].dtype == np.float32
        else Tensor(
            name=name, datatype="BYTES" if name == "text" else "INT64", shape=["N"], batch=0
        )
        for name in names
    ]
    signature = Signature(
        inputs=[], outputs=outputs, states=[State(taken="h", given=s, shape=[1]) for s in states]
    )
    return task_declaration.look_at(signature, [{name: OUTPUTS[name] for name in names}])


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("probabilities", ("probabilities", "two")), ("shares", ("one", "shares")),
        ("numbers", ("logits", "value")), ("index", ("index",)), ("text", ("text",)),
        ("map", ("map",)), ("boxes", ("boxes",)), ("steps", ("steps",)),
    ],
)  # fmt: skip
def test_outputs_are_told_apart_by_their_shapes_and_values(
    kind: str, names: tuple[str, ...]
) -> None:
    assert [one.kind for one in seen(*names)] == [kind] * len(names)


LETTERS = ["a", "b", "c", "d", "e"]


@pytest.mark.parametrize(
    ("word", "settings", "labels", "outputs", "task"),
    [
        ("classification", {}, LETTERS, ("index", "probabilities"),
         Classification(output="probabilities", labels=LETTERS)),
        ("classification", {}, LETTERS[:2], ("one",),
         Classification(output="one", labels=LETTERS[:2])),
        ("classification", {}, LETTERS[:3], ("logits", "probabilities"),
         Classification(output="logits", labels=LETTERS[:3], form="logits")),
        ("classification", {"form": "index"}, LETTERS, ("index",),
         Classification(output="index", labels=LETTERS, form="index")),
        ("classification", {}, ["ok", "nok"], ("text",),
         Classification(output="text", labels=["ok", "nok"], form="label")),
        ("regression", {}, [], ("logits",),
         Regression(outputs=["logits"], names=["logits 0", "logits 1", "logits 2"])),
        ("regression", {"units": ["mm"]}, [], ("value", "map"),
         Regression(outputs=["value"], names=["value"], units=["mm"])),
        ("anomaly", {"threshold": 0, "higher": "normal"}, [], ("index", "value"),
         AnomalyScore(output="value", threshold=0.0, higher="normal")),
        ("embedding", {}, [], ("logits", "steps"), Embedding(output="logits")),
    ],
)  # fmt: skip
def test_what_the_outputs_leave_no_choice_about_need_not_be_said(
    word: str, settings: dict[str, Any], labels: list[str], outputs: tuple[str, ...], task: Task
) -> None:
    assert task_declaration.complete(word, settings, labels, seen(*outputs)).task == task


def test_what_was_taken_from_the_outputs_is_said() -> None:
    found = task_declaration.complete("classification", {}, LETTERS[:3], seen("logits", "index"))
    notes = " ".join(found.notes)
    assert "output logits, the only that fits" in notes
    assert "read as logits: it has values below 0 or above 1" in notes


@pytest.mark.parametrize(
    ("word", "labels", "outputs", "why"),
    [
        ("classification", [], ("probabilities",), "5 labels of output probabilities are not said"),
        ("classification", LETTERS[:2], ("probabilities",), "with 2 labels fits none"),
        ("classification", LETTERS, ("index",), '"form": "index"}} or {{"form": "label"'),
        ("classification", LETTERS[:3], ("shares",), "do not add up to 1"),
        (
            "embedding",
            [],
            ("logits", "probabilities"),
            'which: --task-settings.*"output": "logits"',
        ),
        ("regression", [], ("value", "logits"), r'"outputs": \["value"\]'),
        ("anomaly", [], ("value",), "threshold is not said"),
        ("anomaly", [], ("map",), "map looks like maps"),
        ("detection", [], ("boxes",), "labels are not said"),
        ("detection", LETTERS, ("boxes",), "no 'boxes', which is needed"),
        ("sequence", [], ("steps",), "its alphabet is not said"),
        ("segmentation", LETTERS, ("value",), "fits none of the outputs"),
    ],
)
def test_what_may_be_read_in_several_ways_is_asked_for(
    word: str, labels: list[str], outputs: tuple[str, ...], why: str
) -> None:
    with pytest.raises(ModelError, match=why.replace("{{", "{").replace("}}", "}")):
        task_declaration.complete(word, {}, labels, seen(*outputs))


def test_a_state_of_a_recurrent_model_is_no_answer() -> None:
    found = task_declaration.complete(
        "classification", {}, ["silence", "speech"], seen("one", "logits", states=("logits",))
    )
    assert found.task == Classification(output="one", labels=["silence", "speech"])


@pytest.mark.parametrize(
    ("word", "settings", "labels", "why"),
    [
        ("embedding", {"threshold": 1}, [], "no field 'threshold'; there are: output, compare"),
        ("embedding", {"task": "anomaly"}, [], "settings are of task 'anomaly'"),
        ("embedding", {}, ["a"], "embedding has no labels"),
    ],
)
def test_settings_of_another_task_are_refused_before_anything_is_run(
    word: str, settings: dict[str, Any], labels: list[str], why: str
) -> None:
    with pytest.raises(ModelError, match=why):
        task_declaration.check_words(word, settings, labels)


def test_proposals_say_how_each_output_is_claimed() -> None:
    names = ("probabilities", "shares", "map", "boxes", "steps", "value")
    found = task_declaration.proposals(seen(*names))
    assert len(found) == 5
    assert all(f"--task {one}" in text for one, text in zip(
        ("classification", "multi-label", "segmentation", "detection", "sequence"), found,
        strict=True,
    ))  # fmt: skip
    assert all(one in tasks.KINDS for one in task_declaration._FITTING)
