"""The local endpoint on real sockets: right responses in order, and limits for every client."""

import contextlib
import json
import resource
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from devices import MODEL, engine, softmax
from endpoints import Running, connect, infer, named, read, read_whole, request
from shoal.agent.serving.io import endpoint
from shoal.agent.serving.io.endpoint import CONNECTIONS, HEAD, WAITING
from shoal.agent.serving.protocol import BODY
from shoal.signature import Signature
from tensor_models import MODEL as TENSORS
from tensor_models import engine_of, tensor
from waiting import eventually

ROW = [0.5, -0.5]


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    running = Running(tmp_path)
    yield running
    running.stop()


@pytest.mark.parametrize("where", ["tcp", "path"])
def test_a_request_gets_its_response_on_both_sockets(running: Running, where: str) -> None:
    with connect(getattr(running, where)) as client:
        for _ in range(3):
            client.sendall(infer())
            status, found = read(client)
            assert status == 200
            np.testing.assert_allclose(
                found["outputs"][0]["data"], softmax(np.array([ROW]), 3)[0], rtol=1e-5
            )


def test_a_request_sent_byte_by_byte_gets_its_response(running: Running) -> None:
    with connect(running.tcp) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in infer():
            client.sendall(bytes([byte]))
        assert read(client)[0] == 200


def test_responses_to_requests_sent_at_once_are_in_order_even_when_some_are_slow(
    running: Running,
) -> None:
    assert running.serving.engine is not None
    running.serving.engine.slot.timings_us["fp32"] = 5_000.0
    with connect(running.tcp) as client:
        client.sendall(b"".join(infer(i / 100) for i in range(1, 21)))
        file = client.makefile("rb").read1
        data = b""
        while data.count(b'"id"') < 20:
            data += file(1 << 16)
    at = [data.index(f'"id":"{i / 100}"'.encode()) for i in range(1, 21)]
    assert at == sorted(at)


