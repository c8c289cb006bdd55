"""Training from the command line: what --help and the documents print works as printed."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pandas as pd
import pytest

from cli.conftest import Cli, Controller
from shoal import estimators
from shoal.controller.operations import operations
from shoal.controller.operations.io.runner import OperationRunner
from waiting import eventually

DOCS = Path(__file__).parents[2] / "docs"
#: What docs/training.md prints for a script; it is run by the test of scripts.
BY_SCRIPT = "model train defects --dataset parts --script train.py --param depth=4"
#: Not what another command answers, of a dataset of its own.
_LINE = re.compile(r"(?<!next: )shoal (model train [a-z][^|)\n]*)")


def printed() -> list[str]:
    """Every `shoal model train ...` that docs/ and --help print, once."""
    texts = [path.read_text() for path in sorted(DOCS.glob("*.md"))]
    lines = (line.strip() for text in texts for line in _LINE.findall(text))
    return sorted({re.sub(r" +--(no-wait|json)", "", re.sub(r"\s+#.*", "", x)) for x in lines})


@pytest.fixture
def scripts_allowed(
    controller: Controller, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """Admins may run scripts; `train.py` of docs/training.md is in the working directory."""
    text = (DOCS / "training.md").read_text()
    [code] = re.findall(r"```python\n(import json\n.*?)```", text, re.DOTALL)
    (tmp_path / "train.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    settings = controller.ctx.settings.operations
    msgspec.structs.force_setattr(settings, "scripts", "admin")
    yield
    msgspec.structs.force_setattr(settings, "scripts", "none")


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
    assert BY_SCRIPT in printed()


@pytest.mark.usefixtures("parts_of_getting_started")
@pytest.mark.parametrize("line", [line for line in printed() if line != BY_SCRIPT])
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


@pytest.mark.usefixtures("parts_of_getting_started")
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


# ---- scripts


@pytest.mark.usefixtures("parts_of_getting_started")
def test_nobody_runs_a_script_until_the_controller_is_set_to_allow_it(
    shoal: Cli, tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text("print('here')")
    line = ("model", "train", "x", "--dataset", "parts", "--script", str(tmp_path / "mine.py"))
    refused = shoal(*line)
    assert refused.exit_code != 0
    assert 'set scripts = "admin" under [operations]' in refused.stderr
    named = shoal("model", "train", "x", "--dataset", "parts", "--estimator", "script")
    assert "no script is given" in named.stderr


@pytest.mark.usefixtures("parts_of_getting_started", "scripts_allowed")
def test_a_script_makes_a_release_like_an_import_and_its_output_is_the_operations_log(
    shoal: Cli, controller: Controller
) -> None:
    toml = controller.ctx.folder / "controller.toml"
    toml.write_text(toml.read_text().replace('scripts = "none"', 'scripts = "admin"'))
    for waiting in operations.list_operations(controller.ctx, state=operations.QUEUED):
        operations.cancel(controller.ctx, actor="admin", ident=waiting.id)
    started = shoal.json(*shlex.split(BY_SCRIPT), "--param", "seed=5", "--no-wait")
    assert started["params"]["params"]["values"] == {"depth": 4}
    runner = OperationRunner(controller.ctx)

    def ended() -> bool:
        runner.step()
        return bool(shoal.json("operation", "show", started["id"])["finished_at"])

    eventually(ended, "the script to end", 120)
    ended_so = shoal.json("operation", "show", started["id"])
    assert ended_so["state"] == "succeeded", ended_so["error"]
    release = shoal.json("release", "show", ended_so["result"]["release"])
    assert release["state"] == "validated"
    assert release["params"]["seed"] == 5
    assert any("reported by the script" in note for note in release["notes"])
    assert "trained on 180 rows" in shoal("operation", "log", started["id"]).stdout
    shown = shoal.json("operation", "show", started["id"])["params"]["script"]
    assert controller.ctx.blobs.exists(shown), "the script is kept with the release"


@pytest.mark.usefixtures("parts_of_getting_started", "scripts_allowed")
@pytest.mark.parametrize(
    ("code", "more", "words"),
    [
        ("x = (", (), "mine.py, line 1"),
        ("\0", (), "mine.py"),
        ("pass", ("--estimator", "mlp"), "leave --estimator out"),
        ("pass", ("--entry", "a b"), "entry"),
        ("pass", ("--param", "holdout=2"), "holdout"),
    ],
)
def test_a_script_that_cannot_run_is_refused_before_it_is_queued(
    code: str, more: tuple[str, ...], words: str, shoal: Cli, tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text(code)
    refused = shoal("model", "train", "x", "--dataset", "parts", "--script", "mine.py", *more)
    assert refused.exit_code == 2
    assert words in refused.stderr
