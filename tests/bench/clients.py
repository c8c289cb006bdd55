"""Clients of the local endpoint: raw HTTP/1.1 on kept-alive sockets, as cheap as Python gets."""

import selectors
import socket
import time
from collections.abc import Sequence
from typing import cast

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
    """Seconds of each of about `calls` requests by clients at once, each waiting for its own."""
    with selectors.DefaultSelector() as selector:
        sent: dict[socket.socket, int] = {}
        for connection in connections:
            selector.register(connection, selectors.EVENT_READ, connection)
            connection.sendall(request)
            sent[connection] = time.perf_counter_ns()
        took: list[int] = []
        partial: dict[socket.socket, bytes] = dict.fromkeys(connections, b"")
        while sent:
            for key, _ in selector.select():
                connection = cast(socket.socket, key.data)
                partial[connection] += connection.recv(65_536)
                if not _is_whole(partial[connection]):
                    continue
                took.append(time.perf_counter_ns() - sent.pop(connection))
                partial[connection] = b""
                if len(took) + len(sent) < calls:
                    connection.sendall(request)
                    sent[connection] = time.perf_counter_ns()
    return np.array(took) * 1e-9


def _is_whole(answer: bytes) -> bool:
    """Whether head and body are all there; AssertionError for an answer that is no success."""
    head, found, body = answer.partition(_END)
    if not found:
        return False
    assert head.startswith(b"HTTP/1.1 200"), answer[:300]
    at = head.lower().index(b"content-length:") + 15
    return len(body) >= int(head[at:].split(b"\r\n", 1)[0])
