"""Models with named tensors, imported with a task: measured on labels, refused where wrong."""

import re
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from onnx import TensorProto, helper

from cli.conftest import Cli
from shoal import tasks
from shoal.controller.releases import releases
from shoal.tasks import Classification

LABELS = ["ant", "bee", "cat"]


def softmax(path: Path) -> Path:
    """x float32 (N, 3) -> score: its softmax."""
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", 3]) for n in ("x", "score"))
    graph = helper.make_graph([helper.make_node("Softmax", ["x"], ["score"])], "g", [x], [y])
    opset = [helper.make_opsetid("", 17)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return softmax(tmp_path / "insects.onnx")


@pytest.fixture
def names(tmp_path: Path) -> Path:
    path = tmp_path / "names.txt"
    path.write_text("\n".join(LABELS) + "\n")
    return path


def sample(path: Path, right: float, n: int = 60) -> Path:
    """Items whose largest input is that of their label, but for a share of `right`."""
    rng = np.random.default_rng(5)
    label = rng.integers(0, 3, n)
    shown = np.where(np.arange(n) < right * n, label, (label + 1) % 3)
    x = rng.normal(0, 0.3, (n, 3)).astype(np.float32)
    x[np.arange(n), shown] += 4
    np.savez(path, x=x[:, None], label=np.array(LABELS)[label])
    return path


def imported(shoal: Cli, name: str, *arguments: str) -> dict[str, Any]:
    """The release of an import that ends well."""
    started = shoal.json("model", "import", name, *arguments, "--no-wait")
    shoal.work(started["id"])
    ended = shoal.json("operation", "watch", started["id"])
    return shoal.json("release", "show", ended["result"]["release"])  # type: ignore[no-any-return]


def failed(shoal: Cli, name: str, *arguments: str) -> str:
    started = shoal.json("model", "import", name, *arguments, "--no-wait")
    shoal.work(started["id"])
    return str(shoal.json("operation", "show", started["id"])["error"])


def test_a_claimed_classification_is_measured_and_signed_with_its_labels(
    shoal: Cli, model: Path, names: Path, tmp_path: Path
) -> None:
    npz = sample(tmp_path / "insects.npz", right=0.9)
    found = imported(
        shoal, "insects", str(model), "--task", "classification", "--sample", str(npz),
        "--labels", str(names),
    )  # fmt: skip
    assert (found["task"], found["labels"], found["state"]) == (
        "classification", LABELS, "validated",
    )  # fmt: skip
    assert found["metrics"]["accuracy"] == pytest.approx(0.9)
    claimed = found["tensors"]["task"]
    assert (claimed["items"], claimed["given"], claimed["main"]) == (60, 60, "balanced_accuracy")
    assert any("read as probabilities" in note for note in claimed["notes"])

    ref = f"insects@{found['version']}"
    manifest, _ = releases.manifest_of(shoal.controller.ctx, ref)
    assert manifest.answers == Classification(output="score", labels=LABELS)
    assert manifest.task == "classification"
    text = shoal("release", "show", ref).stdout
    card = shoal.controller.ctx.blobs.read(manifest.card.sha256).decode()  # type: ignore[union-attr]
    for shown in (text, card):
        assert "task classification" in shown
        assert "ant, bee, cat" in shown
        assert "0.9" in shown
        assert "Nothing is claimed" not in shown
    assert "0.9" in shoal("model", "show", "insects").stdout


def test_a_model_that_guesses_is_refused_as_one_of_rows_is(
    shoal: Cli, model: Path, names: Path, tmp_path: Path
) -> None:
    npz = sample(tmp_path / "wrong.npz", right=0.2)
    found = imported(
        shoal, "guesses", str(model), "--task", "classification", "--sample", str(npz),
        "--labels", "ant,bee,cat",
    )  # fmt: skip
    assert found["state"] == "refused"
    assert "guessing gives 0.33" in found["why_refused"]


def test_without_labels_a_claim_is_served_and_said_not_to_be_measured(
    shoal: Cli, model: Path, names: Path
) -> None:
    settings = names.with_name("meaning.json")
    settings.write_bytes(msgspec.json.encode({"output": "score", "form": "logits"}))
    found = imported(
        shoal, "unmeasured", str(model), "--task", "classification", "--labels", str(names),
        "--task-settings", str(settings),
    )  # fmt: skip
    assert found["metrics"] == {}
    assert "nothing was measured: no sample was given" in found["tensors"]["task"]["notes"]


def test_a_model_of_which_nothing_is_claimed_is_told_what_it_looks_like(
    shoal: Cli, model: Path
) -> None:
    found = imported(shoal, "unclaimed", str(model), "--task", "tensors")
    notes = " ".join(found["tensors"]["notes"])
    assert "score looks like probabilities of 3 classes" in notes
    assert "--task classification --labels FILE (3 lines)" in notes


def test_a_claim_that_does_not_fit_the_outputs_says_what_they_look_like(
    shoal: Cli, model: Path
) -> None:
    error = failed(shoal, "unfit", str(model), "--task", "anomaly")
    assert "task anomaly fits none of the outputs: score FP32 [N (items), 3]" in error
    assert "--task classification --labels FILE (3 lines)" in error


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ('{"outputs": ["y"]}', "no field 'outputs'; there are: output, labels"),
        ('{"task": "embedding"}', "settings are of task 'embedding', the import is of class"),
        ("{", "settings of the task"),
    ],
)
def test_settings_that_no_model_could_have_are_refused_at_once(
    shoal: Cli, model: Path, tmp_path: Path, given: str, words: str
) -> None:
    settings = tmp_path / "meaning.json"
    settings.write_text(given)
    result = shoal("model", "import", "bad", str(model), "--task", "classification",
                   "--task-settings", str(settings))  # fmt: skip
    assert result.exit_code == 2
    assert words in result.stderr


PAGE = (Path(__file__).parents[2] / "docs/models/tasks.md").read_text()


@pytest.mark.parametrize("word", tasks.KINDS)
def test_every_task_is_on_the_page_with_its_fields_and_an_example_that_is_read(word: str) -> None:
    section = PAGE.split(f"\n### {word}\n")[1].split("\n## ")[0].split("\n### ")[0]
    (example,) = re.findall(r"```json\n(.*?)```", section, re.DOTALL)
    assert tasks.parse(example).word == word
    for field in tasks.KINDS[word].__struct_encode_fields__:
        assert f"`{field}`" in section, field
