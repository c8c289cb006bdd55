"""Inference of the Open Inference Protocol v2: a request's tensor in, the response's tensor out.

A request is accepted first and run afterwards, so that requests that wait can run as one batch
(io/batching.py). Pure. Tensors are JSON or the binary tensor extension: JSON, as long as
Inference-Header-Content-Length says, and behind it the bytes of every tensor that has a
binary_data_size, little-endian, in the order of the inputs. Request and response choose
independently. Source: github.com/kserve/open-inference-protocol, HTTP/REST; Triton's
extension_binary_data.md.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import orjson

from shoal.agent.serving.engine import Engine
from shoal.agent.serving.routes import (
    LONG_JSON,
    Request,
    Response,
    Routes,
    model_path,
    response_to,
    served,
)
from shoal.agent.serving.served_model import ServedModel
from shoal.errors import InputError, ShoalError
from shoal.pipeline import RAW
from shoal.sketch import F32

#: Most rows in one request.
ROWS = 65_536
#: Longest run on the event loop's thread, in microseconds: meanwhile all other requests wait.
QUICK_US = 1_000.0
#: Every datatype of the protocol. Models here take and give FP32, as their metadata says.
DATATYPES = {"BOOL", "BYTES", "BF16", "FP16", "FP32", "FP64"} | {
    f"{kind}{bits}" for kind in ("INT", "UINT") for bits in (8, 16, 32, 64)
}
_FLOAT = np.dtype("<f4")


class Input(NamedTuple):
    """Tensor of a request: rows float32 (n, F); id to be repeated; whether to respond in bytes."""

    rows: F32
    id: str | None
    binary: bool


class Call(NamedTuple):
    """An accepted inference request: run by the engine that served when it arrived."""

    serving: ServedModel
    engine: Engine
    input: Input


class Inference:
    """Accepts requests for the models that serve; those that are no inference go to `Routes`.

    collect  takes rows (n, F) of requests with an id, for labels that arrive later
    """

    def __init__(
        self, routes: Routes, collect: Callable[[Engine, F32, str], None] | None = None
    ) -> None:
        self._routes, self._collect = routes, collect

    def respond(self, request: Request) -> Response:
        """The response to any request, run alone; never raises."""
        accepted = self.accept(request)
        return accepted if isinstance(accepted, Response) else run_batch([accepted])[0]

    def accept(self, request: Request) -> Response | Call:
        """An inference request parsed into a Call, or the response to any other; never raises."""
        try:
            found = model_path(request.path)
            if found is None or found[2] != "/infer" or request.method != "POST":
                return self._routes.respond(request)
            call = _call(*served(self._routes.models, found[0], found[1]), request)
            if self._collect is not None and call.input.id:
                self._collect(call.engine, call.input.rows, call.input.id)
            return call
        except Exception as error:  # noqa: BLE001 a bug fails one request with 500, no more
            return response_to(error, f"{request.method} {request.path}")


def run_batch(calls: Sequence[Call]) -> list[Response]:
    """The responses to calls of one engine, in one run; never raises."""
    first = calls[0]
    try:
        results = first.serving.infer_batch(first.engine, [call.input.rows for call in calls])
        return [_response(call, result) for call, result in zip(calls, results, strict=True)]
    except Exception as error:  # noqa: BLE001 a bug fails these requests with 500, no more
        return [response_to(error, f"infer {first.serving.model}")] * len(calls)


def is_slow(calls: Sequence[Call]) -> bool:
    """Whether running these calls of one engine takes long enough to use a thread."""
    slot = calls[0].engine.slot
    rows = sum(len(call.input.rows) for call in calls)
    values = rows * calls[0].engine.features
    return rows * slot.timings_us.get(slot.variant, 0.0) > QUICK_US or values > LONG_JSON


def _call(serving: ServedModel, engine: Engine, request: Request) -> Call:
    try:
        return Call(serving, engine, read(request.body, request.json_bytes, engine))
    except InputError:
        serving.count_error()
        raise


def _response(call: Call, result: F32 | ShoalError) -> Response:
    if isinstance(result, ShoalError):
        return response_to(result, "")
    return Response(200, *write(call.engine, call.input, result))


def read(body: bytes, json_bytes: int, engine: Engine) -> Input:
    """Parse a request's body; InputError names what does not fit `engine`.

    json_bytes   Inference-Header-Content-Length; -1 without that header: all of it is JSON
    """
    if json_bytes == 0:
        return Input(_bare(body, engine), None, True)
    if json_bytes > len(body):
        raise InputError(
            f"Inference-Header-Content-Length is {json_bytes}, the body has {len(body)} bytes"
        )
    given = _parse(body if json_bytes < 0 else memoryview(body)[:json_bytes])
    request_id = given.get("id")
    if request_id is not None and not isinstance(request_id, str):
        raise InputError(f'"id" is a text, got {str(request_id)[:40]}')
    rows = _rows(given["inputs"], body, len(body) if json_bytes < 0 else json_bytes, engine)
    return Input(rows, request_id, _wants_bytes(given, engine))


def write(engine: Engine, request: Input, values: F32) -> tuple[bytes, int]:
    """The response's body, and how many bytes of it are JSON: -1 when all are."""
    manifest = engine.manifest
    output: dict[str, Any] = {
        "name": manifest.output,
        "shape": values.shape,
        "datatype": "FP32",
    }
    response: dict[str, Any] = {
        "model_name": manifest.model,
        "model_version": str(manifest.version),
        "outputs": [output],
    }
    if request.id is not None:
        response["id"] = request.id
    if not request.binary:
        output["data"] = np.ascontiguousarray(values).ravel()
        return orjson.dumps(response, option=orjson.OPT_SERIALIZE_NUMPY), -1
    tensor = values.astype(_FLOAT, copy=False).tobytes()
    output["parameters"] = {"binary_data_size": len(tensor)}
    head = orjson.dumps(response)
    return head + tensor, len(head)


