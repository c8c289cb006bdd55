"""Datasets of images by the command line: a folder is sent as it is, and what was found said."""

import os
import re
import shlex
import tarfile
from pathlib import Path

import pytest

from cli.conftest import Cli
from item_files import picture, pictures
from shoal.cli.folder_tar import FolderTar
from shoal.errors import SettingError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve images in two folders, a hidden file, a link, an empty file and a text."""
    for name, data in pictures().items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    root = tmp_path / "parts"
    (root / ".hidden.png").write_bytes(picture())
    (root / "good" / "link.png").symlink_to("/etc/passwd")
    (root / "good" / "empty.png").write_bytes(b"")
    (root / "about.md").write_text("photographs of parts")
    return root


def test_a_folder_of_images_is_added_and_what_was_found_is_said(shoal: Cli, folder: Path) -> None:
    result = shoal("dataset", "add", str(folder), "--name", "parts")
    assert result.exit_code == 0, result.output
    assert "parts@1: 12 images in 2 classes by folders: bad 4, good 8" in result.stdout
    assert "left out: 1 not an image that can be read: good/empty.png" in result.stdout
    assert "left out: 1 not an image: about.md" in result.stdout
    shown = shoal("dataset", "show", "parts").stdout
    assert "UINT8" in shown
    assert "[16, 24, 3]" in shown
    assert "about.md" in shown
    again = shoal.json("dataset", "add", str(folder), "--name", "parts")
    assert (again["version"], again["kind"]) == (1, "images")


def test_images_without_labels_are_asked_about(shoal: Cli, folder: Path) -> None:
    only = str(folder / "bad")
    refused = shoal("dataset", "add", only, "--name", "one")
    assert refused.exit_code != 0
    assert "say --unlabelled" in refused.stderr
    made = shoal("dataset", "add", only, "--name", "one", "--unlabelled")
    assert "one@1: 4 images, no labels" in made.stdout


def test_a_folder_is_a_tar_of_the_length_that_it_says_whenever_it_was_written(folder: Path) -> None:
    long = folder / ("a" * 120) / ("ü" * 90 + ".png")
    long.parent.mkdir()
    long.write_bytes(picture(3))
    stream = FolderTar(folder)
    data = stream.read()
    assert data is not None
    assert len(data) == stream.length == stream.seek(0, os.SEEK_END)
    path = folder.parent / "sent.tar"
    path.write_bytes(data)
    with tarfile.open(path) as archive:
        names = archive.getnames()
        assert f"{'a' * 120}/{'ü' * 90}.png" in names
        assert not any("hidden" in name or "link" in name for name in names)
        member = archive.extractfile("good/001.png")
        assert member is not None
        assert member.read() == pictures()["parts/good/001.png"]
    os.utime(folder / "about.md", (1, 1))
    assert FolderTar(folder).read() == data


def test_a_folder_without_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="has no files"):
        FolderTar(tmp_path)


def test_the_page_of_datasets_runs_as_it_is_printed(
    shoal: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (Path(__file__).parents[2] / "docs" / "datasets.md").read_text()
    blocks = re.findall(r"```(python|sh|text)\n(.*?)```", page, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    printed = ""
    for language, block in blocks:
        if language == "python":
            exec(block, {})
        elif language == "sh":
            _, *arguments = shlex.split(block)
            result = shoal(*arguments)
            assert result.exit_code == 0, result.output
            printed = result.stdout
        else:
            assert printed == block
    assert len(blocks) == 9


def test_a_table_is_masked_by_a_file_and_its_policy_is_printed(shoal: Cli, tmp_path: Path) -> None:
    table, policy = tmp_path / "visits.csv", tmp_path / "policy.toml"
    table.write_text("patient,pulse,sick\n" + "".join(f"P{i},{60 + i},{i % 2}\n" for i in range(9)))
    policy.write_text('[columns.patient]\nrule = "hash"\n')
    words = ("dataset", "add", str(table), "--name", "visits", "--label", "sick", "--drop")
    made = shoal(*words, "patient", "--mask", str(policy))
    assert made.exit_code == 0, made.output
    assert "masked: patient: keyed hash, key 'default'" in made.stdout
    assert "keyed hash" in shoal("dataset", "show", "visits").stdout
    policy.write_text(shoal("dataset", "policy", "visits@1").stdout)
    again = shoal.json(*words, "patient", "--mask", str(policy))
    assert again["same_as"] == "visits@1"
    bare = shoal.json(*words, "patient", "--no-mask")
    assert (bare["version"], bare["masking"]) == (2, None)
    refused = shoal("dataset", "policy", "visits")
    assert "visits@2 was not masked" in refused.stderr
    forget = ("dataset", "forget", "visits", "--column", "patient", "--value", "P3", "--yes")
    gone = shoal(*forget)
    assert "1 of visits@2, 1 of visits@1; these versions are erased" in gone.stdout, gone.output
    assert "without them: visits@3" in gone.stdout
    assert "P3" not in gone.stdout
