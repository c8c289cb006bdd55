"""Requests and responses of a release that takes tensors by name, of any datatype.

A tensor is JSON, flat or nested, or bytes behind the JSON; in any mixture, in any order. What a
request says is checked before an array of its size is made. FP16 has no JSON in the protocol.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import orjson

from shoal.agent.serving import tensor_batches
from shoal.agent.serving.engine import Engine
from shoal.agent.serving.protocol import BODY, Body, flag, known, parameters_of, size_of_bytes
from shoal.agent.serving.sequences import Step
from shoal.agent.serving.tensor_json import array_of, numbers_of
from shoal.errors import InputError
from shoal.signature import Signature, Tensor
from shoal.tensors import DTYPES, Array, Named, datatype_of, from_bytes, size_of, to_bytes

#: Bytes of inputs and outputs of requests that run as one.
BATCH_BYTES = 8 << 20
#: Longest id of a sequence; largest one that is a number (uint64).
_LONGEST_ID, _LARGEST_ID = 128, (1 << 64) - 1


class Wanted(NamedTuple):
    """An output to respond with, and whether in bytes."""

    name: str
    binary: bool


class TensorRequest(NamedTuple):
    """Tensors of a request by name, complete but for the states of its sequence."""

    signature: Signature
    feeds: Named
    outputs: list[Wanted]
    id: str | None = None
    step: Step | None = None

    @property
    def items(self) -> int:
        """Length of the batch axis; 1 without one."""
        return tensor_batches.items_of(self.signature, self.feeds)

    @property
    def most(self) -> int:
        """The largest weight of one run."""
        return BATCH_BYTES

    @property
    def weight(self) -> int:
        """Its part of `most`: bytes as measured for its items, or of its inputs if more."""
        given = sum(array.nbytes for array in self.feeds.values())
        return max(self.items * self.signature.item_bytes, given)

    @property
    def values(self) -> int:
        """Elements in it, where the response is JSON; bytes cost next to nothing beside the run."""
        if all(wanted.binary for wanted in self.outputs):
            return 0
        return sum(array.size for array in self.feeds.values())

    @property
    def names(self) -> list[str]:
        """Names of the outputs to respond with."""
        return [wanted.name for wanted in self.outputs]

    def joins(self, other: object) -> bool:
        """Whether both may be one run of an engine. The steps of sequences run alone."""
        return (
            isinstance(other, TensorRequest)
            and self.step is other.step is None
            and tensor_batches.joins(self.signature, self.feeds, other.feeds)
        )


def read(body: Body, engine: Engine, step: Step | None) -> TensorRequest:
    """Parse a request's tensors; InputError names what does not fit `engine`."""
    feeds: dict[str, Array] = {}
    at = body.at
    for given in body.given["inputs"]:
        tensor = _tensor(given, engine, feeds)
        shape = _shape(given, tensor)
        size = size_of_bytes(given, tensor.name)
        if size is None:
            feeds[tensor.name] = array_of(tensor.datatype, shape, given.get("data"), tensor.name)
            continue
        if size > len(body.data) - at:
            raise InputError(
                f"{tensor.name!r}: binary_data_size is {size}, {len(body.data) - at} bytes follow",
                "Inference-Header-Content-Length is the length of the JSON alone",
            )
        data = memoryview(body.data)[at : at + size]
        feeds[tensor.name] = from_bytes(tensor.datatype, shape, data, tensor.name)
        at += size
    if at != len(body.data):
        raise InputError(f"{len(body.data) - at} bytes follow the JSON, no input claims them")
    outputs = _outputs(body.given, engine, step)
    return TensorRequest(engine.signature, _complete(feeds, engine, step), outputs, body.id, step)


