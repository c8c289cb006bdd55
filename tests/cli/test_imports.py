"""Any ONNX model, from `shoal model inspect` to a signed release, by the lines that are printed."""

import re
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest

import onnx_files
from cli.conftest import Cli
from shoal import bundle
from shoal.controller.operations import operations
from shoal.controller.releases import releases


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "mine.onnx"
    path.write_bytes(onnx_files.two_inputs())
    return path


def import_of(shoal: Cli, *arguments: str) -> str:
    """Import and do it as the engine would; the release's name."""
    started = shoal.json("model", "import", *arguments, "--no-wait")
    shoal.work(started["id"])
    ended = shoal.json("operation", "watch", started["id"])
    return str(ended["result"]["release"])


def test_inspect_shows_inputs_operators_memory_and_every_profile(shoal: Cli, model: Path) -> None:
    text = shoal("model", "inspect", str(model)).stdout
    for words in ("INT64 [N, 2]", "BOOL [N, 2]", "Add, Cast, Greater", "rpi3-armv7", "reflash"):
        assert words in text
    assert "about 9 MB to load it" in text
    found = shoal.json("model", "inspect", str(model))
    assert found["facts"]["nodes"] == 3
    assert {v["profile"] for v in found["verdicts"] if v["passed"]} >= {"rpi4", "generic"}


def test_inspect_names_what_is_no_model(shoal: Cli, tmp_path: Path) -> None:
    path = tmp_path / "photo.onnx"
    path.write_bytes(b"GIF89a")
    result = shoal("model", "inspect", str(path))
    assert result.exit_code == 2
    assert "photo.onnx is not an ONNX file" in result.stderr


def test_without_dataset_and_task_it_says_what_each_is_for(shoal: Cli, model: Path) -> None:
    result = shoal("model", "import", "mine", str(model))
    assert result.exit_code == 2
    assert "--dataset NAME for a model of rows; for any other --task TASK" in result.stderr


def test_any_model_becomes_a_release_that_claims_nothing(shoal: Cli, model: Path) -> None:
    ref = import_of(shoal, "two", str(model), "--task", "tensors")
    text = shoal("release", "show", ref).stdout
    for words in ("INT64 [N (items), 2]", "BOOL [N (items), 2]", "no drift reference", "Greater"):
        assert words in text
    assert "cosine" not in text

    [publish] = re.findall(r"shoal (release publish \S+)", text)
    published = shoal(*publish.split()).stdout
    assert f"roll it out with: shoal rollout start {ref}\n" in published
    listed = {one["model"]: one for one in shoal.json("release", "list")}
    assert (listed["two"]["metrics"], listed["two"]["dataset"]) == ({}, "")
    assert shoal("release", "list").exit_code == shoal("model", "show", "two").exit_code == 0


def test_the_release_serves_the_file_of_its_author(shoal: Cli, model: Path) -> None:
    ref = import_of(shoal, "bytes", str(model), "--task", "tensors")
    manifest, _ = releases.manifest_of(shoal.controller.ctx, ref)
    assert manifest.variant("fp32").file.sha256 == bundle.sha256_of(model)


def test_a_list_of_maps_is_served_as_the_tensor_of_its_values(shoal: Cli, tmp_path: Path) -> None:
    path = tmp_path / "maps.onnx"
    path.write_bytes(onnx_files.classifier_with_maps())
    ref = import_of(shoal, "maps", str(path), "--task", "tensors")
    manifest, _ = releases.manifest_of(shoal.controller.ctx, ref)
    served = onnx.load_from_string(
        shoal.controller.ctx.blobs.read(manifest.variant("fp32").file.sha256)
    )
    assert [node.op_type for node in served.graph.node] == ["Softmax", "ArgMax", "Identity"]
    assert [one.datatype for one in manifest.tensors.outputs] == ["INT64", "FP32"]
    assert "ok, worn" in shoal("release", "show", ref).stdout


def test_a_sample_of_ones_own_decides_what_cannot_be_guessed(shoal: Cli, tmp_path: Path) -> None:
    path, sample = tmp_path / "odd.onnx", tmp_path / "odd.npz"
    path.write_bytes(onnx_files.needs_length(52))
    np.savez(sample, x=np.random.default_rng(1).normal(size=(3, 1, 52)).astype(np.float32))
    ref = import_of(shoal, "odd", str(path), "--task", "tensors", "--sample", str(sample))
    found = shoal.json("release", "show", ref)
    assert found["tensors"]["inputs"][0]["name"] == "x"
    assert not any("no sample was given" in note for note in found["tensors"]["notes"])


