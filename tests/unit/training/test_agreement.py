"""Whether a variant's outputs agree with fp32's, for models of which nothing is claimed."""

from collections.abc import Sequence

import numpy as np
import pytest

from shoal.controller.training.io.agreement import (
    compare_output,
    comparison_of,
    comparison_of_task,
    why_not,
)
from shoal.signature import Signature, State, Tensor
from shoal.tasks import Classification
from shoal.tensors import Array

RNG = np.random.default_rng(0)
SCORES = [RNG.normal(size=(1, 10)).astype(np.float32) for _ in range(8)]
MAPS = [RNG.uniform(size=(1, 1, 16, 16)).astype(np.float32) for _ in range(8)]
NUMBERS = [np.float32([[x]]) for x in (0.1, 0.9, 0.4, 0.7, 0.2)]
LABELS = [np.array([i]) for i in range(20)]


def spoilt(arrays: Sequence[Array], value: object) -> list[Array]:
    """The same arrays, with `value` in the first place of the first one."""
    first = arrays[0].copy()
    first.flat[0] = value
    return [first, *arrays[1:]]


@pytest.mark.parametrize(
    ("want", "got", "words"),
    [
        (SCORES, [one * 1.01 for one in SCORES], ""),
        (SCORES, [one[:, ::-1] for one in SCORES], "fp32's largest element on"),
        (SCORES, [one[:, :9] for one in SCORES], "another shape"),
        (SCORES, spoilt(SCORES, np.nan), "NaN, infinity"),
        (SCORES, spoilt(SCORES, np.inf), "NaN, infinity"),
        (spoilt(SCORES, np.nan), spoilt(SCORES, np.nan), ""),
        (MAPS, [one + 0.01 for one in MAPS], ""),
        (MAPS, [one.transpose(0, 1, 3, 2) for one in MAPS], "worst cosine"),
        (NUMBERS, [one + 0.001 for one in NUMBERS], ""),
        (NUMBERS, NUMBERS[::-1], "worst cosine"),
        ([np.float32([1])] * 4, [np.float32([1.2])] * 4, "error 0.200 of its largest"),
        (LABELS, [*LABELS[:19], np.array([5])], ""),
        (LABELS, [*LABELS[:18], np.array([5]), np.array([6])], "on 90.0% of held-back items"),
        ([np.array(["a", "b"], object)], [np.array(["a", "c"], object)], "on 50.0%"),
    ],
)
def test_outputs_agree_or_the_figure_that_failed_is_named(
    want: Sequence[Array], got: Sequence[Array], words: str
) -> None:
    why = why_not(compare_output("y", want, got, 0))
    assert words in why
    assert bool(why) == bool(words)


def test_a_state_is_no_choice_of_a_class() -> None:
    signature = Signature(
        inputs=[Tensor(name="h", datatype="FP32", shape=["N", 4], batch=0)],
        outputs=[
            Tensor(name="y", datatype="FP32", shape=["N", 4], batch=0),
            Tensor(name="hn", datatype="FP32", shape=["N", 4], batch=0),
        ],
        states=[State(taken="h", given="hn", shape=[1, 4])],
    )
    want = [{"y": np.float32([[0, 1, 0, 0]]), "hn": np.float32([[0.50, 0.51, 0, 0]])}]
    got = [{"y": np.float32([[0, 1, 0, 0]]), "hn": np.float32([[0.51, 0.50, 0, 0]])}]
    found = comparison_of(signature)(want, got)
    assert (found.why, [one.same for one in found.outputs]) == ("", [1.0, None])


def test_a_model_with_a_task_is_judged_by_what_its_answers_mean() -> None:
    signature = Signature(
        inputs=[Tensor(name="x", datatype="FP32", shape=["N", 3], batch=0)],
        outputs=[
            Tensor(name="scores", datatype="FP32", shape=["N", 10], batch=0),
            Tensor(name="hidden", datatype="FP32", shape=["N", 10], batch=0),
        ],
    )
    task = Classification(output="scores", labels=[str(i) for i in range(10)], form="logits")
    compare = comparison_of_task(task, signature)

    def agree(scores: Sequence[Array], hidden: Sequence[Array]) -> tuple[str, dict[str, float]]:
        want = [{"scores": one, "hidden": one} for one in SCORES]
        got = [{"scores": s, "hidden": h} for s, h in zip(scores, hidden, strict=True)]
        found = compare(want, got)
        assert [one.output for one in found.outputs] == ["scores", "hidden"]
        return found.why, found.metrics

    rough = [np.sign(one) * np.abs(one) ** 3 for one in SCORES]  # far off, and in the same order
    assert agree(rough, rough)[0] == ""
    turned = [one[:, ::-1] for one in SCORES]
    assert agree(SCORES, turned)[0] == ""
    why, metrics = agree(turned, SCORES)
    assert "to fp32's answers" in why
    assert all(value < 1 for value in metrics.values())
    assert "NaN" in agree(SCORES, spoilt(SCORES, np.nan))[0]
