"""Routes of the local endpoint except inference: health, metadata, status, start page, push.

Pure: a Request in, a Response out. Errors are the Open Inference Protocol's: {"error": "..."}.
Source: github.com/kserve/open-inference-protocol, HTTP/REST.
"""

import functools
import logging
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import orjson

from shoal.agent.serving.engine import Engine
from shoal.agent.serving.sequences import SequenceError
from shoal.agent.serving.served_model import ServedModel
from shoal.errors import AbsentError, ConflictError, DeniedError, InputError, ModelError, ShoalError
from shoal.pipeline import RAW
from shoal.signature import Tensor
from shoal.tasks import labels_of

_log = logging.getLogger(__name__)

#: Bytes of JSON whose parsing takes about a millisecond.
LONG_JSON = 1 << 16
_STARTING = "the agent is starting and loads its models; try again in a second"
_MODEL = re.compile(r"/v2/models/([^/]+)(?:/versions/([^/]+))?(/ready|/infer)?")
_SOURCE = re.compile(r"/sources/([^/]+)")
#: In order: the first kind that an error is of.
_STATUS = {
    AbsentError: 404, InputError: 400, ModelError: 500, DeniedError: 403, SequenceError: 409,
    ConflictError: 503,
}  # fmt: skip


class Request(NamedTuple):
    """One HTTP request with its body.

    path        without its query
    body        a memoryview when it is large and begins with a JSON of json_bytes
    json_bytes  Inference-Header-Content-Length, -1 without it
    """

    method: str
    path: str
    body: bytes | memoryview
    json_bytes: int = -1

    @property
    def is_long(self) -> bool:
        """Whether parsing it takes long enough to use a thread."""
        return (self.json_bytes if self.json_bytes >= 0 else len(self.body)) > LONG_JSON


class Response(NamedTuple):
    """status: of HTTP; body: JSON, or `json_bytes` of JSON and then a tensor's bytes; or `html`."""

    status: int
    body: bytes
    json_bytes: int = -1
    html: bool = False


class Routes:
    """Responds to every request but inference.

    models   name -> ServedModel
    status   the device's status as JSON, for /status
    page     the same as HTML, for /
    version  of the agent
    pushes   push sources by name, for /sources/NAME: a body in, its number of frames out
    loading  whether the agent is starting: models that it will serve are not loaded yet
    """

    def __init__(
        self,
        models: Mapping[str, ServedModel],
        *,
        status: Callable[[], bytes],
        page: Callable[[], str],
        version: str,
        pushes: Mapping[str, Callable[[bytes], int]] = {},
        loading: Callable[[], bool] = lambda: False,
    ) -> None:
        self.models, self._pushes, self._version = models, pushes, version
        self._loading = loading
        self._fixed: dict[str, Callable[[], Response]] = {
            "/v2": self._server,
            "/v2/": self._server,
            "/v2/health/live": lambda: _json(200, {"live": True}),
            "/v2/health/ready": self._ready,
            "/status": lambda: Response(200, status()),
            "/": lambda: Response(200, page().encode(), html=True),
        }

    def respond(self, request: Request) -> Response:
        """The response; ShoalError for a model, version or source that is not there."""
        method, path = request.method, request.path
        found = model_path(path)
        if found is None and (source := _SOURCE.fullmatch(path)):
            return self._push(request, source.group(1))
        if found is None and path not in self._fixed:
            return error_response(404, f"no such path {path[:100]!r}; the protocol is under /v2")
        wanted = "POST" if found is not None and found[2] == "/infer" else "GET"
        if method != wanted:
            return error_response(405, f"{path}: {wanted}, not {method}")
        return self._fixed[path]() if found is None else self._model(*found)

    def _model(self, name: str, version: str | None, verb: str | None) -> Response:
        try:
            serving, engine = self.served(name, version)
        except AbsentError:
            if verb == "/ready" and ((it := self.models.get(name)) is None or not it.engine):
                return error_response(400, f"no release of {name!r} serves on this device")
            raise
        return _json(
            200, _metadata(serving, engine) if verb is None else {"name": name, "ready": True}
        )

    def _push(self, request: Request, name: str) -> Response:
        if request.method != "POST":
            return error_response(405, f"{request.path}: POST, not {request.method}")
        if name not in self._pushes:
            there = ", ".join(self._pushes) or 'none; add [sources.NAME] kind = "push"'
            raise AbsentError("source that is pushed to", name, f"there are: {there}")
        return _json(200, {"frames": self._pushes[name](bytes(request.body))})

    def _server(self) -> Response:
        about = {
            "name": "shoal-agent",
            "version": self._version,
            "extensions": ["binary_tensor_data", "sequence", "sequence(string_id)"],
        }
        return _json(200, about)

    def _ready(self) -> Response:
        if any(serving.engine for serving in list(self.models.values())):
            return _json(200, {"ready": True})
        if self._loading():
            return error_response(503, _STARTING)
        return error_response(400, "no release serves yet")

    def served(self, name: str, version: str | None) -> tuple[ServedModel, Engine]:
        """The model and its engine.

        ConflictError (503, with Retry-After) while the agent starts and may be about to load it;
        AbsentError when no release, or another version, serves.
        """
        serving = self.models.get(name)
        engine = serving.engine if serving else None
        if serving is None or engine is None:
            if self._loading():
                raise ConflictError(_STARTING)
            there = ", ".join(sorted(n for n, s in list(self.models.items()) if s.engine))
            raise AbsentError("model", name, f"these serve here: {there or 'none yet'}")
        if version and version != str(engine.manifest.version):
            raise AbsentError(
                "version", version, f"{engine.manifest.release} serves; leave the version out"
            )
        return serving, engine