def _parse(text: bytes | memoryview) -> dict[str, Any]:
    try:
        given = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise InputError(f"body is not JSON: {error}", "a missing value is null") from error
    if not isinstance(given, dict) or not isinstance(given.get("inputs"), list):
        raise InputError('body has no "inputs" list', "see the Open Inference Protocol v2")
    return given


def _rows(inputs: list[Any], body: bytes, at: int, engine: Engine) -> F32:
    """The one input as float32 (n, F); `at` is the offset of its bytes, if it has bytes."""
    tensor = _input(inputs, engine)
    wanted: str = tensor["name"]
    shape, size = tensor["shape"], _size(tensor, wanted)
    if size is not None:
        values, where = _bytes(body, at, size), f"in {size} bytes"
    elif at == len(body):
        values, where = _numbers(tensor.get("data"), wanted), "in data"
    else:
        raise InputError(f"{len(body) - at} bytes follow the JSON, no input claims them")
    if values.size != shape[0] * engine.features:
        raise InputError(f"{wanted!r}: shape {shape} but {values.size} values {where}")
    rows = values.reshape(shape)
    if wanted == engine.manifest.input or engine.raw is None:
        return rows
    return engine.raw.table(rows)


def _input(inputs: list[Any], engine: Engine) -> dict[str, Any]:
    """The one input, named as the model's or RAW, with datatype and shape checked."""
    wanted = engine.manifest.input
    tensor: Any = inputs[0] if len(inputs) == 1 else None
    if not isinstance(tensor, dict) or tensor.get("name") != wanted:
        wanted = _raw(tensor, inputs, engine)
    shape, kind = tensor.get("shape"), tensor.get("datatype")
    if kind != "FP32":
        known = "" if str(kind) in DATATYPES else ", which the protocol does not have"
        raise InputError(
            f"{engine.manifest.release}: input {wanted!r} is FP32, "
            f"got datatype {str(kind)[:40]!r}{known}",
            "convert it to FP32",
        )
    if not _is_shape(shape, engine.features):
        raise InputError(
            f"{engine.manifest.release}: input {wanted!r} has shape [rows, {engine.features}], "
            f"got {str(shape)[:60]}",
            "its columns are: " + ", ".join(f.name for f in engine.manifest.features[:20]),
        )
    return tensor


