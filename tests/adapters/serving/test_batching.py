"""Waiting requests run as one batch; a full queue responds with 503."""

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


class BlockedModel:
    """A model that blocks until `go` is set, and records the rows of each run."""

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
    """An endpoint whose model is slow by its probe's timings."""

    def __init__(self, folder: Path) -> None:
        release = engine(3)
        release.slot.timings_us["fp32"] = 5_000.0
        release.session = self.model = BlockedModel(3)
        super().__init__(folder, release)

    def waiting(self) -> int:
        """Requests in the model's queue."""
        queue = self.endpoint._shared.batcher._queues.get(MODEL)
        return len(queue._waiting) if queue else 0

    def until_waiting(self, count: int) -> None:
        """Wait until so many requests have arrived."""
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


def test_requests_that_arrive_while_a_model_runs_are_its_next_batch(slow: Slow) -> None:
    clients = [connect(slow.tcp) for _ in range(9)]
    clients[0].sendall(infer(0.0))
    assert slow.model.started.wait(10)
    for i, client in enumerate(clients[1:], 1):
        client.sendall(infer(i / 10))
    slow.until_waiting(8)
    slow.model.go.set()
    for i, client in enumerate(clients):
        status, found = read(client)
        assert (status, found["id"]) == (200, str(i / 10))
        want = softmax(np.array([[i / 10, -0.5]]), 3)[0]
        np.testing.assert_allclose(found["outputs"][0]["data"], want, rtol=1e-5)
        client.close()
    assert slow.model.runs == [1, 8]
    assert (slow.serving.vitals.requests, slow.serving.vitals.rows) == (9, 9)


def test_one_bad_request_fails_no_other_of_its_batch(slow: Slow) -> None:
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


def test_a_missing_value_is_refused_and_the_rest_of_the_batch_runs(slow: Slow) -> None:
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


def test_a_full_queue_responds_with_503_and_retry_after_and_empties(slow: Slow) -> None:
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


def test_a_request_is_run_by_the_release_that_served_when_it_arrived(slow: Slow) -> None:
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
            versions = [read(client)[1]["model_version"] for client in (one, other, late)]
    assert versions == ["3", "3", "4"]
    assert slow.model.runs == [1, 1]


def test_a_quick_model_responds_while_a_slow_one_runs(tmp_path: Path) -> None:
    release = engine(3)
    release.slot.timings_us["fp32"] = 5_000.0
    release.session = model = BlockedModel(3)
    running = Running(tmp_path, release, named("gaskets", engine(4)))
    with connect(running.tcp) as one, connect(running.tcp) as other:
        one.sendall(infer())
        assert model.started.wait(10)
        other.sendall(infer(model="gaskets"))
        assert read(other)[0] == 200
        model.go.set()
        assert read(one)[0] == 200
    running.stop()


def test_long_json_is_parsed_on_a_thread(tmp_path: Path) -> None:
    running = Running(tmp_path)
    rows = np.random.default_rng(0).normal(size=(4_000, 2)).astype(np.float32)
    tensor = {"name": "input", "shape": [4_000, 2], "datatype": "FP32", "data": rows.tolist()}
    body = json.dumps({"inputs": [tensor]}).encode()
    assert len(body) > LONG_JSON
    with connect(running.tcp) as client:
        client.sendall(request(body))
        status, found = read(client)
    assert status == 200
    np.testing.assert_allclose(
        np.reshape(found["outputs"][0]["data"], (4_000, 3)), softmax(rows, 3), rtol=1e-4
    )
    running.stop()
