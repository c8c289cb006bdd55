"""Requests of named tensors: right ones in every form, and wrong ones refused in plain words."""

import json
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.agent.serving.protocol import BODY, parse_body
from shoal.agent.serving.sequences import Step
from shoal.agent.serving.tensor_requests import (
    TensorRequest,
    Wanted,
    of_arrays,
    read,
    read_bare,
    step_of,
    write,
)
from shoal.errors import InputError
from shoal.signature import Signature, State
from shoal.tensors import DTYPES, Array, from_bytes, to_bytes
from tensor_models import EXTREMES, engine_of, tensor

SIGNATURE = Signature(
    inputs=[
        tensor("x", "FP32", ["N", 2]),
        tensor("ids", "INT64", ["N"]),
        tensor("text", "BYTES", [2], default=["a", "b"]),
    ],
    outputs=[tensor("y", "FP32", ["N", 2]), tensor("n", "INT64", ["N"])],
)
ENGINE = engine_of(SIGNATURE)
X: dict[str, Any] = {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [0.5, -1]}
IDS: dict[str, Any] = {"name": "ids", "shape": [1], "datatype": "INT64", "data": [7]}
TEXT: dict[str, Any] = {"name": "text", "shape": [2], "datatype": "BYTES", "data": ["é", ""]}
RECURRENT = engine_of(
    Signature(
        inputs=[tensor("x", "FP32", [1]), tensor("h", "FP32", [1])],
        outputs=[tensor("y", "FP32", [1]), tensor("hn", "FP32", [1])],
        states=[State(taken="h", given="hn", shape=[1])],
    )
)


def asked(*inputs: Any, data: bytes = b"", **more: Any) -> TensorRequest:
    head = json.dumps({"inputs": list(inputs), **more}).encode()
    parsed = parse_body(head + data, len(head))
    return read(parsed, ENGINE, step_of(parsed.given))


def in_bytes(tensor: dict[str, Any], size: int) -> dict[str, Any]:
    return {k: v for k, v in tensor.items() if k != "data"} | {
        "parameters": {"binary_data_size": size}
    }


def test_inputs_come_in_any_order_and_a_default_is_filled_in() -> None:
    found = asked(IDS, X)
    assert {name: array.tolist() for name, array in found.feeds.items()} == {
        "ids": [7], "x": [[0.5, -1.0]], "text": ["a", "b"],
    }  # fmt: skip
    assert found.outputs == [Wanted("y", False), Wanted("n", False)]
    assert found.items == 1


def test_bytes_are_taken_in_the_order_of_the_inputs_and_mix_with_json() -> None:
    x, text = np.float32([[3, 4]]), np.array(["ab", "ü"], object)
    parts = to_bytes(text), x.tobytes()
    found = asked(in_bytes(TEXT, len(parts[0])), IDS, in_bytes(X, 8), data=b"".join(parts))
    assert found.feeds["text"].tolist() == ["ab", "ü"]
    np.testing.assert_array_equal(found.feeds["x"], x)
    assert found.feeds["ids"].tolist() == [7]


