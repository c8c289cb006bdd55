"""A cached header is not parsed again, and the response is the same as without the cache."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from endpoints import Running, connect, infer, read
from shoal.agent.serving.io.endpoint import (
    CACHED_HEAD,
    CACHED_HEADERS,
    HeaderCache,
    ParsedHeader,
)

PATH = "/v2/models/lot-codes/infer"


def post(body: bytes, *headers: str, version: str = "1.1") -> bytes:
    lines = [f"POST {PATH} HTTP/{version}", "Host: a", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


def cache_of(*requests: bytes) -> HeaderCache:
    cache = HeaderCache()
    for request in requests:
        length = len(request.partition(b"\r\n\r\n")[2])
        cache.add(memoryview(request), ParsedHeader(PATH, length, -1))
    return cache


def test_a_whole_request_with_a_cached_header_is_split():
    cache = cache_of(post(b"first"))
    assert cache.find(memoryview(post(b"other"))) == (ParsedHeader(PATH, 5, -1), b"other")


@pytest.mark.parametrize(
    "data",
    [
        post(b"longer"),
        post(b"first", "X: y"),
        post(b"first")[:-1],
        post(b"first") + b"P",
        post(b"first") * 2,
        post(b"first")[1:],
        b"",
        b"\r\n\r\n",
    ],
)
def test_anything_else_is_left_to_the_parser(data: bytes):
    assert cache_of(post(b"first")).find(memoryview(data)) is None


def test_a_read_of_more_than_one_request_is_not_cached():
    cache = HeaderCache()
    cache.add(memoryview(post(b"first") * 2), ParsedHeader(PATH, 5, -1))
    assert cache.find(memoryview(post(b"first"))) is None


def test_the_cache_is_bounded():
    cache = cache_of(*(post(b"body", f"X-Number: {n}") for n in range(3 * CACHED_HEADERS)))
    assert len(cache._known) <= CACHED_HEADERS
    long = post(b"body", "X: " + "y" * CACHED_HEAD)
    assert cache_of(long).find(memoryview(long)) is None


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    running = Running(tmp_path)
    yield running
    running.stop()


def body(number: float) -> bytes:
    return infer(number).partition(b"\r\n\r\n")[2]


def cached(running: Running) -> int:
    return len(running.endpoint._shared.headers._known)


def exchange(client: socket.socket, data: bytes) -> tuple[int, object]:
    client.sendall(data)
    return read(client)


def test_the_same_header_again_gets_the_response_to_the_new_body(running: Running) -> None:
    with connect(running.tcp) as one, connect(running.tcp) as two:
        for client, number in ((one, 0.1), (one, 0.2), (two, 0.3), (two, 0.4)):
            status, found = exchange(client, post(body(number)))
            assert (status, found["id"]) == (200, str(number))
    assert cached(running) == 1


@pytest.mark.parametrize(
    "data",
    [
        post(body(0.1), "Connection: close"),
        post(body(0.1), "Expect: 100-continue"),
        post(body(0.1), version="1.0"),
        post(body(0.1)).replace(b"POST", b"PUT"),
        post(body(0.1), "Connection: Upgrade", "Upgrade: websocket"),
        f"POST {PATH} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
        f"{len(body(0.1)):x}\r\n{body(0.1).decode()}\r\n0\r\n\r\n".encode(),
    ],
    ids=["close", "expect", "1.0", "PUT", "upgrade", "chunked"],
)
def test_a_header_with_more_than_a_length_is_always_parsed(running: Running, data: bytes):
    with connect(running.tcp) as client:
        client.sendall(data)
        assert client.recv(1)
    assert cached(running) == 0


def test_after_a_refused_body_with_a_cached_header_the_next_request_is_served(running: Running):
    good = body(0.1)
    with connect(running.tcp) as client:
        assert exchange(client, post(good))[0] == 200
        assert exchange(client, post(b"x" * len(good)))[0] == 400
        assert exchange(client, post(good))[0] == 200
