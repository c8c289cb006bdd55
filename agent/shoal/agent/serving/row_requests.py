"""Requests and responses of a release that takes rows: one FP32 tensor in, one out."""

from typing import Any, NamedTuple

import numpy as np
import orjson

from shoal.agent.serving.engine import Engine
from shoal.agent.serving.protocol import flag, known, parameters_of, parse_body, size_of_bytes
from shoal.errors import InputError
from shoal.pipeline import RAW
from shoal.sketch import F32

#: Most rows in one request; in one batch.
ROWS, BATCH_ROWS = 65_536, 256
_FLOAT = np.dtype("<f4")


class RowRequest(NamedTuple):
    """Tensor of a request: rows float32 (n, F); id to be repeated; whether to respond in bytes."""

    rows: F32
    id: str | None
    binary: bool

    @property
    def most(self) -> int:
        """The largest weight of one run."""
        return BATCH_ROWS

    @property
    def items(self) -> int:
        return len(self.rows)

    @property
    def weight(self) -> int:
        """Its part of `most`: rows."""
        return len(self.rows)

    @property
    def values(self) -> int:
        """Numbers in it."""
        return self.rows.size

    def joins(self, other: object) -> bool:
        """Whether both may be one run of an engine."""
        return isinstance(other, RowRequest)


def read(body: bytes | memoryview, json_bytes: int, engine: Engine) -> RowRequest:
    """Parse a request's body; InputError names what does not fit `engine`.

    json_bytes   Inference-Header-Content-Length; -1 without that header: all of it is JSON
    """
    if json_bytes == 0:
        return RowRequest(_bare(body, engine), None, True)
    parsed = parse_body(body, json_bytes)
    rows = _rows(parsed.given["inputs"], body, parsed.at, engine)
    return RowRequest(rows, parsed.id, _wants_bytes(parsed.given, engine))


def write(engine: Engine, request: RowRequest, values: F32) -> tuple[bytes, int]:
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


def _rows(inputs: list[Any], body: bytes | memoryview, at: int, engine: Engine) -> F32:
    """The one input as float32 (n, F); `at` is the offset of its bytes, if it has bytes."""
    tensor = _input(inputs, engine)
    wanted: str = tensor["name"]
    shape, size = tensor["shape"], size_of_bytes(tensor, wanted)
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
        raise InputError(
            f"{engine.manifest.release}: input {wanted!r} is FP32, "
            f"got datatype {str(kind)[:40]!r}{known(kind)}",
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


def _bytes(body: bytes | memoryview, at: int, size: int) -> F32:
    """The binary tensor behind the JSON, all of it."""
    if size != len(body) - at:
        raise InputError(
            f"binary_data_size is {size}, {len(body) - at} bytes follow the JSON",
            "Inference-Header-Content-Length is the length of the JSON alone",
        )
    return _floats(body, at)


def _bare(body: bytes | memoryview, engine: Engine) -> F32:
    """Inference-Header-Content-Length: 0: no JSON, the body is the one tensor."""
    width = engine.features * _FLOAT.itemsize
    if not body or len(body) % width or len(body) // width > ROWS:
        raise InputError(
            f"{engine.manifest.release}: {len(body)} bytes are not whole rows of {width} bytes, "
            f"at most {ROWS} of them"
        )
    return _floats(body, 0).reshape(-1, engine.features)


def _floats(body: bytes | memoryview, at: int) -> F32:
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
    everything = "parameters" in given and flag(given, "binary_data_output")
    outputs = given.get("outputs")
    if not outputs:
        return everything
    wanted = engine.manifest.output
    named = isinstance(outputs, list) and [o.get("name") for o in outputs if isinstance(o, dict)]
    if named != [wanted] or len(outputs) != 1:
        raise InputError(
            f"{engine.manifest.release} has the one output {wanted!r}, asked for {named}"[:300]
        )
    if "classification" in parameters_of(outputs[0]):
        raise InputError(f"{wanted!r}: the classification extension is not offered")
    return flag(outputs[0], "binary_data", everything)
