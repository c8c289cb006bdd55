"""The Open Inference Protocol v2: requests in, answers out; no socket anywhere near.

A request to infer is taken in first and answered afterwards, so that those that wait can be
answered together (io/batching.py). Errors are the protocol's: {"error": "..."}.
Source: github.com/kserve/open-inference-protocol, HTTP/REST.
"""

import functools
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import orjson

from shoal.agent.serving import tensors
from shoal.agent.serving.served_model import Engine, Serving
from shoal.agent.serving.tensors import Asked
from shoal.agent.status import Standing
from shoal.errors import AbsentError, ConflictError, DeniedError, InputError, ModelError, ShoalError
from shoal.pipeline import RAW
from shoal.sketch import F32

_log = logging.getLogger(__name__)

#: Largest request body; JSON of which it takes a millisecond or so to make numbers.
BODY, LONG_JSON = 8 << 20, 1 << 16
#: Microseconds that a run may hold up everybody else on the event loop.
QUICK_US = 1_000.0
_MODEL = re.compile(r"/v2/models/([^/]+)(?:/versions/([^/]+))?(/ready|/infer)?")
_SOURCE = re.compile(r"/sources/([^/]+)")
_STATUS = {
    AbsentError: 404, InputError: 400, ModelError: 500, DeniedError: 403, ConflictError: 503,
}  # fmt: skip


class Request(NamedTuple):
    """One HTTP request, whole.

    path        without its query
    json_bytes  Inference-Header-Content-Length, -1 without it
    """

    method: str
    path: str
    body: bytes
    json_bytes: int = -1

    @property
    def is_long(self) -> bool:
        """Whether to read it takes so long that it is worth a thread."""
        return (self.json_bytes if self.json_bytes >= 0 else len(self.body)) > LONG_JSON


class Answer(NamedTuple):
    """status: of HTTP; body: JSON, or `json_bytes` of JSON and then a tensor's bytes; or `html`."""

    status: int
    body: bytes
    json_bytes: int = -1
    html: bool = False


class Call(NamedTuple):
    """A request to infer, taken in: it is answered by the engine that served when it came."""

    serving: Serving
    engine: Engine
    asked: Asked


class Inference:
    """Answers the protocol for the models that serve.

    models    name -> Serving
    standing  state of the device: / for a person, /status for a program
    version   of the agent
    pushes    sources that take what is posted to /sources/NAME: a body in, how many frames out
    keep      takes rows (n, F) that were asked under an id, which labels may come for later
    """

    def __init__(
        self,
        models: Mapping[str, Serving],
        *,
        standing: Callable[[], Standing],
        version: str,
        pushes: Mapping[str, Callable[[bytes], int]] | None = None,
        keep: Callable[[Engine, F32, str], None] | None = None,
    ) -> None:
        self._keep = keep
        self._models, self._standing, self._version = models, standing, version
        self._pushes = pushes or {}

    def answer(self, request: Request) -> Answer:
        """The answer to any request; never raises."""
        taken = self.take(request)
        return taken if isinstance(taken, Answer) else answer_together([taken])[0]

    def take(self, request: Request) -> Answer | Call:
        """The answer to a request, or the call that it is; never raises."""
        try:
            return self._route(request)
        except Exception as error:  # noqa: BLE001 a bug answers one request with 500, no more
            return refusal(error, f"{request.method} {request.path}")

    def _route(self, request: Request) -> Answer | Call:
        method, path = request.method, request.path
        found = _parts(path)
        if found is None and (source := _SOURCE.fullmatch(path)):
            return self._push(request, source.group(1))
        if found is None and path not in self._fixed:
            return failure(404, f"no such path {path[:100]!r}; the protocol is under /v2")
        wanted = "POST" if found is not None and found[2] == "/infer" else "GET"
        if method != wanted:
            return failure(405, f"{path}: {wanted}, not {method}")
        if found is None:
            return self._fixed[path](self)
        return self._model(request, *found)

    def _model(
        self, request: Request, name: str, version: str | None, verb: str | None
    ) -> Answer | Call:
        serving = self._models.get(name)
        engine = serving.engine if serving else None
        if serving is None or engine is None:
            if verb == "/ready":
                return failure(400, f"no release of {name!r} serves on this device")
            there = (
                ", ".join(sorted(n for n, s in list(self._models.items()) if s.engine))
                or "none yet"
            )
            raise AbsentError("model", name, f"these serve here: {there}")
        if version and version != str(engine.manifest.version):
            raise AbsentError(
                "version", version, f"{engine.manifest.release} serves; leave the version out"
            )
        if verb == "/infer":
            call = _call(serving, engine, request)
            if self._keep is not None and call.asked.id:
                self._keep(engine, call.asked.rows, call.asked.id)
            return call
        return _json(200, _metadata(engine) if verb is None else {"name": name, "ready": True})

    def _push(self, request: Request, name: str) -> Answer:
        if request.method != "POST":
            return failure(405, f"{request.path}: POST, not {request.method}")
        if name not in self._pushes:
            there = ", ".join(self._pushes) or 'none; add [sources.NAME] kind = "push"'
            raise AbsentError("source that is pushed to", name, f"there are: {there}")
        return _json(200, {"frames": self._pushes[name](request.body)})

    def _server(self) -> Answer:
        about = {
            "name": "shoal-agent",
            "version": self._version,
            "extensions": ["binary_tensor_data"],
        }
        return _json(200, about)

    def _live(self) -> Answer:
        return _json(200, {"live": True})

    def _ready(self) -> Answer:
        ready = any(serving.engine for serving in list(self._models.values()))
        return _json(200, {"ready": True}) if ready else failure(400, "no release serves yet")

    def _status(self) -> Answer:
        return Answer(200, msgspec.json.encode(self._standing()))

    def _page(self) -> Answer:
        from shoal.agent.status_page import page  # a device that nobody looks at does without

        return Answer(200, page(self._standing()).encode(), html=True)

    _fixed: Mapping[str, Callable[["Inference"], Answer]] = {
        "/v2": _server,
        "/v2/": _server,
        "/v2/health/live": _live,
        "/v2/health/ready": _ready,
        "/status": _status,
        "/": _page,
    }


