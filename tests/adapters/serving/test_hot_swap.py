"""Releases swap under load: no request fails, each response is of one release, no memory leaks.

`make soak` swaps 1 000 times.
"""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from endpoints import connect, read, request
from real_models import FEATURES, answers, mlp, put_release

SOAK = bool(os.environ.get("SHOAL_SOAK"))
SWAPS, CLIENTS = 1_000 if SOAK else 60, 8
#: MB that the allocator may retain, whatever the number of swaps.
SLACK_MB = 8.0
ROWS = np.random.default_rng(5).normal(size=(2, FEATURES)).astype(np.float32)


@pytest.fixture
def server(tmp_path: Path) -> Iterator["subprocess.Popen[str]"]:
    for version, slot in ((1, "a"), (2, "b")):
        put_release(tmp_path / slot, version=version, models={"fp32": model(version)})
    command = [sys.executable, Path(__file__).with_name("swap_server.py"), tmp_path]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        yield process
        process.kill()


def model(version: int) -> bytes:
    """1.5 MB, so that a leak shows."""
    return mlp(hidden=600, layers=2, seed=version).SerializeToString()


class Client(threading.Thread):
    """Sends requests as fast as it can; counts responses by release, and records wrong ones."""

    def __init__(self, port: int, ended: threading.Event) -> None:
        super().__init__(daemon=True)
        self._port, self._ended = port, ended
        self._want = {str(version): answers(model(version), ROWS) for version in (1, 2)}
        self.responses = {"1": 0, "2": 0}
        self.wrong: list[str] = []

    def run(self) -> None:
        tensor = {"name": "input", "shape": [2, FEATURES], "datatype": "FP32"}
        body = json.dumps({"inputs": [tensor | {"data": ROWS.ravel().tolist()}]}).encode()
        try:
            with connect(("127.0.0.1", self._port)) as connection:
                while not self._ended.is_set():
                    connection.sendall(request(body, model="parts"))
                    self._check(*read(connection))
        except OSError as error:
            self.wrong.append(repr(error))

    def _check(self, status: int, found: dict) -> None:
        if status != 200:
            self.wrong.append(f"{status} {found}")
            return
        version, output = found["model_version"], found["outputs"][0]
        self.responses[version] += 1
        got = np.reshape(output["data"], output["shape"])
        if not np.allclose(got, self._want[version], atol=1e-6):
            self.wrong.append(f"release {version} with another's output")


@pytest.mark.slow
@pytest.mark.timeout(1_200)
def test_swaps_under_load_fail_no_request_and_leave_no_memory(
    server: "subprocess.Popen[str]",
) -> None:
    assert server.stdin is not None
    assert server.stdout is not None
    port, ended = int(server.stdout.readline()), threading.Event()
    clients = [Client(port, ended) for _ in range(CLIENTS)]
    for client in clients:
        client.start()

    def swap(times: int) -> float:
        print(times, file=server.stdin, flush=True)
        return float(server.stdout.readline())

    before = swap(20)  # memory of the first sessions and connections
    after = swap(SWAPS)
    ended.set()
    for client in clients:
        client.join(10)
    total = sum(sum(client.responses.values()) for client in clients)
    print(f"{SWAPS} swaps, {total} requests, {before:.1f} MB before, {after:.1f} MB after")
    assert [client.wrong for client in clients] == [[]] * CLIENTS
    assert all(min(client.responses.values()) > 0 for client in clients)
    assert after - before < SLACK_MB
