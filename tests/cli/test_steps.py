"""Declared steps, from `shoal model inspect --steps` to a release that takes raw pixels."""

import re
from pathlib import Path

import msgspec
import numpy as np
import onnxruntime
import pytest

from cli.conftest import Cli
from shoal import bundle
from shoal.cli.steps_file import open_steps
from shoal.controller.releases import releases
from shoal.controller.training.steps import declaration, table
from shoal.errors import SettingError
from shoal.golden import GoldenTensors
from training_steps import identity, photo

PAGE = Path(__file__).parents[2] / "docs/models/steps.md"
STEPS = """
[[input]]
name = "x"
steps = [
  { step = "image" },
  { step = "resize", width = 6, height = 4 },
  { step = "normalise", divide = 255 },
]
[[output]]
name = "y"
as = "brightest channel"
steps = [{ step = "argmax" }, { step = "labels", labels = ["red", "green", "blue"] }]
"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """x float32 (N, 4, 6, 3) -> y: x unchanged; of an opset that is too old for steps."""
    path = tmp_path / "mine.onnx"
    path.write_bytes(identity(["N", 4, 6, 3], opset=11).SerializeToString())
    return path


@pytest.fixture
def steps(tmp_path: Path) -> Path:
    path = tmp_path / "steps.toml"
    path.write_text(STEPS)
    return path


def test_inspect_shows_what_a_request_sends_once_there_are_steps(
    shoal: Cli, model: Path, steps: Path
) -> None:
    text = shoal("model", "inspect", str(model), "--steps", str(steps)).stdout
    assert "UINT8 [image_N, image_height, image_width, 3]" in text
    assert "brightest channel" in text
    assert re.search(r"shoal model import NAME \S+mine.onnx --task tensors --steps", text)


@pytest.mark.parametrize(
    ("command", "change", "words"),
    [
        (
            ("import", "unfit", "--task", "tensors"),
            ("width = 6", "width = 7"),
            ("[N, 4, 6, 3]", "change the sizes in its steps"),
        ),
        (
            ("inspect",),
            ('"resize"', '"resise"'),
            ("input[0].steps[1]", "no step 'resise'", "there are: image"),
        ),
    ],
)
def test_steps_that_do_not_fit_are_refused_at_once_and_by_name(
    shoal: Cli,
    model: Path,
    steps: Path,
    command: tuple[str, ...],
    change: tuple[str, str],
    words: tuple[str, ...],
) -> None:
    steps.write_text(STEPS.replace(*change))
    result = shoal("model", *command, str(model), "--steps", str(steps))
    assert result.exit_code == 2
    for word in words:
        assert word in result.stderr
    assert shoal.json("model", "list") == []


def test_entries_of_a_file_that_the_steps_name_are_sent(
    shoal: Cli, model: Path, steps: Path
) -> None:
    named = STEPS.replace('labels = ["red", "green", "blue"]', 'labels_file = "colours.txt"')
    steps.write_text(named)
    missing = shoal("model", "inspect", str(model), "--steps", str(steps))
    assert missing.exit_code == 2
    assert "colours.txt: No such file" in missing.stderr
    (steps.parent / "colours.txt").write_text("rød\ngreen\nblue\n")
    sent = declaration.parse(open_steps(steps)[1].read())
    assert sent.declared["output"][0]["steps"][1]["labels"] == ["rød", "green", "blue"]


def test_steps_are_not_for_models_of_rows(shoal: Cli, model: Path, steps: Path) -> None:
    result = shoal("model", "import", "rows", str(model), "--dataset", "d", "--steps", str(steps))
    assert result.exit_code == 2
    assert "steps are for named tensors" in result.stderr


def test_the_release_takes_pixels_and_says_what_was_declared(
    shoal: Cli, model: Path, steps: Path
) -> None:
    sample = model.with_suffix(".npz")
    pictures = [photo(9, 9, seed=seed)[None] for seed in range(24)]
    np.savez(sample, image=np.stack(pictures))
    started = shoal.json(
        "model", "import", "bright", str(model), "--task", "tensors", "--steps", str(steps),
        "--sample", str(sample), "--no-wait",
    )  # fmt: skip
    shoal.work(started["id"])
    ref = shoal.json("operation", "watch", started["id"])["result"]["release"]

    ctx = shoal.controller.ctx
    manifest, _ = releases.manifest_of(ctx, ref)
    assert manifest.steps == declaration.recorded(
        declaration.parse(STEPS.encode()).declared, bundle.sha256_of(model)
    )
    [sent], [given] = manifest.tensors.inputs, manifest.tensors.outputs
    assert (sent.name, sent.datatype, sent.batch) == ("image", "UINT8", 0)
    assert sent.sketched is not None
    assert sent.sketched.kind == "image", (
        "pixels are looked at as an image, which nobody had to say"
    )
    assert (given.name, given.datatype) == ("brightest channel", "BYTES")

    served = ctx.blobs.read(manifest.variant("fp32").file.sha256)
    session = onnxruntime.InferenceSession(served, providers=["CPUExecutionProvider"])
    red = np.zeros((1, 9, 9, 3), np.uint8)
    red[..., 0] = 200
    assert (session.run(None, {"image": red})[0] == "red").all()
    golden = msgspec.msgpack.decode(ctx.blobs.read(manifest.golden.sha256), type=GoldenTensors)
    for vector in golden.vectors:
        assert vector.arrays()["image"].dtype == np.uint8

    text = shoal("release", "show", ref).stdout
    card = ctx.blobs.read(manifest.card.sha256).decode()  # type: ignore[union-attr]
    for shown in (text, card):
        assert "image, resize width 6 height 4, normalise divide 255" in shown
        assert "as brightest channel: argmax, labels" in shown
        assert bundle.sha256_of(model) in shown
        assert "raised from opset 11 to 18" in shown


def test_a_long_list_is_recorded_by_its_count_and_hash() -> None:
    labels = [f"class {i}" for i in range(5_000)]
    steps = [{"step": "argmax"}, {"step": "labels", "labels": labels}]
    declared = {"output": [{"name": "y", "as": "label", "steps": steps}]}
    found = declaration.recorded(declared, "0" * 64)
    assert found.output[0]["steps"][1]["labels"]["entries"] == 5_000
    assert found.lines == ["output y, as label: argmax, labels labels of 5000 entries"]
    other = declaration.recorded(
        {"output": [{"steps": [{"step": "labels", "labels": labels[::-1]}]}]}, "0" * 64
    )
    assert len(msgspec.json.encode(found)) < 1_000
    assert other.output[0]["steps"][0]["labels"] != found.output[0]["steps"][1]["labels"]


def test_every_step_and_every_field_is_on_the_page() -> None:
    text = PAGE.read_text()
    kinds = [(f"`{kind.tag()}`", kind) for kind in declaration.INPUT_STEPS.values()]
    kinds += [(f"`{kind.tag()}`", kind) for kind in declaration.OUTPUT_STEPS.values()]
    kinds += [
        (f'"{kind.__struct_config__.tag}"', kind)
        for kind in (table.Number, table.Category, table.Time)
    ]
    for called, kind in kinds:
        [row] = re.findall(rf"^\| {called} \|.*$", text, re.MULTILINE)
        for field in kind.__struct_encode_fields__:
            assert f"`{field}`" in row, f"{called}: {field}"


def test_every_file_of_steps_on_the_page_can_be_read(tmp_path: Path) -> None:
    files = re.findall(r"```toml\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(files) > 4
    (tmp_path / "coco.txt").write_text("person\nbicycle\ncar\n")
    for file in files:
        (tmp_path / "steps.toml").write_text(file)
        sent = open_steps(tmp_path / "steps.toml")[1].read()
        assert declaration.parse(sent).inputs
        if "_file" in file:
            with pytest.raises(SettingError, match="the CLI does that by itself"):
                declaration.parse(file.encode())