@functools.lru_cache(maxsize=64)
def _parts(path: str) -> tuple[str, str | None, str | None] | None:
    """Model, version and verb that a path names; None for any other path."""
    found = _MODEL.fullmatch(path)
    return (found.group(1), found.group(2), found.group(3)) if found else None


def answer_together(calls: Sequence[Call]) -> list[Answer]:
    """The answers to calls for one engine, in one run; never raises."""
    first = calls[0]
    try:
        many = [call.asked.rows for call in calls]
        said = first.serving.infer_together(first.engine, many)
        return [_told(call, result) for call, result in zip(calls, said, strict=True)]
    except Exception as error:  # noqa: BLE001 a bug answers these requests with 500, no more
        return [refusal(error, f"infer {first.serving.model}")] * len(calls)


def is_slow(calls: Sequence[Call]) -> bool:
    """Whether answering these, of one engine, takes so long that it is worth a thread."""
    slot = calls[0].engine.slot
    rows = sum(len(call.asked.rows) for call in calls)
    values = rows * calls[0].engine.features
    return rows * slot.timings_us.get(slot.variant, 0.0) > QUICK_US or values > LONG_JSON


def refusal(error: Exception, what: str) -> Answer:
    """The answer to what failed."""
    if isinstance(error, ShoalError):
        status = next((s for kind, s in _STATUS.items() if isinstance(error, kind)), 500)
        return failure(status, str(error))
    _log.error("%s", what, exc_info=error)
    return failure(500, f"{type(error).__name__}: this is a bug of the agent, see its log")


def failure(status: int, why: str) -> Answer:
    """The protocol's error."""
    return _json(status, {"error": why})


def _call(serving: Serving, engine: Engine, request: Request) -> Call:
    try:
        return Call(serving, engine, tensors.read(request.body, request.json_bytes, engine))
    except InputError:
        serving.refuse()
        raise


def _told(call: Call, said: F32 | ShoalError) -> Answer:
    if isinstance(said, ShoalError):
        return refusal(said, "")
    return Answer(200, *tensors.write(call.engine, call.asked, said))


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
            **_raw_input(engine),
        },
    }


def _raw_input(engine: Engine) -> dict[str, Any]:
    """The other input that a release with a pipeline takes: what the plant measures."""
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


def _json(status: int, content: Any) -> Answer:
    return Answer(status, orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY))