def read_bare(body: bytes | memoryview, engine: Engine) -> TensorRequest:
    """A body that is the bytes of the one input, without JSON; the response is bytes too.

    InputError when a request needs several inputs, or the bytes do not say what shape they have.
    """
    needed = [t for t in engine.signature.inputs if t.name not in engine.defaults]
    release = engine.manifest.release
    if len(needed) != 1 or needed[0].datatype == "BYTES" or needed[0].dims.count(-1) > 1:
        raise InputError(
            f"{release}: a body without JSON is for a model of one input with one free axis",
            f"describe them in JSON: {_names(needed)}",
        )
    tensor = needed[0]
    dims = tensor.dims
    width = DTYPES[tensor.datatype].itemsize * size_of([d for d in dims if d != -1])
    items, left = divmod(len(body), width) if width else (0, 1)
    if left or not body or (-1 not in dims and items != 1):
        raise InputError(
            f"{release}: {len(body)} bytes are not {tensor.name!r}, {tensor.datatype} of shape "
            f"{dims}: {width} bytes" + (" or a multiple" if -1 in dims else "")
        )
    shape = [items if d == -1 else d for d in dims]
    feeds = {tensor.name: from_bytes(tensor.datatype, shape, body, tensor.name)}
    outputs = [Wanted(output.name, True) for output in engine.signature.outputs]
    return TensorRequest(engine.signature, _complete(feeds, engine, None), outputs)


def of_arrays(
    engine: Engine, feeds: Named, outputs: Sequence[str] = (), step: Step | None = None
) -> TensorRequest:
    """A program's request; InputError as for one over the endpoint."""
    checked: dict[str, Array] = {}
    for name, array in feeds.items():
        tensor = _tensor({"name": name, "datatype": datatype_of(array)}, engine, checked)
        tensor.check_shape(array.shape)
        checked[name] = _native(array)
    wanted = {"outputs": [{"name": name} for name in outputs]}
    _check_step(step, engine)
    return TensorRequest(
        engine.signature,
        _complete(checked, engine, step),
        _outputs(wanted, engine, step),
        step=step,
    )


def write(
    engine: Engine, request: TensorRequest, outputs: Mapping[str, Array]
) -> tuple[bytes, int]:
    """The response's body, and how many bytes of it are JSON: -1 when all are."""
    parts: list[bytes] = []
    written = [_written(wanted, outputs[wanted.name], parts) for wanted in request.outputs]
    response: dict[str, Any] = {
        "model_name": engine.manifest.model,
        "model_version": str(engine.manifest.version),
        "parameters": {"task": engine.manifest.task},
        "outputs": written,
    }
    if request.id is not None:
        response["id"] = request.id
    head = orjson.dumps(response, option=orjson.OPT_SERIALIZE_NUMPY)
    if not any(wanted.binary for wanted in request.outputs):
        return head, -1
    return b"".join([head, *parts]), len(head)


def step_of(given: dict[str, Any]) -> Step | None:
    """The step of a sequence that a request is; None without an id (0 and "" are none)."""
    parameters = parameters_of(given)
    found = parameters.get("sequence_id", 0)
    start, end = flag(given, "sequence_start"), flag(given, "sequence_end")
    if type(found) not in (int, str) or (type(found) is int and not 0 <= found <= _LARGEST_ID):
        raise InputError(f"sequence_id is a text or a uint64, got {str(found)[:40]!r}")
    if isinstance(found, str) and len(found) > _LONGEST_ID:
        raise InputError(f"sequence_id has {len(found)} characters, {_LONGEST_ID} allowed")
    if not found:
        if start or end:
            raise InputError("sequence_start or sequence_end without a sequence_id")
        return None
    return Step(found, start, end)


def _tensor(given: Any, engine: Engine, seen: Mapping[str, Array]) -> Tensor:
    """The input that `given` names, with its datatype checked."""
    inputs, release = engine.tensors[0], engine.manifest.release
    if not isinstance(given, dict):
        raise InputError(
            f"an input is an object, got {str(given)[:40]!r}",
            "it has a name, a datatype, a shape and data",
        )
    name = given.get("name")
    tensor = inputs.get(name) if isinstance(name, str) else None
    if tensor is None:
        raise InputError(
            f"{release} has no input {str(name)[:60]!r}", f"it takes {_names(inputs.values())}"
        )
    if tensor.name in seen:
        raise InputError(f"{release}: input {tensor.name!r} is there twice")
    kind = given.get("datatype")
    if kind != tensor.datatype:
        raise InputError(
            f"{release}: input {tensor.name!r} is {tensor.datatype}, "
            f"got datatype {str(kind)[:40]!r}{known(kind)}",
            f"convert it to {tensor.datatype}",
        )
    return tensor