def _raw(tensor: Any, inputs: list[Any], engine: Engine) -> str:
    """RAW if the input has that name; InputError for any other name."""
    if isinstance(tensor, dict) and tensor.get("name") == RAW:
        return RAW
    names = [i.get("name") for i in inputs if isinstance(i, dict)]
    takes = f"{engine.manifest.release} takes the one input {engine.manifest.input!r}"
    other = f" (or {RAW!r}, in the plant's units)" if engine.raw is not None else ""
    raise InputError(f"{takes}{other}, got {names}"[:300])


def _size(tensor: dict[str, Any], name: str) -> int | None:
    """binary_data_size of an input; None when its values are in data."""
    if "parameters" not in tensor:
        return None
    parameters = _parameters(tensor)
    if "binary_data_size" not in parameters:
        return None
    size = parameters["binary_data_size"]
    if type(size) is not int or size < 0:
        raise InputError(f"{name!r}: binary_data_size is a number of bytes, got {str(size)[:40]!r}")
    if tensor.get("data") is not None:
        raise InputError(f"{name!r} has data and binary_data_size", "send one of them")
    return size


def _bytes(body: bytes, at: int, size: int) -> F32:
    """The binary tensor behind the JSON, all of it."""
    if size != len(body) - at:
        raise InputError(
            f"binary_data_size is {size}, {len(body) - at} bytes follow the JSON",
            "Inference-Header-Content-Length is the length of the JSON alone",
        )
    return _floats(body, at)


def _bare(body: bytes, engine: Engine) -> F32:
    """Inference-Header-Content-Length: 0: no JSON, the body is the one tensor."""
    width = engine.features * _FLOAT.itemsize
    if not body or len(body) % width or len(body) // width > ROWS:
        raise InputError(
            f"{engine.manifest.release}: {len(body)} bytes are not whole rows of {width} bytes, "
            f"at most {ROWS} of them"
        )
    return _floats(body, 0).reshape(-1, engine.features)


def _floats(body: bytes, at: int) -> F32:
    """Values from byte `at` on; copied only when they are not aligned."""
    if (len(body) - at) % _FLOAT.itemsize:
        raise InputError(f"{len(body) - at} bytes are no whole number of FP32 values")
    values = np.frombuffer(body, _FLOAT, offset=at)
    return values if values.flags.aligned else values.copy()


def _is_shape(shape: Any, features: int) -> bool:
    if type(shape) is not list or len(shape) != 2:
        return False
    rows, columns = shape
    return type(rows) is type(columns) is int and 0 < rows <= ROWS and columns == features


def _numbers(data: Any, name: str) -> F32:
    """data, flat or nested, as float32; null is a missing value."""
    if not isinstance(data, list):
        raise InputError(f"{name!r}: data is not a list")
    try:
        return np.array(data, np.float32)
    except (TypeError, ValueError, OverflowError):
        pass
    try:
        return np.array(data, np.object_).astype(np.float64).astype(np.float32)
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{name!r}: data holds what is no number: {str(error)[:100]}") from error


def _wants_bytes(given: dict[str, Any], engine: Engine) -> bool:
    """Whether to respond in bytes; InputError for outputs that the model does not have."""
    everything = "parameters" in given and _flag(given, "binary_data_output")
    outputs = given.get("outputs")
    if not outputs:
        return everything
    wanted = engine.manifest.output
    named = isinstance(outputs, list) and [o.get("name") for o in outputs if isinstance(o, dict)]
    if named != [wanted] or len(outputs) != 1:
        raise InputError(
            f"{engine.manifest.release} has the one output {wanted!r}, asked for {named}"[:300]
        )
    if "classification" in _parameters(outputs[0]):
        raise InputError(f"{wanted!r}: the classification extension is not offered")
    return _flag(outputs[0], "binary_data", everything)


def _flag(thing: dict[str, Any], name: str, otherwise: bool = False) -> bool:
    value = _parameters(thing).get(name, otherwise)
    if not isinstance(value, bool):
        raise InputError(f"parameter {name} is true or false, got {str(value)[:40]!r}")
    return value


def _parameters(thing: dict[str, Any]) -> dict[str, Any]:
    parameters = thing.get("parameters") or {}
    if not isinstance(parameters, dict):
        raise InputError(f"parameters are an object, got {str(parameters)[:40]!r}")
    return parameters
