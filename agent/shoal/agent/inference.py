"""The Open Inference Protocol v2 in JSON: requests in, answers out; no socket anywhere near.

Binary tensors are a later extension. Errors are the protocol's: {"error": "..."}.
Source: github.com/kserve/open-inference-protocol, HTTP/REST.
"""

import logging
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import msgspec
import numpy as np
import orjson

from shoal.agent.serving import Engine, Serving
from shoal.errors import AbsentError, DeniedError, InputError, ModelError, ShoalError
from shoal.sketch import F32

_log = logging.getLogger(__name__)

#: Largest request body, and most rows in one request.
BODY, ROWS = 8 << 20, 65_536
_MODEL = re.compile(r"/v2/models/([^/]+)(?:/versions/([^/]+))?(/ready|/infer)?")
_STATUS = {AbsentError: 404, InputError: 400, ModelError: 500, DeniedError: 403}


class Request(NamedTuple):
    """One HTTP request, whole. path: without its query."""

    method: str
    path: str
    body: bytes


class Answer(NamedTuple):
    """status: of HTTP; body: JSON."""

    status: int
    body: bytes


class Inference:
    """Answers the protocol for the models that serve.

    models    name -> Serving
    standing  JSON-able state of the device, for /status
    version   of the agent
    """

    def __init__(
        self,
        models: Mapping[str, Serving],
        *,
        standing: Callable[[], Any],
        version: str,
    ) -> None:
        self._models, self._standing, self._version = models, standing, version

    def answer(self, request: Request) -> Answer:
        """The answer to any request; never raises."""
        try:
            return self._route(request)
        except ShoalError as error:
            status = next((s for kind, s in _STATUS.items() if isinstance(error, kind)), 500)
            return failure(status, str(error))
        except Exception as error:  # noqa: BLE001 a bug answers one request with 500, no more
            _log.exception("%s %s", request.method, request.path)
            return failure(500, f"{type(error).__name__}: this is a bug of the agent, see its log")

    def is_slow(self, request: Request) -> bool:
        """Whether answering takes long enough to be worth a thread: about a millisecond."""
        found = _MODEL.fullmatch(request.path)
        serving = self._models.get(found.group(1)) if found else None
        if not found or found.group(3) != "/infer" or not serving or not serving.engine:
            return False
        slot = serving.engine.slot
        return slot.timings_us.get(slot.variant, 0.0) > 1e3 or len(request.body) > 1 << 18

    def _route(self, request: Request) -> Answer:
        method, path, _ = request
        wanted = "POST" if path.endswith("/infer") else "GET"
        found = _MODEL.fullmatch(path)
        if not found and path not in self._fixed:
            return failure(404, f"no such path {path[:100]!r}; the protocol is under /v2")
        if method != wanted:
            return failure(405, f"{path}: {wanted}, not {method}")
        if not found:
            return self._fixed[path](self)
        return self._model(request, *found.groups())

    def _model(self, request: Request, name: str, version: str | None, verb: str | None) -> Answer:
        serving = self._models.get(name)
        engine = serving.engine if serving else None
        if serving is None or engine is None:
            if verb == "/ready":
                return failure(400, f"no release of {name!r} serves on this device")
            there = ", ".join(sorted(n for n, s in self._models.items() if s.engine)) or "none yet"
            raise AbsentError("model", name, f"these serve here: {there}")
        if version and version != str(engine.manifest.version):
            raise AbsentError(
                "version", version, f"{engine.manifest.release} serves; leave the version out"
            )
        if verb == "/infer":
            return _infer(serving, engine, request.body)
        return _json(200, _metadata(engine) if verb is None else {"name": name, "ready": True})

    def _server(self) -> Answer:
        return _json(200, {"name": "shoal-agent", "version": self._version, "extensions": []})

    def _live(self) -> Answer:
        return _json(200, {"live": True})

    def _ready(self) -> Answer:
        ready = any(serving.engine for serving in self._models.values())
        return _json(200, {"ready": True}) if ready else failure(400, "no release serves yet")

    def _status(self) -> Answer:
        return Answer(200, msgspec.json.encode(self._standing()))

    _fixed: Mapping[str, Callable[["Inference"], Answer]] = {
        "/v2": _server,
        "/v2/": _server,
        "/v2/health/live": _live,
        "/v2/health/ready": _ready,
        "/status": _status,
    }


