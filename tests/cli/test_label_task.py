"""Classes or a quantity: read from the label where that decides it, asked where it does not."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import onnx_files
from cli.conftest import Cli


def add(shoal: Cli, folder: Path, name: str, label: pd.Series, rows: int = 300) -> None:
    """A dataset with two features, and `label` made of them."""
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"heat": rng.normal(size=rows), "load": rng.normal(size=rows)})
    table["y"] = label(table)
    path = folder / f"{name}.csv"
    table.to_csv(path, index=False)
    shoal.json("dataset", "add", str(path), "--name", name, "--label", "y")


def train(shoal: Cli, name: str, *more: str) -> dict[str, object]:
    started = shoal.json("model", "train", name, "--dataset", name, "--no-wait", *more)
    return started["params"]  # type: ignore[no-any-return]


def whole(table: pd.DataFrame) -> pd.Series:
    return (20 + 8 * table["heat"]).round().astype(int)


def test_a_label_of_many_whole_numbers_is_asked_about(shoal: Cli, tmp_path: Path) -> None:
    add(shoal, tmp_path, "hours", whole)
    refused = shoal("model", "train", "hours", "--dataset", "hours", "--no-wait")
    assert refused.exit_code == 2
    assert "different whole numbers: they may be classes, or a quantity" in refused.stderr
    assert "--task classification, or --task regression" in refused.stderr
    assert train(shoal, "hours", "--task", "regression")["estimator"] == "mlp-regressor"
    assert train(shoal, "hours", "--task", "classification")["estimator"] == "mlp"
    assert train(shoal, "hours", "--estimator", "ridge")["estimator"] == "ridge"


@pytest.mark.parametrize(
    ("name", "label", "estimator"),
    [
        ("fractions", lambda t: 1.5 * t["heat"] + 0.25, "mlp-regressor"),
        ("texts", lambda t: np.where(t["heat"] > 0, "bad", "good"), "mlp"),
        ("few", lambda t: (t["heat"] > 0).astype(int) + (t["heat"] > 1), "mlp"),
    ],
)
def test_a_label_that_decides_it_is_read(
    name: str, label: pd.Series, estimator: str, shoal: Cli, tmp_path: Path
) -> None:
    add(shoal, tmp_path, name, label)
    assert train(shoal, name)["estimator"] == estimator


def test_whole_numbers_stay_classes_when_a_cell_of_the_label_is_empty(
    shoal: Cli, tmp_path: Path
) -> None:
    add(shoal, tmp_path, "gaps", lambda t: (t["heat"] > 0).astype(float).mask(t.index == 3))
    assert train(shoal, "gaps")["estimator"] == "mlp"


def test_many_whole_numbers_are_asked_about_when_a_cell_of_the_label_is_empty(
    shoal: Cli, tmp_path: Path
) -> None:
    add(shoal, tmp_path, "hour-gaps", lambda t: whole(t).astype(float).mask(t.index == 3))
    refused = shoal("model", "train", "hour-gaps", "--dataset", "hour-gaps", "--no-wait")
    assert refused.exit_code == 2
    assert "--task classification, or --task regression" in refused.stderr


def test_an_estimator_of_another_task_is_named(shoal: Cli, tmp_path: Path) -> None:
    add(shoal, tmp_path, "other", whole)
    words = ("model", "train", "other", "--dataset", "other", "--task", "classification")
    result = shoal(*words, "--estimator", "ridge")
    assert result.exit_code == 2
    assert "estimator ridge is for regression, not for classification" in result.stderr
    assert "mlp, logistic, random-forest" in result.stderr


def test_a_refused_release_says_why_and_what_works(shoal: Cli, tmp_path: Path) -> None:
    add(shoal, tmp_path, "noise", lambda t: np.random.default_rng(5).permutation(len(t)) % 2)
    started = shoal.json(
        "model", "train", "noise", "--dataset", "noise", "--estimator", "logistic", "--no-wait",
        "--param", "max_iter=20",
    )  # fmt: skip
    shoal.work(started["id"])
    found = shoal.json("release", "show", "noise@1")
    assert found["state"] == "refused"
    assert "guessing gives 0.50" in found["why_refused"]
    text = shoal("release", "show", "noise@1").stdout
    assert "refused because" in text
    assert found["why_refused"][:40] in text
    assert 'shoal release publish noise@1 --override "REASON"' in text
    assert shoal("release", "publish", "noise@1").exit_code != 0
    published = shoal.json("release", "publish", "noise@1", "--override", "REASON")
    assert published["state"] == "released"


def test_an_import_asks_too_and_shows_the_softmax_that_it_added(shoal: Cli, tmp_path: Path) -> None:
    path = tmp_path / "linear.onnx"
    path.write_bytes(onnx_files.linear(width=2))
    add(shoal, tmp_path, "counts", whole)
    words = ("model", "import", "counts", str(path), "--dataset", "counts", "--no-wait")
    refused = shoal(*words)
    assert refused.exit_code == 2
    assert "--task classification, or --task regression" in refused.stderr
    assert shoal.json(*words, "--task", "regression")["params"]["params"]["task"] == "regression"

    add(shoal, tmp_path, "states", lambda t: np.where(t["heat"] + t["load"] > 0, "b", "a"))
    started = shoal.json("model", "import", "states", str(path), "--dataset", "states", "--no-wait")
    shoal.work(started["id"])
    found = shoal.json("release", "show", "states@1")
    assert "fp32 outputs logits: a softmax was added" in found["notes"]
    assert "a softmax was added" in shoal("release", "show", "states@1").stdout
