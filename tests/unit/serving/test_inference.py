"""The Open Inference Protocol: right responses, and errors that say what is wrong."""

import contextlib
import json
from typing import Any

import numpy as np
import pytest

from devices import MODEL, engine, softmax
from endpoints import inference_of
from shoal.agent.serving.inference import Call, Inference, is_slow
from shoal.agent.serving.routes import LONG_JSON, Request
from shoal.agent.serving.served_model import ServedModel
from shoal.wire import Health


@pytest.fixture
def serving() -> ServedModel:
    serving = ServedModel(
        MODEL, clock=lambda: 1.0, timer=lambda: 0.0, lock=contextlib.nullcontext()
    )
    serving.swap(engine(3), Health())
    return serving


@pytest.fixture
def inference(serving: ServedModel) -> Inference:
    return inference_of({MODEL: serving})


GOOD: dict[str, Any] = {
    "name": "input",
    "shape": [2, 2],
    "datatype": "FP32",
    "data": [0.5, -0.5, 1, 2],
}
INFER = f"/v2/models/{MODEL}/infer"


def post(inference: Inference, body: Any, path: str = INFER) -> tuple[int, Any]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    response = inference.respond(Request("POST", path, data))
    return response.status, json.loads(response.body)


def get(inference: Inference, path: str) -> tuple[int, Any]:
    response = inference.respond(Request("GET", path, b""))
    return response.status, json.loads(response.body)


@pytest.mark.parametrize("data", [[0.5, -0.5, 1, 2], [[0.5, -0.5], [1, 2]]])
@pytest.mark.parametrize("version", ["", "/versions/3"])
def test_rows_may_be_flat_or_nested(inference: Inference, data: Any, version: str) -> None:
    body = {"id": "7", "inputs": [GOOD | {"data": data}]}
    status, found = post(inference, body, f"/v2/models/{MODEL}{version}/infer")
    assert status == 200
    assert (found["id"], found["model_name"], found["model_version"]) == ("7", MODEL, "3")
    (output,) = found["outputs"]
    assert (output["name"], output["shape"], output["datatype"]) == ("output", [2, 3], "FP32")
    want = softmax(np.array([[0.5, -0.5], [1, 2]]), 3)
    np.testing.assert_allclose(np.reshape(output["data"], (2, 3)), want, rtol=1e-5)


BAD_REQUESTS = {
    "not JSON": (b"{", "not JSON"),
    "not UTF-8": (b'{"a":"\xff"}', "not JSON"),
    "no inputs": ({}, "inputs"),
    "inputs of another kind": ({"inputs": 3}, "inputs"),
    "no input": ({"inputs": []}, "'input'"),
    "an input that is none": ({"inputs": [3]}, "'input'"),
    "two inputs": ({"inputs": [GOOD, GOOD]}, "'input'"),
    "a wrong name": ({"inputs": [GOOD | {"name": "x"}]}, "'input'"),
    "a wrong type": ({"inputs": [GOOD | {"datatype": "INT8"}]}, "FP32"),
    "no type": ({"inputs": [{**GOOD, "datatype": None}]}, "FP32"),
    "too wide": ({"inputs": [GOOD | {"shape": [1, 4]}]}, "contrast, blur"),
    "of one dimension": ({"inputs": [GOOD | {"shape": [4]}]}, "rows, 2"),
    "of no row": ({"inputs": [GOOD | {"shape": [0, 2]}]}, "rows, 2"),
    "of a negative shape": ({"inputs": [GOOD | {"shape": [-1, 2]}]}, "rows, 2"),
    "of a shape that is true": ({"inputs": [GOOD | {"shape": [True, 2]}]}, "rows, 2"),
    "of too many rows": ({"inputs": [GOOD | {"shape": [10**9, 2]}]}, "rows, 2"),
    "with too few values": ({"inputs": [GOOD | {"data": [1]}]}, "1 values"),
    "with text": ({"inputs": [GOOD | {"data": ["a", 1, 2, 3]}]}, "no number"),
    "with an object": ({"inputs": [GOOD | {"data": {}}]}, "not a list"),
    "with ragged rows": ({"inputs": [GOOD | {"data": [[1], [2, 3, 4]]}]}, "no number"),
    "with a missing value": ({"inputs": [GOOD | {"data": [1, None, 2, 3]}]}, "'blur' is missing"),
    "with binary data": (
        {"inputs": [{**GOOD, "data": None, "parameters": {"binary_data_size": 16}}]},
        "binary",
    ),
}


