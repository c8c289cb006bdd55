"""Clients of the local endpoint: raw HTTP/1.1 on kept-alive sockets, as cheap as Python gets."""

import select
import socket
import time
from collections.abc import Sequence

import numpy as np
import orjson

from bench.measuring import F64, latencies
from shoal.sketch import F32

_END = b"\r\n\r\n"


def infer_request(model: str, given: str, rows: F32) -> bytes:
    """A whole request of the Open Inference Protocol, JSON."""
    tensor = {"name": given, "shape": list(rows.shape), "datatype": "FP32", "data": rows.ravel()}
    body = orjson.dumps({"inputs": [tensor]}, option=orjson.OPT_SERIALIZE_NUMPY)
    head = f"POST /v2/models/{model}/infer HTTP/1.1\r\nHost: a\r\n"
    return (
        f"{head}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode(
            "ascii"
        )
        + body
    )


def ask(connection: socket.socket, request: bytes) -> bytes:
    """Send one request, wait for its answer; the body."""
    connection.sendall(request)
    answer = connection.recv(65_536)
    while not _is_whole(answer):
        answer += connection.recv(65_536)
    return answer


def one_client(connection: socket.socket, request: bytes, calls: int) -> F64:
    """Seconds of each request of one client that waits for every answer."""
    return latencies(lambda: ask(connection, request), calls)


def many_clients(connections: Sequence[socket.socket], request: bytes, calls: int) -> F64:
    """Seconds of each of about `calls` requests by clients at once, each waiting for its own.

    Written for speed, for it takes a core as the server does: an answer as long as the last one
    that was read through is taken to be whole.
    """
    by_number = {connection.fileno(): connection for connection in connections}
    partial: dict[int, bytes] = {}
    sent: dict[int, int] = {}
    took: list[int] = []
    usual, now = 0, time.perf_counter_ns
    with select.epoll() as ready:
        for number, connection in by_number.items():
            ready.register(number, select.EPOLLIN)
            sent[number] = now()
            connection.sendall(request)
        while sent:
            for number, _ in ready.poll():
                connection = by_number[number]
                answer = connection.recv(65_536)
                if number in partial:
                    answer = partial.pop(number) + answer
                if len(answer) != usual:
                    if not _is_whole(answer):
                        assert answer, "the server hung up"
                        partial[number] = answer
                        continue
                    usual = len(answer)
                assert answer.startswith(b"HTTP/1.1 200"), answer[:300]
                began, at = sent.pop(number), now()
                took.append(at - began)
                if len(took) + len(sent) < calls:
                    sent[number] = at
                    connection.sendall(request)
    return np.array(took) * 1e-9


def _is_whole(answer: bytes) -> bool:
    """Whether head and body are all there; AssertionError for an answer that is no success."""
    head, found, body = answer.partition(_END)
    if not found:
        return False
    assert head.startswith(b"HTTP/1.1 200"), answer[:300]
    at = head.lower().index(b"content-length:") + 15
    return len(body) >= int(head[at:].split(b"\r\n", 1)[0])