def failure(status: int, why: str) -> Answer:
    """The protocol's error."""
    return _json(status, {"error": why})


def _infer(serving: Serving, engine: Engine, body: bytes) -> Answer:
    given = _parse(body)
    rows = _tensor(given, engine)
    said = serving.infer(rows)
    manifest = engine.manifest
    answer: dict[str, Any] = {
        "model_name": manifest.model,
        "model_version": str(manifest.version),
        "outputs": [
            {
                "name": manifest.output,
                "shape": list(said.shape),
                "datatype": "FP32",
                "data": said.ravel(),
            }
        ],
    }
    if "id" in given:
        answer["id"] = given["id"]
    return _json(200, answer)


def _parse(body: bytes) -> dict[str, Any]:
    try:
        given = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InputError(f"body is not JSON: {error}", "a missing value is null") from error
    if not isinstance(given, dict) or not isinstance(given.get("inputs"), list):
        raise InputError('body has no "inputs" list', "see the Open Inference Protocol v2")
    return given


def _tensor(given: dict[str, Any], engine: Engine) -> F32:
    """The one input as float32 (n, F); InputError names what does not fit."""
    wanted, release = engine.manifest.input, engine.manifest.release
    names = [i.get("name") for i in given["inputs"] if isinstance(i, dict)]
    if names != [wanted]:
        raise InputError(f"{release} takes the one input {wanted!r}, got {names}"[:300])
    tensor = given["inputs"][0]
    shape, kind = tensor.get("shape"), tensor.get("datatype")
    if kind != "FP32":
        raise InputError(f"{release}: input {wanted!r} is FP32, got datatype {str(kind)[:40]!r}")
    if not _is_shape(shape, engine.features):
        raise InputError(
            f"{release}: input {wanted!r} has shape [rows, {engine.features}], "
            f"got {str(shape)[:60]}",
            "its columns are: " + ", ".join(f.name for f in engine.manifest.features[:20]),
        )
    values = _numbers(tensor.get("data"), wanted)
    if values.size != shape[0] * engine.features:
        raise InputError(f"{wanted!r}: shape {shape} but {values.size} values in data")
    return values.reshape(shape)


def _is_shape(shape: Any, features: int) -> bool:
    whole = isinstance(shape, list) and all(type(size) is int for size in shape)
    return whole and len(shape) == 2 and 0 < shape[0] <= ROWS and shape[1] == features


def _numbers(data: Any, name: str) -> F32:
    """data, flat or nested, as float32; null is a missing value."""
    if not isinstance(data, list):
        raise InputError(f"{name!r}: data is not a list", "binary tensors are not understood")
    try:
        return np.array(data, np.float32)
    except (TypeError, ValueError):
        pass
    try:
        return np.array(data, np.object_).astype(np.float64).astype(np.float32)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name!r}: data holds what is no number: {str(error)[:100]}") from error


def _metadata(engine: Engine) -> dict[str, Any]:
    manifest = engine.manifest
    return {
        "name": manifest.model,
        "versions": [str(manifest.version)],
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": manifest.input, "datatype": "FP32", "shape": [-1, engine.features]}],
        "outputs": [{"name": manifest.output, "datatype": "FP32", "shape": [-1, engine.outputs]}],
        "parameters": {
            "features": [f.name for f in manifest.features],
            "labels": manifest.labels,
            "variant": engine.slot.variant,
        },
    }


def _json(status: int, content: Any) -> Answer:
    return Answer(status, orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY))
