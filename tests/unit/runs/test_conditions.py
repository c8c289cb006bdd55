"""The language in which runs are searched."""

import pytest

from shoal.controller.runs.conditions import Condition, Name, parse
from shoal.errors import InputError


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", []),
        ("accuracy>0.9", [Condition(Name("metric", "accuracy"), ">", 0.9, "0.9")]),
        (
            "metrics.`accuracy in training` <= 1e-3 AND params.hidden = '64,32'",
            [
                Condition(Name("metric", "accuracy in training"), "<=", 0.001, "1e-3"),
                Condition(Name("param", "hidden"), "=", None, "64,32"),
            ],
        ),
        ('tag.team != "a and b"', [Condition(Name("tag", "team"), "!=", None, "a and b")]),
    ],
)
def test_conditions_are_read_as_mlflow_writes_them(text: str, found: list[Condition]) -> None:
    assert parse(text) == found


@pytest.mark.parametrize(
    "text",
    [
        "accuracy", "accuracy > ", "> 0.9", "a > 1 or b > 2", "a > 1 and", "a ~ 1", "tags.x > high",
        "a = 'x", " and ".join(["a > 1"] * 11), "a" * 2_000,
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_refused_with_the_way_to_write_it(text: str) -> None:
    with pytest.raises(InputError) as caught:
        parse(text)
    assert caught.value.hint