REFUSED = {
    "not HTTP": (b"\x16\x03\x01 hello\r\n\r\n", 400),
    "a length that is none": (b"POST /v2 HTTP/1.1\r\nContent-Length: ten\r\n\r\n", 400),
    "endless headers": (b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * HEAD, 431),
    "an endless path": (b"GET /" + b"a" * 2 * HEAD, 431),
    "a body announced too large": (
        f"POST /v2 HTTP/1.1\r\nHost: x\r\nContent-Length: {BODY + 1}\r\n\r\n".encode(),
        413,
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_client_gets_an_error_and_is_disconnected_that_sends(kind: str, running: Running) -> None:
    data, wanted = REFUSED[kind]
    with connect(running.tcp) as client:
        client.sendall(data)
        status, found = read(client)
        assert status == wanted
        assert found["error"]
        assert client.recv(1) == b""
    with connect(running.tcp) as client:
        client.sendall(infer())
        assert read(client)[0] == 200


def test_a_body_that_turns_out_too_large_is_refused_while_it_is_sent(running: Running) -> None:
    with connect(running.tcp) as client:
        client.sendall(b"POST /v2 HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        chunk = b"100000\r\n" + b" " * (1 << 20) + b"\r\n"
        with contextlib.suppress(OSError):
            for _ in range(BODY // (1 << 20) + 1):
                client.sendall(chunk)
        assert read(client)[0] == 413


def test_too_many_requests_at_once_on_one_connection_are_refused(running: Running) -> None:
    assert running.serving.engine is not None
    running.serving.engine.slot.timings_us["fp32"] = 5_000.0
    with connect(running.tcp) as client:
        client.sendall(infer() * (3 * WAITING))
        data = b""
        while b"503" not in data and (more := client.recv(1 << 16)):
            data += more
        assert b"503" in data


def test_connections_are_bounded_and_come_free_again(running: Running) -> None:
    clients = [connect(running.path) for _ in range(CONNECTIONS)]
    with connect(running.path) as late:
        assert read(late)[0] == 503
    for client in clients:
        client.close()
    for _ in range(100):
        with connect(running.path) as client:
            client.sendall(infer())
            if read(client)[0] == 200:
                return
    pytest.fail("no connection came free")


def test_a_request_to_upgrade_the_protocol_gets_an_http_response(running: Running) -> None:
    upgrade = b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n\x00\x01\x02"
    with connect(running.tcp) as client:
        client.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n" + upgrade)
        assert read(client) == (200, {"live": True})
        assert client.recv(1) == b""


def test_a_client_of_http_1_0_gets_its_response_and_is_disconnected(running: Running) -> None:
    with connect(running.tcp) as client:
        client.sendall(b"GET /v2/health/live HTTP/1.0\r\n\r\n")
        assert read(client) == (200, {"live": True})
        assert client.recv(1) == b""


def test_a_client_that_expects_100_continue_gets_it(running: Running) -> None:
    head, _, body = infer().partition(b"\r\n\r\n")
    with connect(running.tcp) as client:
        client.sendall(head + b"\r\nExpect: 100-continue\r\n\r\n")
        assert client.recv(100).startswith(b"HTTP/1.1 100")
        client.sendall(body)
        assert read(client)[0] == 200


def test_a_path_too_long_for_a_socket_costs_only_that_socket(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 120)
    folder.mkdir()
    running = Running(folder)
    with connect(running.tcp) as client:
        client.sendall(infer())
        assert read(client)[0] == 200
    running.stop()


def test_a_binary_request_can_get_a_binary_response(running: Running) -> None:
    rows = np.array([ROW, [1, 2]], np.float32)
    tensor = {"name": "input", "shape": [2, 2], "datatype": "FP32"}
    tensor |= {"parameters": {"binary_data_size": 16}}
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    with connect(running.tcp) as client:
        length = f"Inference-Header-Content-Length: {len(head)}"
        client.sendall(request(head + rows.tobytes(), length))
        status, headers, body = read_whole(client)
    assert (status, headers["content-type"]) == (200, "application/octet-stream")
    at = int(headers["inference-header-content-length"])
    assert json.loads(body[:at])["outputs"][0]["shape"] == [2, 3]
    outputs = np.frombuffer(body[at:], "<f4").reshape(2, 3)
    np.testing.assert_allclose(outputs, softmax(rows, 3), rtol=1e-5)


def large(number: float, *headers: str) -> bytes:
    """A request of 50 000 rows as bytes, more than is read at once; its id is the number."""
    rows = np.full((50_000, 2), number, np.float32)
    tensor = {"name": "input", "shape": [50_000, 2], "datatype": "FP32",
              "parameters": {"binary_data_size": rows.nbytes}}  # fmt: skip
    outputs = [{"name": "output", "parameters": {"binary_data": True}}]
    head = json.dumps({"id": str(number), "inputs": [tensor], "outputs": outputs}).encode()
    length = f"Inference-Header-Content-Length: {len(head)}"
    return request(head + rows.tobytes(), length, *headers)


def assert_answers(client: socket.socket, *numbers: float) -> None:
    file = client.makefile("rb")
    for number in numbers:
        assert b" 200 " in file.readline()
        headers = dict(line.strip().lower().split(b": ") for line in iter(file.readline, b"\r\n"))
        body = file.read(int(headers[b"content-length"]))
        at = int(headers[b"inference-header-content-length"])
        assert json.loads(body[:at])["id"] == str(number)
        outputs = np.frombuffer(body[at:], np.float32).reshape(-1, 3)
        wanted = softmax(np.array([[number, number]]), 3)
        np.testing.assert_allclose(outputs, np.repeat(wanted, 50_000, 0), rtol=1e-5)


def sent_in_pieces(client: socket.socket, data: bytes, size: int) -> None:
    def send() -> None:
        for start in range(0, len(data), size):
            client.sendall(data[start : start + size])

    threading.Thread(target=send, daemon=True).start()


@pytest.mark.parametrize("size", [1_000_000, 60_000, 7_001])
def test_large_requests_sent_one_behind_the_other_are_answered_in_order(
    running: Running, size: int
) -> None:
    with connect(running.tcp) as client:
        client.sendall(infer(0.5))
        assert read(client)[1]["id"] == "0.5"
        sent_in_pieces(client, large(0.75) + large(1.0) + large(0.25) + infer(0.5), size)
        assert_answers(client, 0.75, 1.0, 0.25)


def test_a_client_that_leaves_within_a_large_request_leaves_nothing_behind(
    running: Running,
) -> None:
    shared = running.endpoint._shared
    for part in (2_000, 200_000, 399_000):
        with connect(running.tcp) as client:
            client.sendall(large(0.5)[:part])
            eventually(lambda: shared.pending > 0, "a part of its body")
        eventually(lambda: not shared.connections, "the client is gone")
        assert shared.pending == 0
    with connect(running.tcp) as client:
        client.sendall(large(0.5))
        assert_answers(client, 0.5)


def test_a_large_request_is_sent_when_the_agent_says_so(running: Running) -> None:
    data = large(0.5, "Expect: 100-continue")
    end = data.index(b"\r\n\r\n") + 4
    with connect(running.tcp) as client:
        client.sendall(data[:end])
        assert client.recv(100).startswith(b"HTTP/1.1 100 ")
        client.sendall(data[end:] + large(0.25))
        assert_answers(client, 0.5, 0.25)


@pytest.mark.parametrize(
    "lie",
    ["Transfer-Encoding: chunked", "Content-Length: 5"],
)
def test_a_large_request_with_two_lengths_is_refused(running: Running, lie: str) -> None:
    with connect(running.tcp) as client:
        with contextlib.suppress(OSError):
            client.sendall(large(0.5, lie))
        assert read(client)[0] == 400


def test_headers_alone_take_no_memory(running: Running) -> None:
    before = resident_mb()
    head = (
        b"POST /v2/models/m/infer HTTP/1.1\r\nHost: x\r\nInference-Header-Content-Length: 10\r\n"
        b"Content-Length: 8000000\r\n\r\n"
    )
    with contextlib.ExitStack() as stack:
        for _ in range(100):
            stack.enter_context(connect(running.tcp)).sendall(head + b"{")
        eventually(lambda: running.endpoint._shared.pending == 100, "their bodies began")
        assert resident_mb() - before < 100


class _Generous:
    """A session that answers with 4 MB, and counts its runs."""

    runs = 0

    def run_tensors(self, feeds: object, outputs: object) -> list[np.ndarray]:
        self.runs += 1
        return [np.zeros(1 << 20, np.float32)]


def test_a_client_that_reads_no_response_is_answered_no_further(tmp_path: Path) -> None:
    session = _Generous()
    signature = Signature(
        inputs=[tensor("x", "INT8", [1])], outputs=[tensor("y", "FP32", ["length"])]
    )
    running = Running(tmp_path, engine_of(signature, session))
    asked = {
        "inputs": [{"name": "x", "datatype": "INT8", "shape": [1], "data": [1]}],
        "parameters": {"binary_data_output": True},
    }
    one = request(json.dumps(asked).encode(), model=TENSORS)
    with connect(running.tcp) as client:
        client.sendall(one * WAITING)
        eventually(lambda: session.runs > 0, "the first response")
        with connect(running.tcp) as other:
            for _ in range(5):
                other.sendall(infer(0.5))
                assert read(other)[0] == 404
        assert session.runs < 8
        file = client.makefile("rb")
        for _ in range(WAITING):
            assert b" 200 " in file.readline()
            headers = dict(
                line.strip().lower().split(b": ") for line in iter(file.readline, b"\r\n")
            )
            file.read(int(headers[b"content-length"]))
    assert session.runs == WAITING
    running.stop()


def resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / (1 << 20)


@pytest.mark.parametrize("length", ["-1", "ten", "1e3", str(1 << 60)])
def test_a_length_of_json_that_is_none_is_refused(running: Running, length: str) -> None:
    with connect(running.tcp) as client:
        client.sendall(request(b"{}", f"Inference-Header-Content-Length: {length}"))
        status, found = read(client)
    assert (status, "Inference-Header-Content-Length" in found["error"]) == (400, True)


def test_a_compressed_body_is_refused_by_name(running: Running) -> None:
    with connect(running.tcp) as client:
        client.sendall(request(b"\x1f\x8b", "Content-Encoding: gzip"))
        status, found = read(client)
    assert (status, "compressed" in found["error"]) == (415, True)


def test_several_models_serve_side_by_side(tmp_path: Path) -> None:
    running = Running(tmp_path, engine(3), named("gaskets", engine(4)))
    try:
        with connect(running.tcp) as client:
            for model, version in ((MODEL, 3), ("gaskets", 4), (MODEL, 3)):
                client.sendall(infer(model=model))
                status, found = read(client)
                assert (status, found["model_name"], found["model_version"]) == (
                    200,
                    model,
                    str(version),
                )
                want = softmax(np.array([ROW]), version)[0]
                np.testing.assert_allclose(found["outputs"][0]["data"], want, rtol=1e-5)
    finally:
        running.stop()


def test_bytes_of_requests_without_a_response_are_bounded_over_all_clients(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoint, "PENDING", 3_000)
    with connect(running.tcp) as one, connect(running.tcp) as other:
        half = request(b" " * 4_000)[:-2_000]
        one.sendall(half)
        other.sendall(half)
        status, headers, _ = read_whole(other)
        assert (status, headers["retry-after"]) == (503, "1")
    with connect(running.tcp) as client:
        client.sendall(infer())
        assert read(client)[0] == 200