@pytest.mark.parametrize("kind", BAD_REQUESTS)
def test_a_request_is_refused_that_is(kind: str, inference: Inference) -> None:
    body, message = BAD_REQUESTS[kind]
    status, found = post(inference, body)
    assert status == 400
    assert message in found["error"]


def test_other_models_and_versions_are_not_found(inference: Inference) -> None:
    status, found = post(inference, {"inputs": [GOOD]}, "/v2/models/other/infer")
    assert status == 404
    assert MODEL in found["error"]
    assert post(inference, {"inputs": [GOOD]}, f"/v2/models/{MODEL}/versions/9/infer")[0] == 404


def test_the_server_and_its_models_describe_themselves(inference: Inference) -> None:
    assert get(inference, "/v2")[1]["name"] == "shoal-agent"
    assert get(inference, "/v2/health/live") == (200, {"live": True})
    assert get(inference, "/v2/health/ready") == (200, {"ready": True})
    assert get(inference, f"/v2/models/{MODEL}/ready") == (200, {"name": MODEL, "ready": True})
    model = get(inference, f"/v2/models/{MODEL}")[1]
    assert model["inputs"] == [{"name": "input", "datatype": "FP32", "shape": [-1, 2]}]
    assert model["outputs"] == [{"name": "output", "datatype": "FP32", "shape": [-1, 3]}]
    assert get(inference, "/status")[1]["device"] == "cam-1"


def test_while_the_agent_starts_clients_are_told_to_come_back() -> None:
    starting = inference_of({}, loading=lambda: True)
    url = f"/v2/models/{MODEL}"
    for status, answer in (
        post(starting, {"inputs": [GOOD]}, f"{url}/infer"),
        get(starting, f"{url}/ready"),
        get(starting, url),
        get(starting, "/v2/health/ready"),
    ):
        assert (status, answer["error"][:21]) == (503, "the agent is starting")
    assert get(starting, "/v2/health/live")[0] == 200


def test_before_the_first_release_it_is_alive_but_not_ready() -> None:
    empty = inference_of({})
    assert get(empty, "/v2/health/live")[0] == 200
    assert get(empty, "/v2/health/ready")[0] == 400
    assert get(empty, f"/v2/models/{MODEL}/ready")[0] == 400


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", INFER, 405),
        ("POST", "/v2", 405),
        ("GET", "/nope", 404),
        ("GET", "/v2/models/a/b/c", 404),
        ("GET", "/v2/models//", 404),
        ("DELETE", "/status", 405),
    ],
)
def test_other_paths_and_methods_are_refused(
    inference: Inference, method: str, path: str, status: int
) -> None:
    assert inference.respond(Request(method, path, b"")).status == status


def test_a_bug_fails_one_request_with_500(inference: Inference, serving: ServedModel) -> None:
    def bug(rows: np.ndarray) -> np.ndarray:
        raise RuntimeError("boom")

    assert serving.engine is not None
    serving.engine.session.run = bug  # type: ignore[method-assign]
    status, found = post(inference, {"inputs": [GOOD]})
    assert status == 500
    assert "bug" in found["error"]


def call(inference: Inference, rows: int) -> Call:
    tensor = GOOD | {"shape": [rows, 2], "data": [[0.5, -0.5]] * rows}
    accepted = inference.accept(Request("POST", INFER, json.dumps({"inputs": [tensor]}).encode()))
    assert isinstance(accepted, Call)
    return accepted


def test_a_long_run_uses_a_thread(inference: Inference, serving: ServedModel) -> None:
    assert serving.engine is not None
    assert not is_slow([call(inference, 2)])
    assert is_slow([call(inference, LONG_JSON)])
    serving.engine.slot.timings_us["fp32"] = 400.0
    assert not is_slow([call(inference, 2)])
    assert is_slow([call(inference, 2), call(inference, 2)])


def test_parsing_long_json_uses_a_thread_and_many_bytes_do_not() -> None:
    long = b" " * (LONG_JSON + 1)
    assert not Request("POST", INFER, b"{}").is_long
    assert Request("POST", INFER, long).is_long
    assert not Request("POST", INFER, long, json_bytes=100).is_long


def test_a_request_that_cannot_be_parsed_counts_as_an_error(
    inference: Inference, serving: ServedModel
) -> None:
    post(inference, b"{")
    assert (serving.vitals.requests, serving.vitals.errors) == (1, 1)
