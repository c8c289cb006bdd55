"""The push source at a real endpoint."""

import asyncio
import http.client
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from devices import MODEL, engine
from endpoints import inference_of
from feed_doubles import Recorder, feeds_of, serving_of
from shoal.agent.feeds.io.runner import Feeds
from shoal.agent.serving.io.endpoint import Endpoint
from shoal.agent.serving.served_model import ServedModel
from waiting import eventually

Post = Callable[[str, object], tuple[int, dict[str, object]]]


@pytest.fixture
def serving() -> ServedModel:
    return serving_of(engine(1))


@pytest.fixture
def feeds(recorder: Recorder, serving: ServedModel) -> Feeds:
    sources = {"line": {"kind": "push", "queue": 3}, "file": {"kind": "replay", "path": "x.csv"}}
    return feeds_of(recorder, {MODEL: serving}, sources)


@pytest.fixture
def post(feeds: Feeds, serving: ServedModel, tmp_path: Path) -> Iterator[Post]:
    """The endpoint in a loop of its own; posts to it and returns status and JSON."""
    inference = inference_of({MODEL: serving}, pushes=feeds.pushes)
    endpoint = Endpoint(inference, host="127.0.0.1", port=0, socket=None)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    address = asyncio.run_coroutine_threadsafe(endpoint.start(), loop).result(20)

    def post(path: str, body: object) -> tuple[int, dict[str, object]]:
        connection = http.client.HTTPConnection(address.removeprefix("http://"))
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        connection.request("POST", path, data)
        response = connection.getresponse()
        found = response.status, json.loads(response.read())
        connection.close()
        return found

    yield post
    asyncio.run_coroutine_threadsafe(endpoint.stop(), loop).result(20)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


FRAME = {"values": {"contrast": 0.5, "blur": -1}, "asset": "press", "label": "good"}


def test_a_posted_frame_is_run_by_the_model_and_compared_with_its_label(
    feeds: Feeds, serving: ServedModel, post: Post
) -> None:
    feeds.start()
    assert post("/sources/line", FRAME) == (200, {"frames": 1})
    assert post("/sources/line", [FRAME, FRAME]) == (200, {"frames": 2})
    eventually(lambda: serving.vitals.rows == 3)
    feeds.stop()
    assert feeds.health()[0].count == 3


def test_a_missing_value_is_null_and_a_quality_may_be_posted(
    recorder: Recorder, feeds: Feeds, serving: ServedModel, post: Post
) -> None:
    feeds.start()
    post("/sources/line", {"values": {"contrast": None, "blur": 1.0}})
    post("/sources/line", {"values": {"contrast": 1, "blur": 1}, "qualities": {"blur": "bad"}})
    eventually(lambda: serving.vitals.errors == 2)
    feeds.stop()
    assert feeds.health()[0].bad == 2
    assert recorder.reported("'contrast' is missing")


def test_a_full_queue_takes_no_frame_and_responds_with_503(feeds: Feeds, post: Post) -> None:
    assert post("/sources/line", [FRAME, FRAME]) == (200, {"frames": 2})
    status, found = post("/sources/line", [FRAME, FRAME])
    assert (status, feeds.health()[0].waiting, feeds.health()[0].dropped) == (503, 2, 2)
    assert "line is behind" in str(found["error"])


@pytest.mark.parametrize(
    ("path", "body", "status", "why"),
    [("/sources/line", b"{", 400, "Input data was truncated"),
     ("/sources/line", {"value": {}}, 400, "unknown field"),
     ("/sources/line", {"values": {"a": "x"}}, 400, "values"),
     ("/sources/line", {"values": {}, "qualities": {"a": "odd"}}, 400, "qualities"),
     ("/sources/line", b"\xff", 400, "line"),
     ("/sources/file", FRAME, 404, "there are: line"), ("/sources/x", FRAME, 404, "line")],
)  # fmt: skip
def test_an_invalid_body_is_refused(
    post: Post, path: str, body: object, status: int, why: str
) -> None:
    responded, found = post(path, body)
    assert responded == status
    assert why in str(found["error"])