@functools.lru_cache(maxsize=64)
def model_path(path: str) -> tuple[str, str | None, str | None] | None:
    """Model, version and verb that a path names; None for any other path."""
    found = _MODEL.fullmatch(path)
    return (found.group(1), found.group(2), found.group(3)) if found else None


def error_response(status: int, message: str) -> Response:
    """The protocol's error."""
    return _json(status, {"error": message})


def response_to(error: Exception, what: str) -> Response:
    """The response to a request that raised; a bug is logged as `what` with its traceback."""
    if isinstance(error, ShoalError):
        status = next((s for kind, s in _STATUS.items() if isinstance(error, kind)), 500)
        return error_response(status, str(error))
    _log.error("%s", what, exc_info=error)
    return error_response(500, f"{type(error).__name__}: this is a bug of the agent, see its log")


def _metadata(serving: ServedModel, engine: Engine) -> dict[str, Any]:
    manifest, signature = engine.manifest, engine.signature
    return {
        "name": manifest.model,
        "versions": [str(manifest.version)],
        "platform": "onnxruntime_onnx",
        "inputs": [_tensor(tensor) for tensor in signature.inputs],
        "outputs": [_tensor(tensor) for tensor in signature.outputs],
        "parameters": {
            "features": [f.name for f in manifest.features],
            "labels": labels_of(manifest.answers),
            "task": manifest.task,
            "variant": engine.slot.variant,
            **_raw_input(engine),
            **_states(serving, engine),
        },
    }


def _tensor(tensor: Tensor) -> dict[str, Any]:
    optional = {} if tensor.default is None else {"optional": True}
    return {
        "name": tensor.name, "datatype": tensor.datatype, "shape": tensor.dims, **optional
    }  # fmt: skip


def _states(serving: ServedModel, engine: Engine) -> dict[str, Any]:
    """States of a recurrent model, and the sequences of which they are kept here."""
    if not engine.signature.states:
        return {}
    states = [
        {"input": state.taken, "output": state.given, "shape": state.shape}
        for state in engine.signature.states
    ]
    sequences = {"open": len(serving.sequences), "dropped": serving.sequences.dropped}
    return {"states": states, "sequences": sequences}


def _raw_input(engine: Engine) -> dict[str, Any]:
    """The second input of a release with a pipeline: rows in the plant's units."""
    if engine.raw is None:
        return {}
    line = engine.manifest.pipeline
    about = {
        "name": RAW,
        "columns": engine.raw.names,
        "units": [i.given for i in line.inputs],
        "samples": line.stretch.samples if line.stretch else 1,
    }
    return {"raw_input": about}


def _json(status: int, content: Any) -> Response:
    return Response(status, orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY))
