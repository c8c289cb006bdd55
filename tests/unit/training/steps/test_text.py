"""Texts as ids of a fixed vocabulary."""

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from shoal.errors import ModelError, SettingError
from training_steps import composed, outputs, prepared

INT64 = TensorProto.INT64
WORDS: dict[str, Any] = {
    "step": "vocabulary", "words": ["pump", "leaks", "øl"], "unknown": 1, "pad": 0, "first": 2,
}  # fmt: skip
IDS: list[dict[str, Any]] = [{"step": "text"}, {"step": "lower"}, {"step": "split"}, WORDS]


def texts(*all_: str) -> Any:
    return np.array(all_, object)


def test_words_are_looked_up_padded_and_cut() -> None:
    steps = [*IDS, {"step": "length", "to": 3, "pad": 0}]
    found = prepared(steps, texts(" The  PUMP leaks ", "", "øl pump leaks pump"), ["N", 3], INT64)
    assert found.tolist() == [[1, 2, 3], [0, 0, 0], [4, 2, 3]]


def test_a_delimiter_of_ones_own_splits() -> None:
    steps = [{"step": "text"}, {"step": "split", "delimiter": ";"}, WORDS,
             {"step": "length", "to": 2, "pad": 0}]  # fmt: skip
    assert prepared(steps, texts("leaks;the pump"), ["N", 2], INT64).tolist() == [[3, 1]]


def test_ids_and_their_mask_are_made_of_one_text() -> None:
    infos = [helper.make_tensor_value_info(name, INT64, ["N", 3]) for name in ("ids", "mask")]
    answers = [helper.make_tensor_value_info(name, INT64, ["N", 3]) for name in ("a", "b")]
    nodes = [helper.make_node("Identity", [x], [y]) for x, y in (("ids", "a"), ("mask", "b"))]
    graph = helper.make_graph(nodes, "g", infos, answers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    steps = [*IDS, {"step": "length", "to": 3, "pad": 0}]
    declared = {
        "input": [
            {"name": "ids", "steps": steps},
            {"name": "mask", "steps": [*steps, {"step": "mask", "pad": 0}]},
        ]
    }
    found = outputs(composed(model, declared), {"text": texts("pump leaks")})
    assert (found["a"].tolist(), found["b"].tolist()) == ([[2, 3, 0]], [[1, 1, 0]])


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        ([{"step": "wordpiece"}], "send ids from the tokeniser"),
        ([{"step": "text"}, {**WORDS, "words": ["a", "a"]}], "the word 'a' is there twice"),
    ],
)
def test_what_onnx_cannot_say_or_makes_no_sense_is_refused(
    steps: list[dict[str, Any]], words: str
) -> None:
    with pytest.raises(SettingError) as refused:
        prepared(steps, texts("x"), ["N", 1], INT64)
    assert words in str(refused.value)


def test_ids_of_any_length_do_not_fit_a_model_of_three() -> None:
    with pytest.raises(ModelError, match="behind text and split"):
        prepared([{"step": "image"}, WORDS], texts("x"), ["N", 3], INT64)