BAD = {
    "no input that there is": ([X, IDS | {"name": "other"}], "no input 'other'; it takes x FP32"),
    "the same input twice": ([X, IDS, X], "'x' is there twice"),
    "a missing input": ([X], "'ids' is missing; it takes x FP32 [-1, 2], ids INT64 [-1]"),
    "no inputs": ([], "'x' is missing"),
    "an input that is none": ([3], "an input is an object, got '3'"),
    "a name that is none": ([X | {"name": ["x"]}], "no input"),
    "another datatype": ([X | {"datatype": "FP64"}], "'x' is FP32, got datatype 'FP64'; convert"),
    "an unknown datatype": ([X | {"datatype": "float"}], "which the protocol does not have"),
    "no datatype": ([{k: v for k, v in X.items() if k != "datatype"}], "got datatype 'None'"),
    "another rank": ([X | {"shape": [2]}], "'x' has shape [-1, 2], got [2]"),
    "another width": ([X | {"shape": [1, 3]}], "'x' has shape [-1, 2], got [1, 3]"),
    "no shape": ([{k: v for k, v in X.items() if k != "shape"}], "shape is a list of lengths"),
    "a shape of texts": ([X | {"shape": ["1", 2]}], "shape is a list of lengths"),
    "a shape that is true": ([X | {"shape": [True, 2]}], "shape is a list of lengths"),
    "a negative shape": ([X | {"shape": [-1, 2]}], "shape is a list of lengths"),
    "a shape of more than memory": ([X | {"shape": [10**18, 2]}], f"more than {BODY} elements"),
    "too few values": ([X | {"data": [1]}], "shape [1, 2] but 1 values"),
    "too many values": ([X | {"data": [1, 2, 3]}], "shape [1, 2] but 3 values"),
    "no data": ([{k: v for k, v in X.items() if k != "data"}], "data is not a list"),
    "data that is a number": ([X | {"data": 1}], "data is not a list"),
    "data that is an object": ([X | {"data": {}}], "data is not a list"),
    "text for numbers": ([X | {"data": ["1", 2]}], "FP32 is numbers, got '1'"),
    "true for a number": ([X | {"data": [True, 2]}], "FP32 is numbers, got True"),
    "an object for a number": ([X | {"data": [{}, 2]}], "FP32 is numbers, got {}"),
    "a number that FP32 does not have": ([X | {"data": [1e300, 2]}], "1e+300 is no FP32"),
    "ragged lists": ([X | {"shape": [2, 2], "data": [[1], [2, 3, 4]]}], "not of shape [2, 2]"),
    "lists and numbers": ([X | {"data": [[1, 2], 3]}], "not of shape"),
    "lists that are too deep": ([X | {"data": [[[1], [2]]]}], "FP32 is numbers, got [1]"),
    "lists of another shape": ([X | {"data": [[1], [2]]}], "not of shape [1, 2]"),
    "a part of a number": ([IDS | {"data": [1.5]}], "INT64 is whole numbers, got 1.5"),
    "a number beyond INT64": ([IDS | {"data": [2**63]}], "9223372036854775808 is no INT64"),
    "a number beyond JSON": ([IDS | {"data": [2**64]}], "INT64 is whole numbers"),
    "null for an integer": ([IDS | {"data": [None]}], "INT64 is whole numbers, got null"),
    "a number for text": ([TEXT | {"data": ["a", 1]}], "BYTES are strings, got 1"),
    "null for text": ([TEXT | {"data": [None, "a"]}], "BYTES are strings, got null"),
    "bytes and data": (
        [X | {"parameters": {"binary_data_size": 8}}], "'x' has data and binary_data_size"
    ),
    "bytes that are not there": ([in_bytes(X, 8)], "binary_data_size is 8, 0 bytes follow"),
    "bytes of a negative size": ([in_bytes(X, -8)], "binary_data_size is a number of bytes"),
    "parameters that are none": ([X | {"parameters": 3}], "parameters are an object"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_a_request_is_refused_that_has(kind: str) -> None:
    inputs, message = BAD[kind]
    with pytest.raises(InputError) as caught:
        asked(*inputs)
    assert message in str(caught.value)


BAD_BYTES = {
    "too few": (in_bytes(X, 4), b"1234", "shape [1, 2] of FP32 is 8 bytes, got 4"),
    "claimed by no input": (X, b"1234", "4 bytes follow the JSON, no input claims them"),
    "left over": (in_bytes(X, 8), b"123456789", "1 bytes follow the JSON"),
    "cut strings": (in_bytes(TEXT, 6), struct.pack("<I", 9) + b"ab", "less than 2 elements"),
    "long strings": (in_bytes(TEXT, 8), struct.pack("<II", 9, 0), "element 0 has 9 bytes"),
    "no UTF-8": (in_bytes(TEXT, 9), struct.pack("<I", 1) + b"\xff" + bytes(4), "is not UTF-8"),
}


@pytest.mark.parametrize("kind", BAD_BYTES)
def test_bytes_are_refused_that_are(kind: str) -> None:
    given, data, message = BAD_BYTES[kind]
    with pytest.raises(InputError) as caught:
        asked(given, IDS, data=data)
    assert message in str(caught.value)


def test_a_shape_claims_no_memory_that_the_body_does_not_have() -> None:
    """2 GB of strings, in 8 bytes: refused before an array is made."""
    engine = engine_of(Signature(inputs=[tensor("t", "BYTES", ["N"])], outputs=SIGNATURE.outputs))
    given = {"name": "t", "shape": [BODY], "datatype": "BYTES"}
    head = json.dumps({"inputs": [in_bytes(given, 8)]}).encode()
    with pytest.raises(InputError, match="8 bytes are less than 8388608 elements"):
        read(parse_body(head + bytes(8), len(head)), engine, None)


@pytest.mark.parametrize("datatype", [name for name in EXTREMES if name != "FP16"])
def test_json_carries_every_value_of_a_datatype_exactly(datatype: str) -> None:
    engine = engine_of(Signature(inputs=[tensor("x", datatype, [3])], outputs=SIGNATURE.outputs))
    given = {"name": "x", "shape": [3], "datatype": datatype, "data": EXTREMES[datatype]}
    found = read(parse_body(json.dumps({"inputs": [given]}).encode(), -1), engine, None)
    want = np.array(EXTREMES[datatype], DTYPES[datatype])
    assert to_bytes(found.feeds["x"]) == to_bytes(want)


def test_fp16_is_refused_in_json_and_read_in_bytes() -> None:
    engine = engine_of(Signature(inputs=[tensor("x", "FP16", [1])], outputs=SIGNATURE.outputs))
    given = {"name": "x", "shape": [1], "datatype": "FP16", "data": [1.0]}
    with pytest.raises(InputError, match="no JSON in the protocol; send its bytes"):
        read(parse_body(json.dumps({"inputs": [given]}).encode(), -1), engine, None)
    head = json.dumps({"inputs": [in_bytes(given, 2)]}).encode()
    found = read(parse_body(head + np.float16(0.1).tobytes(), len(head)), engine, None)
    assert found.feeds["x"] == np.float16(0.1)


def test_a_missing_float_is_null_and_becomes_nan() -> None:
    assert np.isnan(asked(X | {"data": [None, 1]}, IDS).feeds["x"]).tolist() == [[True, False]]


def test_a_request_of_no_items_is_one() -> None:
    found = asked(X | {"shape": [0, 2], "data": []}, IDS | {"shape": [0], "data": []})
    assert found.items == 0
    assert found.feeds["x"].shape == (0, 2)


OUTPUTS = {
    "one in bytes": ([{"name": "n", "parameters": {"binary_data": True}}], {}, [("n", True)]),
    "all in bytes": ([], {"binary_data_output": True}, [("y", True), ("n", True)]),
    "all but one in bytes": (
        [{"name": "n"}, {"name": "y", "parameters": {"binary_data": False}}],
        {"binary_data_output": True},
        [("n", True), ("y", False)],
    ),
}


@pytest.mark.parametrize("kind", OUTPUTS)
def test_outputs_are_chosen(kind: str) -> None:
    outputs, parameters, want = OUTPUTS[kind]
    assert asked(X, IDS, outputs=outputs, parameters=parameters).outputs == want


BAD_OUTPUTS = {
    "that there is none of": ([{"name": "z"}], "no output 'z'; it has y FP32 [-1, 2], n INT64"),
    "that is none": ([3], "an output is an object, got '3'"),
    "twice": ([{"name": "y"}, {"name": "y"}], "'y' is asked for twice"),
    "that are no list": ({"name": "y"}, '"outputs" is a list'),
    "as classes": ([{"name": "y", "parameters": {"classification": 1}}], "not offered"),
    "in bytes, perhaps": ([{"name": "y", "parameters": {"binary_data": 1}}], "true or false"),
}


@pytest.mark.parametrize("kind", BAD_OUTPUTS)
def test_an_output_is_refused_that_is_asked_for(kind: str) -> None:
    outputs, message = BAD_OUTPUTS[kind]
    with pytest.raises(InputError) as caught:
        asked(X, IDS, outputs=outputs)
    assert message in str(caught.value)


def test_a_response_says_what_each_output_really_is() -> None:
    request = asked(X, IDS, id="7", outputs=[{"name": "n"}, {"name": "y"}])
    outputs = {"y": np.float32([[np.nan, 0.1]]), "n": np.array([2**53 + 1])}
    body, size = write(ENGINE, request, outputs)
    found = json.loads(body)
    assert size == -1
    assert (found["id"], found["model_name"], found["model_version"]) == ("7", "any", "1")
    assert found["outputs"] == [
        {"name": "n", "datatype": "INT64", "shape": [1], "data": [2**53 + 1]},
        {"name": "y", "datatype": "FP32", "shape": [1, 2], "data": [None, 0.1]},
    ]


def bare(shape: list[Any], datatype: Any = "INT16", **more: Any) -> Signature:
    return Signature(inputs=[tensor("x", datatype, shape, **more)], outputs=SIGNATURE.outputs)


@pytest.mark.parametrize(
    ("shape", "size", "found"),
    [([2, "N"], 12, (2, 3)), (["N"], 2, (1,)), ([2, 3], 12, (2, 3)), ([], 2, ())],
)
def test_a_body_without_json_has_the_shape_that_its_length_gives(
    shape: list[Any], size: int, found: tuple[int, ...]
) -> None:
    request = read_bare(bytes(size), engine_of(bare(shape)))
    assert request.feeds["x"].shape == found
    assert all(wanted.binary for wanted in request.outputs)


BAD_BARE = {
    "with two inputs": (SIGNATURE, 8, "describe them in JSON: x FP32 [-1, 2], ids INT64 [-1]"),
    "with two free axes": (bare(["N", "T"]), 8, "one input with one free axis"),
    "of strings": (bare(["N"], "BYTES"), 8, "describe them in JSON"),
    "of a part of an item": (bare(["N", 3]), 8, "[-1, 3]: 6 bytes or a multiple"),
    "of two items where one is taken": (bare([2]), 8, "[2]: 4 bytes"),
    "of nothing": (bare(["N"]), 0, "0 bytes are not 'x'"),
    "of an axis of no length": (bare(["N", 0]), 8, "8 bytes are not 'x'"),
    "with no input": (Signature(inputs=[], outputs=SIGNATURE.outputs), 8, "no input"),
}


@pytest.mark.parametrize("kind", BAD_BARE)
def test_a_body_without_json_is_refused(kind: str) -> None:
    signature, size, message = BAD_BARE[kind]
    with pytest.raises(InputError) as caught:
        read_bare(bytes(size), engine_of(signature))
    assert message in str(caught.value)


def step(**parameters: Any) -> Step | None:
    return step_of({"parameters": parameters})


def test_a_sequence_has_a_text_or_a_number_and_0_is_none() -> None:
    assert step(sequence_id="a", sequence_start=True) == Step("a", True, False)
    assert step(sequence_id=2**64 - 1, sequence_end=True) == Step(2**64 - 1, False, True)
    assert step(sequence_id=0, sequence_start=False) is step(sequence_id="") is step() is None


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"sequence_id": -1}, "a text or a uint64"),
        ({"sequence_id": 1.5}, "a text or a uint64"),
        ({"sequence_id": True}, "a text or a uint64"),
        ({"sequence_id": 2**64}, "a text or a uint64"),
        ({"sequence_id": ["a"]}, "a text or a uint64"),
        ({"sequence_id": "a" * 129}, "129 characters"),
        ({"sequence_start": True}, "without a sequence_id"),
        ({"sequence_id": 1, "sequence_end": "yes"}, "true or false"),
    ],
)
def test_a_sequence_is_refused_that_is_none(parameters: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        step(**parameters)


def test_in_a_sequence_states_are_neither_sent_nor_given_back_unless_asked_for() -> None:
    x, h = np.float32([1]), np.float32([0])
    one = Step("a", True, False)
    assert of_arrays(RECURRENT, {"x": x}, (), one).names == ["y"]
    assert of_arrays(RECURRENT, {"x": x}, ["hn"], one).names == ["hn"]
    assert of_arrays(RECURRENT, {"x": x, "h": h}).names == ["y", "hn"]
    with pytest.raises(InputError, match="'h' is a state"):
        of_arrays(RECURRENT, {"x": x, "h": h}, (), one)
    with pytest.raises(InputError, match="'h' is missing"):
        of_arrays(RECURRENT, {"x": x})
    with pytest.raises(InputError, match="has no states"):
        of_arrays(ENGINE, {"x": np.zeros((1, 2), np.float32)}, (), one)


def test_arrays_of_a_program_are_checked_and_strings_may_be_of_any_kind() -> None:
    x, ids = np.zeros((1, 2), ">f4"), np.zeros(1, np.int64)
    for text in (np.array(["a", "é"]), np.array(["a", "é"], object), np.char.encode(["a", "é"])):
        found = of_arrays(ENGINE, {"x": x, "ids": ids, "text": text}).feeds
        assert found["text"].tolist() == ["a", "é"]
        assert found["text"].dtype == object
        assert found["x"].dtype == np.float32
    for feeds, message in (
        ({"x": np.zeros((1, 2))}, "'x' is FP32, got datatype 'FP64'"),
        ({"x": x.reshape(2)}, "has shape"),
        ({"x": np.zeros((1, 2), complex)}, "complex128 is none of the protocol's"),
        ({"z": x}, "no input 'z'"),
    ):
        with pytest.raises(InputError, match=message):
            of_arrays(ENGINE, feeds)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=3) | st.sampled_from(["x", "ids", "FP32", "INT64"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["name", "shape", "datatype", "data", "parameters", "binary_data_size"]),
        inner, max_size=4,
    ),
    max_leaves=12,
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(changes=st.dictionaries(st.sampled_from([*X, "parameters"]), JSON, max_size=2),
       more=st.dictionaries(st.sampled_from(["outputs", "parameters", "id"]), JSON, max_size=2),
       data=st.binary(max_size=9))  # fmt: skip