def _shape(given: dict[str, Any], tensor: Tensor) -> list[int]:
    """The shape of an input, of no more elements than a body can hold."""
    shape = given.get("shape")
    if type(shape) is not list or any(type(d) is not int or d < 0 for d in shape):
        raise InputError(f"{tensor.name!r}: shape is a list of lengths, got {str(shape)[:60]}")
    tensor.check_shape(shape)
    if math.prod(max(1, length) for length in shape) > BODY:
        raise InputError(f"{tensor.name!r}: shape {str(shape)[:60]} has more than {BODY} elements")
    return shape


def _complete(feeds: dict[str, Array], engine: Engine, step: Step | None) -> dict[str, Array]:
    """With the defaults of what was left out; InputError for what is missing, or is kept here."""
    _check_step(step, engine)
    states = {state.taken for state in engine.signature.states} if step is not None else set()
    for name in states & feeds.keys():
        raise InputError(f"input {name!r} is a state: with a sequence_id it must not be sent")
    missing = [
        tensor
        for tensor in engine.signature.inputs
        if tensor.name not in feeds and tensor.name not in states
    ]
    for tensor in missing:
        if tensor.name not in engine.defaults:
            raise InputError(
                f"{engine.manifest.release}: input {tensor.name!r} is missing",
                f"it takes {_names(engine.signature.inputs)}",
            )
        feeds[tensor.name] = engine.defaults[tensor.name]
    return feeds


def _check_step(step: Step | None, engine: Engine) -> None:
    if step is not None and not engine.signature.states:
        raise InputError(f"{engine.manifest.release} has no states, so it has no sequences")


def _outputs(given: dict[str, Any], engine: Engine, step: Step | None) -> list[Wanted]:
    """The outputs to respond with; by default all, but for a sequence's states."""
    everything = flag(given, "binary_data_output")
    asked = given.get("outputs")
    if not asked:
        states = {state.given for state in engine.signature.states} if step is not None else set()
        left = [output.name for output in engine.signature.outputs if output.name not in states]
        return [Wanted(name, everything) for name in left]
    if not isinstance(asked, list):
        raise InputError(f'"outputs" is a list, got {str(asked)[:40]!r}')
    found: dict[str, Wanted] = {}
    for output in asked:
        if not isinstance(output, dict):
            raise InputError(
                f"an output is an object, got {str(output)[:40]!r}", 'such as {"name": "y"}'
            )
        name = output.get("name")
        if not isinstance(name, str) or name not in engine.tensors[1]:
            raise InputError(
                f"{engine.manifest.release} has no output {str(name)[:60]!r}",
                f"it has {_names(engine.signature.outputs)}",
            )
        if name in found:
            raise InputError(f"{engine.manifest.release}: output {name!r} is asked for twice")
        if "classification" in parameters_of(output):
            raise InputError(f"{name!r}: the classification extension is not offered")
        found[name] = Wanted(name, flag(output, "binary_data", everything))
    return list(found.values())


def _written(wanted: Wanted, array: Array, parts: list[bytes]) -> dict[str, Any]:
    """The JSON of one output; its bytes, if it is to be in bytes, are added to `parts`."""
    output: dict[str, Any] = {
        "name": wanted.name,
        "datatype": datatype_of(array),
        "shape": array.shape,
    }
    if wanted.binary:
        parts.append(to_bytes(array))
        output["parameters"] = {"binary_data_size": len(parts[-1])}
    else:
        output["data"] = numbers_of(array)
    return output


def _native(array: Array) -> Array:
    """An array as onnxruntime reads it: strings as objects, the machine's byte order."""
    if array.dtype.kind in "SU":
        return (
            np.char.decode(array, "utf-8").astype(object)
            if array.dtype.kind == "S"
            else array.astype(object)
        )
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _names(tensors: Any) -> str:
    """Tensors in words: name, datatype, shape."""
    return ", ".join(f"{t.name} {t.datatype} {t.dims}" for t in tensors)[:400] or "no input"
