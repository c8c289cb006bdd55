"""Requests that wait together are run together; a queue that is full says so."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from devices import MODEL, engine, softmax
from endpoints import Running, connect, infer, named, read, read_whole, request
from shoal.agent.serving.io.batching import QUEUE
from shoal.agent.serving.routes import LONG_JSON
from shoal.errors import ModelError
from shoal.wire import Health


class Held:
    """A model that stands still until it is let go, and remembers how many rows came at once."""

    def __init__(self, version: int) -> None:
        self.version, self.runs = version, list[int]()
        self.started, self.go = threading.Event(), threading.Event()
        self.odd = 0.0

    def run(self, rows: np.ndarray) -> np.ndarray:
        self.runs.append(len(rows))
        self.started.set()
        assert self.go.wait(20)
        if self.odd in rows and self.odd:
            raise ModelError("these rows break it")
        return softmax(rows, self.version).astype(np.float32)


class Slow(Running):
    """An endpoint whose model takes long, as its probe has found out."""

    def __init__(self, folder: Path) -> None:
        release = engine(3)
        release.slot.timings_us["fp32"] = 5_000.0
        release.session = self.model = Held(3)
        super().__init__(folder, release)

    def waiting(self) -> int:
        """Requests in the model's queue."""
        queue = self.endpoint._shared.batcher._queues.get(MODEL)
        return len(queue._waiting) if queue else 0

    def until_waiting(self, count: int) -> None:
        """Requests arrive when they arrive: look until so many have."""
        for _ in range(10_000):
            if self.waiting() == count:
                return
            threading.Event().wait(0.001)
        pytest.fail(f"{self.waiting()} wait, not {count}")


@pytest.fixture
def slow(tmp_path: Path) -> Iterator[Slow]:
    running = Slow(tmp_path)
    yield running
    running.model.go.set()
    running.stop()


def test_what_comes_while_a_model_runs_is_its_next_run(slow: Slow) -> None:
    clients = [connect(slow.tcp) for _ in range(9)]
    clients[0].sendall(infer(0.0))
    assert slow.model.started.wait(10)
    for i, client in enumerate(clients[1:], 1):
        client.sendall(infer(i / 10))
    slow.until_waiting(8)
    slow.model.go.set()
    for i, client in enumerate(clients):
        status, said = read(client)
        assert (status, said["id"]) == (200, str(i / 10))
        want = softmax(np.array([[i / 10, -0.5]]), 3)[0]
        np.testing.assert_allclose(said["outputs"][0]["data"], want, rtol=1e-5)
        client.close()
    assert slow.model.runs == [1, 8]
    assert (slow.serving.vitals.requests, slow.serving.vitals.rows) == (9, 9)


def test_one_bad_request_does_not_spoil_its_neighbours(slow: Slow) -> None:
    slow.model.odd = 0.25
    clients = [connect(slow.tcp) for _ in range(4)]
    clients[0].sendall(infer(0.0))
    assert slow.model.started.wait(10)
    for client, number in zip(clients[1:], (0.5, 0.25, 0.75), strict=True):
        client.sendall(infer(number))
    slow.until_waiting(3)
    slow.model.go.set()
    assert [read(client)[0] for client in clients] == [200, 200, 500, 200]
    for client in clients:
        client.close()
    assert slow.serving.vitals.errors == 1


def test_a_missing_value_is_refused_and_its_neighbours_are_answered(slow: Slow) -> None:
    clients = [connect(slow.tcp) for _ in range(3)]
    clients[0].sendall(infer(0.0))
    assert slow.model.started.wait(10)
    clients[1].sendall(infer(0.5))
    clients[2].sendall(request(infer(0.5).partition(b"\r\n\r\n")[2].replace(b"[0.5", b"[null")))
    slow.until_waiting(2)
    slow.model.go.set()
    assert [read(client)[0] for client in clients] == [200, 200, 400]
    for client in clients:
        client.close()


def test_a_full_queue_tells_when_to_come_back_and_empties(slow: Slow) -> None:
    clients = [connect(slow.tcp) for _ in range(QUEUE + 2)]
    clients[0].sendall(infer())
    assert slow.model.started.wait(10)
    for client in clients[1:-1]:
        client.sendall(infer())
    slow.until_waiting(QUEUE)
    clients[-1].sendall(infer())
    status, headers, body = read_whole(clients[-1])
    assert (status, headers["retry-after"]) == (503, "1")
    assert f"{QUEUE} requests wait for '{MODEL}'" in json.loads(body)["error"]
    slow.model.go.set()
    assert {read(client)[0] for client in clients[:-1]} == {200}
    clients[-1].sendall(infer())
    assert read(clients[-1])[0] == 200
    for client in clients:
        client.close()


def test_a_request_is_answered_by_the_release_it_began_with(slow: Slow) -> None:
    with connect(slow.tcp) as one, connect(slow.tcp) as other:
        one.sendall(infer())
        assert slow.model.started.wait(10)
        other.sendall(infer())
        slow.until_waiting(1)
        slow.serving.swap(engine(4), Health())
        with connect(slow.tcp) as late:
            late.sendall(infer())
            slow.until_waiting(2)
            slow.model.go.set()
            answers = [read(client)[1]["model_version"] for client in (one, other, late)]
    assert answers == ["3", "3", "4"]
    assert slow.model.runs == [1, 1]


def test_a_quick_model_answers_while_a_slow_one_runs(tmp_path: Path) -> None:
    release = engine(3)
    release.slot.timings_us["fp32"] = 5_000.0
    release.session = model = Held(3)
    running = Running(tmp_path, release, named("gaskets", engine(4)))
    with connect(running.tcp) as one, connect(running.tcp) as other:
        one.sendall(infer())
        assert model.started.wait(10)
        other.sendall(infer(model="gaskets"))
        assert read(other)[0] == 200
        model.go.set()
        assert read(one)[0] == 200
    running.stop()


def test_long_json_is_read_beside_the_loop_and_answered(tmp_path: Path) -> None:
    running = Running(tmp_path)
    rows = np.random.default_rng(0).normal(size=(4_000, 2)).astype(np.float32)
    tensor = {"name": "input", "shape": [4_000, 2], "datatype": "FP32", "data": rows.tolist()}
    body = json.dumps({"inputs": [tensor]}).encode()
    assert len(body) > LONG_JSON
    with connect(running.tcp) as client:
        client.sendall(request(body))
        status, said = read(client)
    assert status == 200
    np.testing.assert_allclose(
        np.reshape(said["outputs"][0]["data"], (4_000, 3)), softmax(rows, 3), rtol=1e-4
    )
    running.stop()
