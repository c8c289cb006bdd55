"""What an importer takes a model's inputs for, what it says of that, and what a person may say."""

import numpy as np
import pytest

from shoal.controller.training import tensor_kinds
from shoal.controller.training.tensor_references import sketching_of
from shoal.errors import InputError, ModelError
from shoal.signature import Signature, Sketched, State, Tensor
from shoal.tasks import AnomalyScore, Classification, Embedding, Task
from shoal.tensor_sketches import MOST_COLUMNS, item_statistics
from shoal.tensors import Array

RNG = np.random.default_rng(3)
Y = Tensor(name="y", datatype="FP32", shape=["N", 1], batch=0)
SINE = np.sin(np.arange(256) / 9)


def pixels(*shape: int) -> Array:
    return RNG.integers(0, 256, (1, *shape)).astype(np.uint8)


#: Input, one of its items, and what it is taken for with the layout.
INFERRED: dict[str, tuple[Tensor, Array, str]] = {
    "channels last": (
        Tensor(name="x", datatype="UINT8", shape=["N", 32, 32, 3], batch=0),
        pixels(32, 32, 3), "image NHWC",
    ),
    "channels first, any size": (
        Tensor(name="x", datatype="FP32", shape=["N", 3, "H", "W"], batch=0),
        pixels(3, 40, 64).astype(np.float32), "image NCHW",
    ),
    "one image a request": (
        Tensor(name="x", datatype="UINT8", shape=[1, 3, 32, 32]), pixels(3, 32, 32), "image NCHW",
    ),
    "a plain matrix": (
        Tensor(name="x", datatype="FP32", shape=["N", 32, 32], batch=0),
        RNG.random((1, 32, 32)).astype(np.float32), "numbers",
    ),
    "sound": (
        Tensor(name="x", datatype="FP32", shape=["N", "T"], batch=0),
        SINE[None].astype(np.float32), "audio",
    ),
    "sound of integers": (
        Tensor(name="x", datatype="INT16", shape=["N", 256], batch=0),
        (SINE[None] * 9_000).astype(np.int16), "audio",
    ),
    "an embedding": (
        Tensor(name="x", datatype="FP32", shape=["N", 256], batch=0),
        RNG.normal(size=(1, 256)).astype(np.float32), "numbers",
    ),
    "token ids": (
        Tensor(name="x", datatype="INT64", shape=["N", "T"], batch=0),
        RNG.integers(0, 999, (1, 64)), "tokens",
    ),
    "a few integers": (
        Tensor(name="x", datatype="INT64", shape=["N", 3], batch=0),
        RNG.integers(0, 9, (1, 3)), "numbers",
    ),
    "a text": (
        Tensor(name="x", datatype="BYTES", shape=["N", 1], batch=0),
        np.array([["a pump"]], object), "text",
    ),
    "missing values": (
        Tensor(name="x", datatype="FP32", shape=["N", 16], batch=0),
        np.full((1, 16), np.nan, np.float32), "numbers",
    ),
}  # fmt: skip


def sketched(tensor: Tensor, item: Array, said: str = "") -> tuple[Sketched | None, str]:
    """What a sample of twenty such items is taken for, and the notes."""
    signature = Signature(inputs=[tensor], outputs=[Y])
    answers = [{"y": np.float32([[0.5]])}] * 20
    kinds = tensor_kinds.parse_kinds(f"x={said}" if said else "")
    found = sketching_of(signature, [{"x": item}] * 20, answers, kinds)
    return found.signature.inputs[0].sketched, " ".join(found.notes)


@pytest.mark.parametrize("what", INFERRED)
def test_what_an_input_is_taken_for_is_said_with_the_option_that_says_otherwise(what: str) -> None:
    tensor, item, expected = INFERRED[what]
    found, notes = sketched(tensor, item)
    assert found is not None
    assert f"{found.kind} {found.layout}".strip() == expected
    assert "input x" in notes
    if expected not in ("numbers", "text"):
        assert "--input-kind x=numbers" in notes


def test_a_person_says_what_an_input_is_and_nothing_is_looked_at_where_he_says_so() -> None:
    tensor, item, _ = INFERRED["a plain matrix"]
    assert sketched(tensor, item, "image")[0] == Sketched(kind="image", layout="NHW")
    assert sketched(tensor, item, "numbers")[0] == Sketched(kind="numbers")
    assert sketched(tensor, item, "nothing")[0] is None


