"""What devices send in rounds, in files: together, whole, and there again after a start."""

import os
from pathlib import Path

import pytest

from shoal.controller.federated.io.round_files import RoundFiles
from shoal.durable import write_durable
from shoal.errors import StorageError

ROUND = "walk.1"


def test_a_batch_is_one_file_and_is_read_by_device(tmp_path: Path) -> None:
    files = RoundFiles(tmp_path)
    with files.together():
        for name in ("d0", "d1", "d2"):
            files.put(ROUND, "update", name, name.encode() * 3)
        assert files.get(ROUND, "update", "d1") == b"d1d1d1"
        assert files.size(ROUND, "update", "d1") == 6
    assert [path.name for path in (tmp_path / ROUND).iterdir()] == ["batch.00000000"]
    for one in (files, RoundFiles(tmp_path)):
        assert one.devices(ROUND, "update") == ["d0", "d1", "d2"]
        assert one.get(ROUND, "update", "d2") == b"d2d2d2"
        assert (one.size(ROUND, "update", "d0"), one.has(ROUND, "update", "d3")) == (6, False)


def test_what_comes_again_takes_the_place_of_what_was_there(tmp_path: Path) -> None:
    files = RoundFiles(tmp_path)
    for data in (b"first", b"second", b"third"):
        files.put(ROUND, "measured", "d0", data)
    assert {one.get(ROUND, "measured", "d0") for one in (files, RoundFiles(tmp_path))} == {b"third"}


def test_a_failed_batch_keeps_nothing(tmp_path: Path) -> None:
    files = RoundFiles(tmp_path)

    def broken_off() -> None:
        with files.together():
            files.put(ROUND, "update", "d0", b"lost")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        broken_off()
    files.put(ROUND, "update", "d1", b"kept")
    for one in (files, RoundFiles(tmp_path)):
        assert one.devices(ROUND, "update") == ["d1"]


def test_many_large_updates_do_not_all_wait_in_memory(tmp_path: Path) -> None:
    files = RoundFiles(tmp_path)
    with files.together():
        for i in range(5):
            files.put(ROUND, "update", f"d{i}", bytes(3 << 20))
        assert len(list((tmp_path / ROUND).iterdir())) == 1
    assert {files.size(ROUND, "update", f"d{i}") for i in range(5)} == {3 << 20}


def test_a_disk_that_refuses_keeps_nothing_in_memory_either(tmp_path: Path, monkeypatch) -> None:
    files = RoundFiles(tmp_path)

    def full(*_: object) -> None:
        raise OSError(28, os.strerror(28))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StorageError, match="No space"):
            files.put(ROUND, "update", "d0", b"refused")
    files.put(ROUND, "update", "d1", b"kept")
    assert files.devices(ROUND, "update") == ["d1"]


def test_a_damaged_batch_is_as_if_it_were_not_there(tmp_path: Path) -> None:
    files = RoundFiles(tmp_path)
    files.put(ROUND, "update", "d0", b"damaged")
    files.put(ROUND, "update", "d1", b"sound")
    (tmp_path / ROUND / "batch.00000000").write_bytes(b"\x10\0\0\0" + b"\xc1" * 40)
    assert RoundFiles(tmp_path).devices(ROUND, "update") == ["d1"]


def test_files_of_a_version_that_kept_each_by_itself_are_read(tmp_path: Path) -> None:
    (tmp_path / ROUND).mkdir()
    write_durable(tmp_path / ROUND / "update.d0", b"of before")
    files = RoundFiles(tmp_path)
    files.put(ROUND, "update", "d1", b"of now")
    assert files.devices(ROUND, "update") == ["d0", "d1"]
    assert (files.get(ROUND, "update", "d0"), files.size(ROUND, "update", "d0")) == (
        b"of before",
        9,
    )


def test_a_deleted_rounds_name_starts_empty(tmp_path: Path) -> None:
    files = RoundFiles(tmp_path)
    files.put(ROUND, "update", "d0", b"old")
    files.forget(ROUND)
    assert (files.rounds(), files.devices(ROUND, "update")) == ([], [])
    files.put(ROUND, "update", "d1", b"new")
    assert files.devices(ROUND, "update") == ["d1"]
