"""A file system full to the last block: the agent starts on it, and its model serves."""

import contextlib
import http.client
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from adapters.update.test_kills import Site, finish, state_of
from ports import free_port
from real_agents import Process, enrol, put_in_service
from shoal.agent.doctor import check_disk
from shoal.agent.host.io import disk_reserve
from shoal.agent.host.io.folder import runs_as
from shoal.agent.installed.io.journal import read_records
from shoal.agent.status_reader import read_status

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


def use_up(folder: Path, disk: Path) -> None:
    """Take the reserve too: not a byte is left, for the second time."""
    (folder / disk_reserve.NAME).unlink(missing_ok=True)
    with (disk / "ballast").open("ab", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))


def test_without_a_reserve_it_serves_and_says_what_is_wrong_until_there_is_room(
    folder: Path, disk: Path
) -> None:
    use_up(folder, disk)
    process = Process(folder)
    try:
        process.wait_until()
        assert process.request("POST", "/v2/models/parts/infer", {"inputs": [TENSOR]})[0] == 200
        process.wait_for(lambda: names(process.request("GET", "/status")[1], "disk-full"))
        assert process.request("GET", "/status")[1]["waiting"] > 0, "and tells the controller"
    finally:
        assert process.end() == 0
    (disk / "ballast").unlink()
    serves(folder)
    assert read_records(folder / "journal.db")["parts"].serving is not None


@pytest.mark.parametrize("left_by", [signal.SIGKILL, signal.SIGTERM])
def test_on_a_read_only_disk_the_committed_release_serves(disk: Path, left_by: int) -> None:
    """Killed, it has left commits in the write-ahead log alone."""
    folder = enrol(disk).folder
    put_in_service(folder)
    first = Process(folder)
    first.wait_until()
    first.end(left_by)
    port = free_port()
    with (folder / "agent.toml").open("a") as settings:
        settings.write(f"[endpoint]\nport = {port}\n")
    before = sorted(path.name for path in folder.iterdir())
    remount(disk, "ro")
    process = Process(folder)
    try:
        body = {"inputs": [TENSOR]}
        process.wait_for(lambda: ask(port, "POST", "/v2/models/parts/infer", body)[0] == 200)
        process.wait_for(lambda: names(ask(port, "GET", "/status")[1], "storage"))
        assert read_status(folder).running, "by its fixed port: nothing is written down"
        assert runs_as(folder) == process.process.pid
        assert "mount the disk writable" in check_disk(folder).hint
    finally:
        assert process.end() == 0
        remount(disk, "rw")
    assert sorted(path.name for path in folder.iterdir()) == before
    serves(folder)


def names(status: dict[str, Any], cause: str) -> bool:
    """Whether a status names a fault of this cause."""
    return any(fault.startswith(f"{cause}: ") for fault in status["faults"])


def remount(disk: Path, mode: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{mode}", disk], check=True)


def ask(port: int, method: str, path: str, body: object = None) -> tuple[int, Any]:
    """Status and content of a request by TCP: a read-only disk takes no Unix socket."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request(method, path, json.dumps(body) if body else None)
    response = connection.getresponse()
    content = json.loads(response.read())
    connection.close()
    return response.status, content


@pytest.mark.parametrize("size", ["16m"])
def test_a_small_disk_has_a_reserve_too(disk: Path, size: str) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", disk], check=True)
    assert not disk_reserve.adjust_reserve(disk)
    assert (disk / disk_reserve.NAME).stat().st_blocks * 512 >= disk_reserve.SIZE


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
