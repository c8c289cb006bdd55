"""A disk of its own, full to the last block: the agent starts on it, and its model serves."""

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.test_process import put_slot
from real_agents import Process, enrol
from shoal.agent.io import reserve

TENSOR = {"name": "input", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small file system; a test without the right to mount one is skipped."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=48m", "tmpfs", disk]
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


def test_an_agent_that_starts_on_a_full_disk_serves(disk: Path) -> None:
    folder = enrol(disk).folder
    put_slot(folder)
    first = Process(folder)
    first.wait_until()
    first.end(signal.SIGKILL)
    assert (folder / reserve.NAME).stat().st_blocks * 512 >= reserve.SIZE
    fill(disk)
    assert os.statvfs(disk).f_bavail == 0
    again = Process(folder)
    try:
        again.wait_until()
        status, _ = again.ask("POST", "/v2/models/parts/infer", {"inputs": [TENSOR]})
        assert status == 200
        assert not (folder / reserve.NAME).exists()
    finally:
        again.end(signal.SIGKILL)
