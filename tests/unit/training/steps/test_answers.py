"""Steps behind a model: probabilities, choices and names."""

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper
from sklearn.isotonic import IsotonicRegression

from shoal.controller.training.steps import declaration
from shoal.errors import ModelError, SettingError
from training_steps import answered, composed, identity, outputs

SCORES = np.float32([[1.0, 3.0, 2.0], [0.5, -1.0, 0.5]])
LABELS = {"step": "labels", "labels": ["a", "b", "c"]}


def test_logits_become_probabilities() -> None:
    found = answered([{"step": "temperature", "divide": 2}, {"step": "softmax"}], SCORES)["out"]
    wanted = np.exp(SCORES / 2) / np.exp(SCORES / 2).sum(1, keepdims=True)
    assert np.allclose(found, wanted, atol=1e-6)
    single = answered([{"step": "sigmoid"}], SCORES)["out"]
    assert np.allclose(single, 1 / (1 + np.exp(-SCORES)), atol=1e-6)


def test_the_largest_score_gets_its_name_and_the_first_of_equal_ones() -> None:
    assert answered([{"step": "argmax"}, LABELS], SCORES)["out"].tolist() == ["b", "a"]


def test_a_number_without_a_name_is_unknown() -> None:
    short = {"step": "labels", "labels": ["a"], "unknown": "other"}
    assert answered([{"step": "argmax"}, short], SCORES)["out"].tolist() == ["other", "a"]


def test_the_best_ones_have_names_and_scores() -> None:
    found = answered([{"step": "top-k", "k": 2}, LABELS], SCORES)
    assert found["out"].tolist() == [["b", "c"], ["a", "c"]]
    assert found["out_scores"].tolist() == [[3.0, 2.0], [0.5, 0.5]]


def test_a_score_against_a_threshold_has_two_names_and_nan_is_below() -> None:
    steps = [{"step": "column", "index": 1}, {"step": "threshold", "at": 3.0}]
    scores = np.float32([[0, 3.0], [9, 2.9], [9, np.nan]])
    assert answered(steps, scores)["out"].tolist() == [True, False, False]
    named = [*steps, {"step": "labels", "labels": ["good", "defect"]}]
    assert answered(named, scores)["out"].tolist() == ["defect", "good", "good"]


def test_one_output_has_several_answers_and_others_stay() -> None:
    declared = {
        "output": [
            {"name": "y", "as": "scores", "steps": []},
            {"name": "y", "as": "class", "steps": [{"step": "argmax"}]},
        ]
    }
    found = outputs(composed(identity(["N", 3]), declared), {"x": SCORES})
    assert list(found) == ["scores", "class"]
    assert (found["scores"] == SCORES).all()
    unmentioned = {"input": [{"name": "x", "steps": [{"step": "image"}, {"step": "normalise"}]}]}
    model = composed(identity(["N", "H", "W", 3]), unmentioned)
    assert [one.name for one in model.graph.output] == ["y"]
    assert [one.name for one in model.graph.input] == ["image"]


