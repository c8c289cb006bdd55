"""`shoal release export, verify, bom, provenance`: a release proved away from its controller."""

import zipfile
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from cli.conftest import Cli
from shoal.controller.releases.io.signing import Signer
from tensor_releases import packed, released

REF = "counts@1"


@pytest.fixture(scope="module")
def exported(
    controller, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:  # fixture of the module's controller
    """An archive of a signed release, and root.json as every device has it."""
    folder = tmp_path_factory.mktemp("exported")
    shoal = Cli(folder / "home", controller)
    (folder / "home").mkdir()
    shoal.login()
    released(controller.ctx)
    file = folder / "counts-1.zip"
    assert shoal.json("release", "export", REF, str(file))["bytes"] == file.stat().st_size
    root = folder / "root.json"
    root.write_bytes(controller.ctx.signer.root)
    return file, root


@pytest.fixture
def alone(tmp_path: Path, controller) -> Cli:
    """A user who never signed in: nothing is asked of the controller."""
    (tmp_path / "empty").mkdir()
    return Cli(tmp_path / "empty", controller)


def test_an_archive_is_proved_without_a_controller(exported: tuple[Path, Path], alone: Cli) -> None:
    file, root = exported
    found = alone.json("release", "verify", str(file), "--root", str(root))
    assert (found["release"], found["signed_as"], found["gates"]) == (REF, "release", "passed")
    assert {"fp32.onnx", "bom.cdx.json", "provenance.json"} <= {*found["files"]}
    assert not found["expired"]
    text = alone("release", "verify", str(file), "--root", str(root)).output
    assert "agrees with the files" in text


def test_it_is_not_proved_by_another_controllers_root(
    exported: tuple[Path, Path], alone: Cli, tmp_path: Path
) -> None:
    foreign = tmp_path / "root.json"
    foreign.write_bytes(Signer.create(tmp_path / "other").root)
    result = alone("release", "verify", str(exported[0]), "--root", str(foreign))
    assert result.exit_code != 0
    assert "is the root.json that you gave of the controller that made it?" in result.output


def swapped(name: str, data: bytes) -> Callable[[dict[str, bytes]], object]:
    return lambda entries: entries.update({name: data})


DAMAGE = {
    "another model": (swapped("fp32.onnx", b"x"), "fp32.onnx of counts@1 does not match"),
    "another manifest": (
        lambda e: e.update({"manifest.json": e["manifest.json"].replace(b"INT64", b"INT32")}),
        "manifest.json is not the one that was signed",
    ),
    "another provenance": (swapped("provenance.json", b"{}"), "does not match its signed hash"),
    "a file more": (swapped("evil.sh", b"x"), "'evil.sh' is no file of counts@1"),
    "a path": (swapped("../../evil", b"x"), "is no file of counts@1"),
    "a file less": (lambda e: e.pop("card.md"), "card.md is missing"),
    "no proof": (lambda e: e.pop("proof.json"), "proof.json is missing"),
    "a forged root": (
        lambda e: e.update({"root/2.root.json": e["root/1.root.json"]}), "root/2.root.json",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_changed_archive_is_refused_by_name(
    kind: str, exported: tuple[Path, Path], alone: Cli, tmp_path: Path
) -> None:
    change, why = DAMAGE[kind]
    with zipfile.ZipFile(exported[0]) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    change(entries)
    bad = tmp_path / "bad.zip"
    with zipfile.ZipFile(bad, "w") as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    result = alone("release", "verify", str(bad), "--root", str(exported[1]))
    assert result.exit_code != 0
    assert why in result.output


def test_compressed_entries_and_other_files_are_no_archive(
    exported: tuple[Path, Path], alone: Cli, tmp_path: Path
) -> None:
    bomb, text = tmp_path / "bomb.zip", tmp_path / "text.zip"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("proof.json", bytes(1 << 20))
    text.write_text("no archive")
    for file, why in ((bomb, "is compressed"), (text, "is no archive of a release")):
        result = alone("release", "verify", str(file), "--root", str(exported[1]))
        assert result.exit_code != 0
        assert why in result.output
        assert "shoal release export" in result.output


def test_both_attestations_can_be_had_and_what_nobody_signed_is_not_exported(
    shoal: Cli, exported: tuple[Path, Path], tmp_path: Path
) -> None:
    for kind, key in (("bom", "bomFormat"), ("provenance", "_type")):
        file = tmp_path / kind
        shoal.json("release", kind, REF, str(file))
        assert key in msgspec.json.decode(file.read_bytes())
    unsigned = packed(shoal.controller.ctx)
    result = shoal("release", "export", unsigned, str(tmp_path / "x.zip"))
    assert result.exit_code != 0
    assert f"publish it: shoal release publish {unsigned}" in result.output
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("x.zip")] == []