IMPOSSIBLE = {
    "a vector as an image": ("an embedding", "image", "a height and a width"),
    "numbers as tokens": ("an embedding", "tokens", "tokens are integers"),
    "numbers as text": ("an embedding", "text", "texts are BYTES"),
    "text as audio": ("a text", "audio", "of BYTES it can be: text, nothing"),
    "a layout of other axes": ("channels last", "image:NHW", "says which axis is which"),
}


@pytest.mark.parametrize("what", IMPOSSIBLE)
def test_what_an_input_cannot_be_is_refused_with_what_it_can_be(what: str) -> None:
    of, said, hint = IMPOSSIBLE[what]
    with pytest.raises(ModelError) as refused:
        sketched(*INFERRED[of][:2], said)
    assert "input 'x'" in refused.value.message
    assert hint in refused.value.hint


@pytest.mark.parametrize("text", ["x", "x=picture", "=", "x=audio:NCHW", "x=image:ABC", "x=="])
def test_a_kind_that_there_is_not_is_refused_before_anything_runs(text: str) -> None:
    with pytest.raises(InputError):
        tensor_kinds.parse_kinds(text)


def test_an_input_that_the_model_does_not_have_is_refused_with_those_it_has() -> None:
    with pytest.raises(InputError, match="'image'") as refused:
        tensor_kinds.check_names({"image": "image"}, ["x", "sr"])
    assert "x, sr" in refused.value.hint


def test_without_twenty_items_nothing_is_sketched_and_the_release_says_why() -> None:
    tensor, item, _ = INFERRED["channels last"]
    signature = Signature(inputs=[tensor], outputs=[Y])
    few = sketching_of(signature, [{"x": item}] * 19, [{"y": np.float32([[1]])}] * 19, {})
    assert few.references.features == 0
    assert few.signature == signature
    assert "20 items at least; the sample of 19 items" in few.notes[0]


def test_states_and_inputs_that_may_be_left_out_are_not_looked_at() -> None:
    signature = Signature(
        inputs=[
            Tensor(name="x", datatype="FP32", shape=["N", 16], batch=0),
            Tensor(name="h", datatype="FP32", shape=["N", 4], batch=0),
            Tensor(name="sr", datatype="INT64", shape=[], default=[16_000]),
        ],
        outputs=[Y, Tensor(name="hn", datatype="FP32", shape=["N", 4], batch=0)],
        states=[State(taken="h", given="hn", shape=[1, 4])],
    )
    h = np.zeros((1, 4), np.float32)
    items = [
        {"x": RNG.random((1, 16)).astype(np.float32), "h": h, "sr": np.array(16_000)}
        for _ in range(30)
    ]
    found = sketching_of(signature, items, [{"y": np.float32([[1]]), "hn": h}] * 30, {})
    names = [
        f.name for f in (*found.references.inputs.features, *found.references.outputs.features)
    ]
    assert {name.split(".")[0] for name in names} == {"x", "y"}


def test_a_model_of_many_tensors_shares_the_columns_among_them() -> None:
    inputs = [Tensor(name=f"x{i}", datatype="FP32", shape=["N", 64], batch=0) for i in range(6)]
    outputs = [Tensor(name=f"y{i}", datatype="FP32", shape=["N", 64], batch=0) for i in range(6)]
    many = [
        {t.name: RNG.random((1, 64)).astype(np.float32) for t in (*inputs, *outputs)}
        for _ in range(20)
    ]
    found = sketching_of(Signature(inputs=inputs, outputs=outputs), many, many, {})
    names = [f.name for f in found.references.inputs.features]
    assert found.references.features == MOST_COLUMNS
    assert {name.split(".")[0] for name in names} == {t.name for t in inputs}


HOSTILE: dict[str, Array] = {
    "nan": np.full((1, 3, 20, 30), np.nan, np.float32),
    "infinite": np.full((1, 3, 20, 30), np.inf, np.float32),
    "huge": np.full((1, 3, 20, 30), 3e38, np.float32),
    "constant": np.zeros((1, 3, 20, 30), np.float32),
    "without pixels": np.zeros((1, 3, 0, 30), np.float32),
    "one pixel": np.zeros((1, 3, 1, 1), np.float32),
    "a line": np.zeros((1, 3, 8, 4_000), np.float32),
}


