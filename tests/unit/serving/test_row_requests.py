"""The protocol's tensors, binary and JSON, in every mix; and sizes that do not add up."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devices import MODEL, engine, softmax
from shoal.agent.serving.routes import Response
from shoal.agent.serving.row_requests import read, write
from shoal.errors import InputError

ROWS = np.array([[0.5, -0.5], [1, 2]], np.float32)
RELEASE = engine(3)
BARE: dict[str, Any] = {"name": "input", "shape": [2, 2], "datatype": "FP32"}
BYTES = BARE | {"parameters": {"binary_data_size": 16}}
NUMBERS = BARE | {"data": [0.5, -0.5, 1, 2]}


def body(tensor: dict[str, Any], data: bytes = b"", **request: Any) -> tuple[bytes, int]:
    head = json.dumps({"id": "7", "inputs": [tensor], **request}).encode()
    return head + data, len(head)


OUTPUTS = {
    "by default JSON": ({}, False),
    "all binary": ({"parameters": {"binary_data_output": True}}, True),
    "none named": ({"outputs": [], "parameters": {"binary_data_output": True}}, True),
    "this one binary": ({"outputs": [{"name": "output", "parameters": {"binary_data": True}}]}, 1),
    "named": ({"outputs": [{"name": "output"}]}, False),
    "all but this one": (
        {
            "outputs": [{"name": "output", "parameters": {"binary_data": False}}],
            "parameters": {"binary_data_output": True},
        },
        False,
    ),
}


@pytest.mark.parametrize("wanted", OUTPUTS)
@pytest.mark.parametrize("sent", ["JSON", "bytes", "JSON and no bytes behind it"])
def test_every_mix_of_binary_and_json_is_parsed(sent: str, wanted: str) -> None:
    request, binary = OUTPUTS[wanted]
    if sent == "bytes":
        data, length = body(BYTES, ROWS.tobytes(), **request)
    else:
        data, length = body(NUMBERS, **request)
    found = read(data, -1 if sent == "JSON" else length, RELEASE)
    np.testing.assert_array_equal(found.rows, ROWS)
    assert (found.id, found.binary) == ("7", bool(binary))


def test_a_body_of_nothing_but_the_tensor_is_parsed() -> None:
    found = read(ROWS.tobytes(), 0, RELEASE)
    np.testing.assert_array_equal(found.rows, ROWS)
    assert found.binary


@pytest.mark.parametrize("padding", range(4))
def test_values_are_read_at_any_alignment(padding: int) -> None:
    data, length = body(BYTES, ROWS.tobytes(), pad=" " * padding)
    rows = read(data, length, RELEASE).rows
    assert rows.flags.aligned
    np.testing.assert_array_equal(rows, ROWS)


@pytest.mark.parametrize("binary", [True, False])
def test_a_response_names_its_release_and_repeats_the_id(binary: bool) -> None:
    outputs = softmax(ROWS, 3).astype(np.float32)
    found = read(*body(NUMBERS, parameters={"binary_data_output": binary}), RELEASE)
    response = Response(200, *write(RELEASE, found, outputs))
    head = json.loads(response.body[: response.json_bytes] if binary else response.body)
    assert (head["id"], head["model_name"], head["model_version"]) == ("7", MODEL, "3")
    (output,) = head["outputs"]
    assert (output["name"], output["shape"], output["datatype"]) == ("output", [2, 3], "FP32")
    if binary:
        assert output["parameters"] == {"binary_data_size": 24}
        values = np.frombuffer(response.body[response.json_bytes :], "<f4")
    else:
        assert response.json_bytes == -1
        values = np.array(output["data"], np.float32)
    np.testing.assert_array_equal(values.reshape(2, 3), outputs)


def sized(size: Any) -> dict[str, Any]:
    return BARE | {"parameters": {"binary_data_size": size}}


WRONG = {
    "too few bytes": (body(BYTES, b"\0" * 12), "12 bytes follow"),
    "too many bytes": (body(BYTES, b"\0" * 20), "20 bytes follow"),
    "no bytes": (body(BYTES), "0 bytes follow"),
    "bytes of no input": (body(NUMBERS, b"\0" * 16), "no input claims"),
    "no whole values": (body(sized(15), b"\0" * 15), "no whole number of FP32"),
    "another shape": (body(sized(8), b"\0" * 8), "2 values in 8 bytes"),
    "a size that is none": (body(sized("16"), b"\0" * 16), "a number of bytes"),
    "a size that is true": (body(sized(True), b"\0"), "a number of bytes"),
    "a negative size": (body(sized(-16)), "a number of bytes"),
    "data and bytes": (body(BYTES | {"data": [1]}, b"\0" * 16), "send one of them"),
    "no header length": ((body(BYTES, ROWS.tobytes())[0], -1), "not JSON"),
    "a header length beyond the body": ((body(NUMBERS)[0], 10_000), "10000, the body has"),
    "half a row and no JSON": ((b"\0" * 12, 0), "whole rows of 8 bytes"),
    "nothing at all": ((b"", 0), "whole rows"),
    "FP64": (body(NUMBERS | {"datatype": "FP64"}), "got datatype 'FP64'; convert"),
    "a datatype there is not": (
        body(NUMBERS | {"datatype": "float"}),
        "which the protocol does not have",
    ),
    "parameters that are none": (body(BARE | {"parameters": [1]}), "parameters are an object"),
    "an id that is a number": (body(NUMBERS, id=7), '"id" is a text'),
    "an output there is not": (body(NUMBERS, outputs=[{"name": "x"}]), "one output 'output'"),
    "an output twice": (body(NUMBERS, outputs=[{"name": "output"}] * 2), "one output"),
    "an output that is none": (body(NUMBERS, outputs=[3]), "one output"),
    "outputs that are none": (body(NUMBERS, outputs="output"), "one output"),
    "a flag that is no boolean": (
        body(NUMBERS, parameters={"binary_data_output": "yes"}),
        "true or false",
    ),
    "classes": (
        body(NUMBERS, outputs=[{"name": "output", "parameters": {"classification": 2}}]),
        "classification extension",
    ),
    "numbers beyond float64": (body(BARE | {"data": [10**400, 1, 2, 3]}), "JSON|no number"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_request_is_refused_with(kind: str) -> None:
    (data, length), message = WRONG[kind]
    with pytest.raises(InputError, match=message):
        read(data, length, RELEASE)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4)
    ),
    max_leaves=9,
)
TENSOR = st.fixed_dictionaries(
    {"name": st.just("input") | JSON, "datatype": st.just("FP32") | JSON},
    optional={
        "shape": st.just([2, 2]) | st.lists(st.integers(), max_size=3) | JSON,
        "data": st.lists(st.floats(width=32) | st.none(), max_size=5) | JSON,
        "parameters": st.fixed_dictionaries({"binary_data_size": st.just(16) | JSON}) | JSON,
    },
)
REQUEST = st.fixed_dictionaries(
    {"inputs": st.lists(TENSOR, max_size=2) | JSON},
    optional={"id": JSON, "parameters": JSON, "outputs": JSON},
)


@settings(max_examples=400, deadline=None)
@given(
    request=REQUEST | JSON,
    tail=st.binary(max_size=20),
    cut=st.integers(-1, 400),
    right_length=st.booleans(),
)
def test_any_body_is_parsed_into_rows_that_fit_or_an_input_error(
    request: Any, tail: bytes, cut: int, right_length: bool
) -> None:
    head = json.dumps(request).encode()
    try:
        found = read(head + tail, len(head) if right_length else cut, RELEASE)
    except InputError:
        return
    assert found.rows.ndim == 2
    assert (found.rows.shape[1], found.rows.dtype) == (2, np.float32)