def test_a_sample_that_does_not_fit_fails_the_import_by_name(shoal: Cli, tmp_path: Path) -> None:
    path, sample = tmp_path / "m.onnx", tmp_path / "m.npz"
    path.write_bytes(onnx_files.linear())
    np.savez(sample, other=np.zeros((2, 1, 3), np.float32))
    started = shoal.json(
        "model", "import", "misfit", str(path), "--task", "tensors", "--sample", str(sample),
        "--no-wait",
    )  # fmt: skip
    shoal.work(started["id"])
    result = shoal("operation", "watch", started["id"])
    assert result.exit_code == 1
    assert "no array 'x'; it has: other" in result.stderr


def test_what_waits_shows_its_place_in_the_queue(shoal: Cli, model: Path) -> None:
    arguments = ("model", "import", "queued", str(model), "--task", "tensors", "--no-wait")
    first = shoal.json(*arguments)
    ctx = shoal.controller.ctx
    place = operations.get_operation(ctx, first["id"]).position
    second = shoal.json(*arguments)
    assert second["position"] == place + 1
    listed = msgspec.json.decode(shoal("operation", "list", "--json").stdout)
    assert {one["id"]: one["position"] for one in listed}[second["id"]] == place + 1
    text = shoal("operation", "show", second["id"]).stdout
    assert re.search(r"\d+(st|nd|rd|th) in the queue", text)
    for one in (first, second):
        shoal("operation", "cancel", one["id"])


def apart(folder: Path) -> Path:
    """A model in `folder` with its weights in two files beside it."""
    model, files = onnx_files.kept_apart(onnx_files.layers(2), ["a.bin", "b.bin"])
    for name, content in {"apart.onnx": model, **files}.items():
        (folder / name).write_bytes(content)
    return folder / "apart.onnx"


def test_data_files_beside_the_model_are_found_named_and_served(shoal: Cli, tmp_path: Path) -> None:
    path = apart(tmp_path)
    looked = shoal("model", "inspect", str(path)).stdout
    assert "with a.bin (16.0 KiB) from beside it" in looked
    ref = import_of(shoal, "apart", str(path), "--task", "tensors")
    manifest, _ = releases.manifest_of(shoal.controller.ctx, ref)
    files = manifest.variant("fp32").files
    assert [file.name for file in files] == ["fp32.onnx", "a.bin", "b.bin"]
    assert [file.sha256 for file in files] == [
        bundle.sha256_of(tmp_path / name) for name in ("apart.onnx", "a.bin", "b.bin")
    ]
    variants = {one["name"]: one for one in shoal.json("release", "show", ref)["variants"]}
    assert variants["fp32"]["size"] == sum(file.size for file in files)
    assert all(one["dropped"] for name, one in variants.items() if name != "fp32")


def test_data_files_elsewhere_are_given(shoal: Cli, tmp_path: Path) -> None:
    path, other = apart(tmp_path), tmp_path / "disk"
    other.mkdir()
    for name in ("a.bin", "b.bin"):
        (tmp_path / name).rename(other / name)
    result = shoal("model", "inspect", str(path), "--data", str(other / "b.bin"))
    assert result.exit_code == 2
    assert "apart.onnx keeps weights in 'a.bin', which is not beside it" in result.stderr
    assert "add --data PATH/a.bin" in result.stderr
    given = [word for name in ("a.bin", "b.bin") for word in ("--data", str(other / name))]
    assert shoal.json("model", "inspect", str(path), *given)["facts"]["parameters"] == 2 * 64 * 64


def test_a_data_file_that_the_model_does_not_name_is_refused(
    shoal: Cli, model: Path, tmp_path: Path
) -> None:
    (tmp_path / "spare.bin").write_bytes(b"x")
    result = shoal("model", "inspect", str(model), "--data", str(tmp_path / "spare.bin"))
    assert result.exit_code == 2
    assert "has no weights in 'spare.bin'; the data files that it names: none" in result.stderr
