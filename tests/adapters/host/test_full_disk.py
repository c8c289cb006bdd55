"""A file system full to the last block: the agent starts on it, and its model serves."""

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from adapters.update.test_kills import Site, finish, state_of
from real_agents import PATIENCE_S, Process, enrol, put_in_service
from shoal.agent.host.io import disk_reserve

TENSOR = {"name": "input", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small file system; skipped without the right to mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", disk]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("only root may mount a small file system")
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


def fill(disk: Path) -> None:
    with (disk / "ballast").open("wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            try:
                while True:
                    file.write(b"\0" * size)
            except OSError:
                continue


@pytest.fixture
def folder(disk: Path) -> Path:
    """Folder of an agent that served a model and was killed, on a disk that is full since."""
    folder = enrol(disk).folder
    put_in_service(folder)
    first = Process(folder)
    first.wait_until()
    first.end(signal.SIGKILL)
    assert (folder / disk_reserve.NAME).stat().st_blocks * 512 >= disk_reserve.SIZE
    fill(disk)
    assert os.statvfs(disk).f_bavail == 0
    return folder


def serves(folder: Path) -> None:
    process = Process(folder)
    try:
        process.wait_until()
        status, content = process.request("POST", "/v2/models/parts/infer", {"inputs": [TENSOR]})
        assert status == 200
        assert sum(content["outputs"][0]["data"]) == pytest.approx(1.0, abs=1e-5)
    finally:
        process.end(signal.SIGKILL)


def test_an_agent_that_starts_on_a_full_disk_serves_again_and_again(folder: Path) -> None:
    for _ in range(3):
        serves(folder)
        assert not (folder / disk_reserve.NAME).exists()


def test_without_its_reserve_it_does_not_start_and_logs_why(folder: Path, disk: Path) -> None:
    (folder / disk_reserve.NAME).unlink()
    with (disk / "ballast").open("ab", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    process = Process(folder)
    _, log = process.process.communicate(timeout=PATIENCE_S)
    assert process.process.returncode != 0
    assert "No space left on device" in log or "disk is full" in log, log


def test_once_there_is_free_space_the_reserve_is_allocated_again(folder: Path, disk: Path) -> None:
    serves(folder)
    (disk / "ballast").unlink()
    serves(folder)
    assert (folder / disk_reserve.NAME).stat().st_blocks * 512 >= disk_reserve.SIZE


@pytest.mark.parametrize("left", [0, 100_000])
def test_a_disk_that_fills_in_a_download_costs_the_attempt_and_nothing_else(
    disk: Path, left: int
) -> None:
    """Without a free byte for the journal the attempt ends once there is one."""
    site = Site(disk, observe_s=0.5, max_kbps=300)
    try:
        site.serve_first()
        site.assign()
        process = Process(site.folder)
        try:
            process.wait_for(lambda: bool(site.parts()))
            fill(disk)
            ballast = disk / "ballast"
            os.truncate(ballast, ballast.stat().st_size - left)
            process.wait_for(lambda: not site.parts())  # deleting the partial file freed space
            status, _ = process.request("POST", "/v2/models/parts/infer", {"inputs": [TENSOR]})
            assert status == 200
            if not left:
                ballast.unlink()
            process.wait_for(lambda: state_of(process) == "REJECTED")
            process.wait_for(
                lambda: site.reported_states()[-1] == "REJECTED"
            )  # the outbox had no space either
        finally:
            process.end(signal.SIGKILL)
        ballast.unlink(missing_ok=True)
        record = site.record()
        assert (record.cause, record.serving.release) == ("disk-full", "parts@1")
        assert site.reported_states()[-1] == "REJECTED"
        site.assign()
        finish(site)
        assert site.ended() == "SUCCEEDED"
    finally:
        site.artifacts.stop()