def test_whatever_a_request_says_it_is_read_or_refused(
    changes: dict[str, Any], more: dict[str, Any], data: bytes
) -> None:
    try:
        found = asked(X | changes, IDS, data=data, **more)
    except InputError:
        return
    assert found.feeds["x"].dtype == np.float32
    assert found.feeds["x"].shape[1:] == (2,)


@settings(max_examples=100, deadline=None)
@given(values=st.lists(st.text(max_size=5), max_size=4))
def test_strings_survive_both_forms(values: list[str]) -> None:
    array = np.empty(len(values), object)
    array[:] = values
    engine = engine_of(bare(["N"], "BYTES"))
    given: dict[str, Any] = {"name": "x", "shape": [len(values)], "datatype": "BYTES"}
    data = to_bytes(array)
    head = json.dumps({"inputs": [in_bytes(given, len(data))]}).encode()
    text = json.dumps({"inputs": [given | {"data": values}]}, ensure_ascii=False).encode()
    for body, size in ((head + data, len(head)), (text, -1)):
        found: Array = read(parse_body(body, size), engine, None).feeds["x"]
        assert found.tolist() == values
    assert from_bytes("BYTES", array.shape, data).tolist() == values


def test_an_input_or_output_that_is_only_a_name_is_refused() -> None:
    with pytest.raises(InputError, match="an input is an object, got 'x'"):
        asked("x")
    with pytest.raises(InputError, match="an output is an object, got 'y'"):
        asked(X, IDS, outputs=["y"])


def test_a_refusal_does_not_repeat_a_long_shape() -> None:
    with pytest.raises(InputError) as refused:
        asked(X | {"shape": [0] * 100_000})
    assert len(str(refused.value)) < 1_000
