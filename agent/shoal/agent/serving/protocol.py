"""What requests for rows and for tensors share of the Open Inference Protocol v2.

Source: github.com/kserve/open-inference-protocol, HTTP/REST; Triton's extension_binary_data.md.
"""

from typing import Any, NamedTuple

import orjson

from shoal.errors import InputError

#: Bytes of a request's body, at most.
BODY = 8 << 20
#: Every datatype of the protocol.
DATATYPES = {"BOOL", "BYTES", "BF16", "FP16", "FP32", "FP64"} | {
    f"{kind}{bits}" for kind in ("INT", "UINT") for bits in (8, 16, 32, 64)
}


class Body(NamedTuple):
    """A request's body: its JSON and id, and the offset of the bytes of its tensors."""

    given: dict[str, Any]
    id: str | None
    data: bytes | memoryview
    at: int


def parse_body(data: bytes | memoryview, json_bytes: int) -> Body:
    """Parse a body that has JSON; InputError when it is none, or has no "inputs" list.

    json_bytes   Inference-Header-Content-Length; -1 without that header: all of it is JSON
    """
    if json_bytes > len(data):
        raise InputError(
            f"Inference-Header-Content-Length is {json_bytes}, the body has {len(data)} bytes"
        )
    given = _parse(data if json_bytes < 0 else memoryview(data)[:json_bytes])
    request_id = given.get("id")
    if request_id is not None and not isinstance(request_id, str):
        raise InputError(f'"id" is a text, got {str(request_id)[:40]}')
    return Body(given, request_id, data, len(data) if json_bytes < 0 else json_bytes)


def _parse(text: bytes | memoryview) -> dict[str, Any]:
    try:
        given = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise InputError(f"body is not JSON: {error}", "a missing value is null") from error
    if not isinstance(given, dict) or not isinstance(given.get("inputs"), list):
        raise InputError('body has no "inputs" list', "see the Open Inference Protocol v2")
    return given


def known(datatype: object) -> str:
    """What an error about a datatype adds when the protocol does not have it.

    >>> known("FP64"), known("float")
    ('', ', which the protocol does not have')
    """
    return "" if str(datatype) in DATATYPES else ", which the protocol does not have"


def size_of_bytes(tensor: dict[str, Any], name: str) -> int | None:
    """binary_data_size of an input; None when its values are in data."""
    if "parameters" not in tensor:
        return None
    parameters = parameters_of(tensor)
    if "binary_data_size" not in parameters:
        return None
    size = parameters["binary_data_size"]
    if type(size) is not int or size < 0:
        raise InputError(f"{name!r}: binary_data_size is a number of bytes, got {str(size)[:40]!r}")
    if tensor.get("data") is not None:
        raise InputError(f"{name!r} has data and binary_data_size", "send one of them")
    return size


def flag(thing: dict[str, Any], name: str, otherwise: bool = False) -> bool:
    """A parameter that is true or false; `otherwise` where it is absent."""
    value = parameters_of(thing).get(name, otherwise)
    if not isinstance(value, bool):
        raise InputError(f"parameter {name} is true or false, got {str(value)[:40]!r}")
    return value


def parameters_of(thing: dict[str, Any]) -> dict[str, Any]:
    """The parameters of a request, input or output; {} without any."""
    parameters = thing.get("parameters") or {}
    if not isinstance(parameters, dict):
        raise InputError(f"parameters are an object, got {str(parameters)[:40]!r}")
    return parameters