UNFIT: dict[str, tuple[dict[str, Any], str]] = {
    "no such output": ({"name": "z", "as": "a", "steps": []}, "its outputs are: y"),
    "a name that is taken": ({"name": "y", "as": "x", "steps": []}, 'as = "NAME" of an output'),
    "names of scores": ({"name": "y", "as": "a", "steps": [LABELS]}, "put argmax"),
    "too many": ({"name": "y", "as": "a", "steps": [{"step": "top-k", "k": 4}]}, "has 3 scores"),
    "no such column": (
        {"name": "y", "as": "a", "steps": [{"step": "column", "index": 3}]}, "0 to 2"
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", UNFIT)
def test_an_answer_that_the_model_does_not_have_is_refused(what: str) -> None:
    output, words = UNFIT[what]
    with pytest.raises(ModelError) as refused:
        composed(identity(["N", 3]), {"output": [output]})
    assert words in str(refused.value)


def test_a_name_that_a_branch_of_the_model_has_is_taken() -> None:
    model = identity(["N", 3])
    made = [helper.make_tensor_value_info("best", TensorProto.FLOAT, ["N", 3])]
    branch = helper.make_graph([helper.make_node("Identity", ["x"], ["best"])], "b", [], made)
    yes = helper.make_node("Constant", [], ["yes"], value=helper.make_tensor("t", 9, [], [True]))
    node = helper.make_node("If", ["yes"], ["z"], then_branch=branch, else_branch=branch)
    model.graph.node.extend([yes, node])
    with pytest.raises(ModelError, match="has a tensor 'best' already"):
        composed(model, {"output": [{"name": "y", "as": "best", "steps": []}]})


UNREADABLE: dict[str, tuple[dict[str, Any], str]] = {
    "nothing": ({}, "no [[input]] and no [[output]]"),
    "another table": ({"inputs": []}, "there are: input, output"),
    "no such step": ({"output": [{"name": "y", "as": "a", "steps": [{"step": "sofmax"}]}]},
                     "there are: softmax"),
    "of an input": ({"output": [{"name": "y", "as": "a", "steps": [{"step": "resize"}]}]},
                    "it is for an input"),
    "a photo's file": ({"input": [{"name": "x", "steps": [{"step": "jpeg"}]}]}, "PIL.Image.open"),
    "no source": ({"input": [{"name": "x", "steps": [{"step": "normalise"}]}]},
                  "begin with what a request sends: image"),
    "two sources": ({"input": [{"name": "x", "steps": [{"step": "image"}, {"step": "image"}]}]},
                    "begin with one"),
    "no name": ({"output": [{"name": "y", "steps": []}]}, "no 'as', which is needed"),
    "more than a manifest holds": (
        {"output": [{"name": "y", "as": f"a{i}", "steps": [
            {"step": "labels", "labels": [f"{j} of class" for j in range(200)]}]}
            for i in range(30)]},
        "at most; declare fewer",
    ),
    "a number that is none": (
        {"output": [{"name": "y", "as": "a", "steps": [{"step": "threshold", "at": 1e300}]}]}, "at"
    ),
    "one name twice": ({"output": [{"name": "y", "as": "a", "steps": []}] * 2}, "one for each"),
}  # fmt: skip


@pytest.mark.parametrize("what", UNREADABLE)
def test_a_file_of_steps_that_cannot_be_read_says_where_and_what(what: str) -> None:
    declared, words = UNREADABLE[what]
    with pytest.raises(SettingError) as refused:
        composed(identity(["N", 3]), declared)
    assert words in str(refused.value)


def test_scores_are_calibrated_as_isotonic_regression_does() -> None:
    rng = np.random.default_rng(0)
    scores = rng.uniform(0.1, 0.9, 400)
    truth = rng.uniform(size=400) < scores**2
    fitted = IsotonicRegression(out_of_bounds="clip").fit(scores, truth)
    step = {
        "step": "isotonic",
        "x": fitted.X_thresholds_.tolist(),
        "y": fitted.y_thresholds_.tolist(),
    }
    sent = np.concatenate([[0, 1, np.nan, np.inf], scores]).astype(np.float32)[:, None]
    found = answered([step], sent)["out"]
    assert np.isnan(found[2])
    keep = np.isfinite(sent[:, 0])
    assert np.abs(found[keep, 0] - fitted.predict(sent[keep, 0])).max() < 1e-6
    assert found[3] == found[1]


@pytest.mark.parametrize(
    ("x", "y", "words"),
    [
        ([0, 1], [0, 1, 2], "x has 2 points, y 3"),
        ([0, 0], [0, 1], "x increases"),
        ([0, 1], [1, 0], "y does not decrease"),
    ],
)
def test_points_that_are_no_calibration_are_refused(
    x: list[float], y: list[float], words: str
) -> None:
    with pytest.raises(SettingError) as refused:
        answered([{"step": "isotonic", "x": x, "y": y}], SCORES)
    assert words in str(refused.value)


def test_a_file_that_is_not_toml_says_in_which_line() -> None:
    with pytest.raises(SettingError, match=r"not TOML: .*line 2"):
        declaration.parse(b'[[output]]\nname = "y\n')
