"""Training from the command line: what --help and the documents print works as printed."""

import re
import shlex
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cli.conftest import Cli
from shoal import estimators

DOCS = Path(__file__).parents[2] / "docs"
_LINE = re.compile(r"shoal (model train [a-z][^|)\n]*)")


def printed() -> list[str]:
    """Every `shoal model train ...` that docs/ and --help print, once."""
    texts = [path.read_text() for path in sorted(DOCS.glob("*.md"))]
    lines = (line.strip() for text in texts for line in _LINE.findall(text))
    return sorted({re.sub(r" +--(no-wait|json)", "", re.sub(r"\s+#.*", "", x)) for x in lines})


@pytest.fixture
def parts_of_getting_started(shoal: Cli, tmp_path: Path) -> None:
    """The dataset `parts` of docs/getting-started.md."""
    rng, rows = np.random.default_rng(0), 240
    vibration = rng.normal(size=rows)
    table = pd.DataFrame({
        "vibration": vibration, "temp": rng.normal(60, 5, rows), "current": rng.normal(3, 1, rows),
        "plant": rng.choice(["north", "south", "east"], rows),
        "defect": np.where(vibration > 0.5, "bad", "good"),
    })  # fmt: skip
    path = tmp_path / "parts.csv"
    table.to_csv(path, index=False)
    shoal.json(
        "dataset", "add", str(path), "--name", "parts", "--label", "defect", "--site", "plant"
    )


def test_the_documents_print_examples() -> None:
    assert "model train defects --dataset parts" in printed()
    assert len(printed()) >= 4


@pytest.mark.usefixtures("parts_of_getting_started")
@pytest.mark.parametrize("line", printed())
def test_an_example_makes_a_release_as_printed(line: str, shoal: Cli) -> None:
    started = shoal.json(*shlex.split(line), "--no-wait")
    shoal.work(started["id"])
    ended = shoal.json("operation", "show", started["id"])
    assert ended["state"] == "succeeded", ended["error"]
    assert shoal.json("release", "show", ended["result"]["release"])["state"] != "refused"


def test_help_lists_every_estimator_and_every_parameter_with_its_default(stranger: Cli) -> None:
    text = stranger("model", "train", "--help").stdout
    for one in estimators.list_estimators():
        assert re.search(rf"^  {one.name} ", text, re.MULTILINE), one.name
        for parameter in one.parameters:
            assert f"    {parameter.example} " in text, parameter.example
            assert parameter.meaning, f"{one.name}: {parameter.name} says nothing"


def test_the_controller_lists_its_estimators(shoal: Cli) -> None:
    names = {one["name"] for one in shoal.json("model", "estimators")}
    assert names == set(estimators.trainable())
    assert "random-forest-regressor" in shoal("model", "estimators").stdout
    assert "depth" in shoal("model", "estimators", "random-forest").stdout
    assert shoal("model", "estimators", "forest").exit_code == 4


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("tree=3", "trees (whole number, 1 to 10000)"),
        ("trees=0", "$.trees"),
        ("trees=many", "$.trees"),
    ],
)
def test_a_parameter_that_makes_no_sense_is_refused_with_those_there_are(
    shoal: Cli, given: str, words: str
) -> None:
    line = ("model", "train", "x", "--dataset", "parts", "--estimator", "random-forest")
    refused = shoal(*line, "--param", given)
    assert refused.exit_code == 2
    assert words in refused.stderr


def test_one_value_is_a_list_of_one_where_a_list_is_wanted() -> None:
    read = estimators.read_params("mlp", estimators.typed({"hidden": "32", "sites": "north"}))
    assert (read.hidden, read.sites) == ([32], ["north"])  # type: ignore[attr-defined]
    several = estimators.read_params("mlp", estimators.typed({"sites": "north, south"}))
    assert several.sites == ["north", "south"]