@pytest.mark.parametrize("kind", ["image", "audio", "numbers"])
@pytest.mark.parametrize("what", HOSTILE)
def test_any_item_has_statistics_or_counts_as_missing(kind: str, what: str) -> None:
    tensor = Tensor(name="x", datatype="FP32", shape=["N", 3, "H", "W"], batch=0)
    signature = Signature(inputs=[tensor], outputs=[Y])
    usual = [{"x": RNG.random((1, 3, 32, 32)).astype(np.float32)} for _ in range(20)]
    answer = {"y": np.float32([[1]])}
    found = sketching_of(signature, usual, [answer] * 20, {"x": kind})
    looked = item_statistics(found.signature, found.references)
    assert looked is not None
    rows = looked.of({"x": HOSTILE[what]}, answer, 0)
    assert rows is not None
    assert rows[0].shape == (len(found.references.inputs.features),)
    if what == "nan":
        assert not np.isfinite(rows[0]).all() or "x.missing" in str(found.references)


def test_references_that_name_unknown_statistics_are_not_sketched() -> None:
    tensor, item, _ = INFERRED["an embedding"]
    signature = Signature(inputs=[tensor], outputs=[Y])
    found = sketching_of(signature, [{"x": item}] * 20, [{"y": np.float32([[1]])}] * 20, {})
    newer = found.signature.inputs[0]
    assert item_statistics(found.signature, found.references) is not None
    other = Signature(inputs=[Tensor(name="z", datatype="FP32", shape=newer.shape)], outputs=[Y])
    assert item_statistics(other, found.references) is None


#: A task, an output of one item, and the columns in place of the output's statistics.
TASKS: dict[str, tuple[Task, Tensor, Array, list[str]]] = {
    "classification": (
        Classification(output="y", labels=["good", "bad", "odd"]),
        Tensor(name="y", datatype="FP32", shape=["N", 3], batch=0),
        np.float32([[0.2, 0.7, 0.1]]), ["prediction", "score"],
    ),
    "anomaly": (
        AnomalyScore(output="y", threshold=0.5),
        Tensor(name="y", datatype="FP32", shape=["N", 1], batch=0),
        np.float32([[0.9]]), ["score"],
    ),
    "embedding": (
        Embedding(output="y"),
        Tensor(name="y", datatype="FP32", shape=["N", 64], batch=0),
        np.ones((1, 64), np.float32), ["norm"],
    ),
    "one item a request": (
        Classification(output="y", labels=["good", "bad"]),
        Tensor(name="y", datatype="FP32", shape=[2]),
        np.float32([0.2, 0.8]), ["prediction", "score"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", TASKS)
def test_outputs_with_a_task_are_sketched_as_what_they_mean(what: str) -> None:
    task, y, answer, columns = TASKS[what]
    tensor, item, _ = INFERRED["channels last"]
    signature = Signature(inputs=[tensor], outputs=[y])
    found = sketching_of(signature, [{"x": item}] * 20, [{"y": answer}] * 20, {}, task)
    assert [f.name for f in found.references.outputs.features] == columns
    looked = item_statistics(found.signature, found.references, task)
    assert looked is not None
    rows = looked.of({"x": item}, {"y": answer}, 0)
    assert rows is not None
    assert np.isfinite(rows[1]).all()
    assert looked.of({"x": item}, {}, 0) is None


def test_the_answer_for_one_item_of_several_is_its_own() -> None:
    task, y, answer, _ = TASKS["classification"]
    tensor, item, _ = INFERRED["channels last"]
    signature = Signature(inputs=[tensor], outputs=[y])
    found = sketching_of(signature, [{"x": item}] * 20, [{"y": answer}] * 20, {}, task)
    looked = item_statistics(found.signature, found.references, task)
    assert looked is not None
    batch = {"y": np.float32([[0.2, 0.7, 0.1], [0.8, 0.1, 0.1]])}
    rows = looked.of({"x": np.concatenate([item, item])}, batch, 1)
    assert rows is not None
    np.testing.assert_allclose(rows[1], [0, 0.8], rtol=1e-6)
