"""The agent's resident memory and cold start to the first inference, against bare onnxruntime.

Both are processes of their own, started in turns with the same environment; the bare one imports
onnxruntime, opens the same model and runs it once.
"""

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bench import clients, devices
from bench.measuring import compare, interleave
from bench.releases import INPUT, MODEL, make_release, perceptron
from bench.report import Aim, Found
from shoal.agent.host.io.folder import MODELS, SOCKET
from shoal.agent.serving.io.session import ENVIRONMENT

RSS, COLD = (Aim(at_most=most, on_difference=True) for most in (40.0, 0.5))
_BARE = "import onnxruntime, session, run"
_TICKS = os.sysconf("SC_CLK_TCK")


class Print(NamedTuple):
    """Measurements of one start: seconds and CPU seconds to the first inference, 2**20 bytes."""

    wall_s: float
    cpu_s: float
    rss: float
    pss: float
    private: float
    rss_later: float


def run(*, quick: bool) -> Found:
    requests, repetitions = (50, 1) if quick else (5_000, 11)
    release = make_release(perceptron(64), features=64)
    row = np.zeros((1, 64), np.float32)
    request = clients.infer_request(MODEL, INPUT, row)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "agent"
        devices.seed_folder(folder, release)
        model = folder / MODELS / MODEL / "a" / "fp32.onnx"
        sides: dict[str, Callable[[], Print]] = {
            "ours": lambda: _agent(folder, request, requests),
            "raw": lambda: bare(model),
        }
        found = interleave(repetitions, sides)
    ours, raw = found["ours"], found["raw"]

    def of(prints: Sequence[Print], field: str) -> list[float]:
        return [getattr(one, field) for one in prints]

    rows = [
        compare(what, unit, of(ours, field), of(raw, beside), against=_BARE, aim=aim)
        for what, unit, field, beside, aim in (
            ("resident memory after the first answer", "MB", "rss", "rss", None),
            (f"resident memory after {requests} more", "MB", "rss_later", "rss_later", RSS),
            ("memory of its own (private)", "MB", "private", "private", None),
            ("cold start to the first answer", "s", "wall_s", "wall_s", COLD),
            ("CPU time to the first answer", "s", "cpu_s", "cpu_s", None),
        )
    ]
    return Found(rows=rows)


def _agent(folder: Path, request: bytes, requests: int) -> Print:
    began = time.perf_counter()
    with devices.running(folder) as device, contextlib.ExitStack() as stack:
        connection = _first_answer(device, folder / SOCKET, request)
        wall = time.perf_counter() - began
        stack.enter_context(connection)
        cpu, memory = cpu_s(device.pid), devices.resident_mb(device.pid)
        clients.one_client(connection, request, requests)
        later = devices.resident_mb(device.pid)
        return Print(wall, cpu, memory["rss"], memory["pss"], memory["private"], later["rss"])


def _first_answer(device: devices.Device, path: Path, request: bytes) -> socket.socket:
    """Retry an inference until it succeeds; return its connection."""

    def look() -> socket.socket | None:
        with contextlib.suppress(OSError):
            connection = devices.connect(path)
            with contextlib.suppress(AssertionError):
                clients.ask(connection, request)
                return connection
            connection.close()
        return None

    found = device.until(look)
    assert found is not None
    return found


def bare(model: Path) -> Print:
    """Measurements of onnxruntime alone, with `model` loaded and run once."""
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.bare", str(model)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=devices.with_bytecode() | ENVIRONMENT | {"PYTHONPATH": str(Path(__file__).parents[1])},
    )
    with process:
        assert process.stdout is not None
        assert process.stdin is not None
        process.stdout.readline()
        wall = time.perf_counter() - began
        cpu, memory = cpu_s(process.pid), devices.resident_mb(process.pid)
        process.stdin.close()
    return Print(wall, cpu, memory["rss"], memory["pss"], memory["private"], memory["rss"])


def cpu_s(pid: int) -> float:
    """CPU seconds that a process has used, children not counted."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS
