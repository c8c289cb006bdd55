"""Inference of the Open Inference Protocol v2: a request's tensors in, the response's tensors out.

A request is accepted first and run afterwards, so that requests that wait can run as one batch
(io/batching.py). Pure. Tensors are JSON or the binary tensor extension: JSON, as long as
Inference-Header-Content-Length says, and behind it the bytes of every tensor that has a
binary_data_size, little-endian, in the order of the inputs. Request and response choose
independently. Source: github.com/kserve/open-inference-protocol, HTTP/REST; Triton's
extension_binary_data.md.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, cast

from shoal.agent.serving import protocol, row_requests, tensor_requests
from shoal.agent.serving.engine import Engine
from shoal.agent.serving.routes import (
    LONG_JSON,
    Request,
    Response,
    Routes,
    model_path,
    response_to,
)
from shoal.agent.serving.row_requests import RowRequest
from shoal.agent.serving.served_model import ServedModel
from shoal.agent.serving.tensor_requests import TensorRequest
from shoal.errors import InputError, ShoalError
from shoal.sketch import F32

#: Longest run on the event loop's thread, in microseconds: meanwhile all other requests wait.
QUICK_US = 1_000.0


class Call(NamedTuple):
    """An accepted inference request: run by the engine that served when it arrived."""

    serving: ServedModel
    engine: Engine
    input: RowRequest | TensorRequest


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
            call = _call(*self._routes.served(found[0], found[1]), request)
            if self._collect is not None and call.input.id and isinstance(call.input, RowRequest):
                self._collect(call.engine, call.input.rows, call.input.id)
            return call
        except Exception as error:  # noqa: BLE001 a bug fails one request with 500, no more
            return response_to(error, f"{request.method} {request.path}")


def run_batch(calls: Sequence[Call]) -> list[Response]:
    """The responses to calls of one engine that join, in one run; never raises."""
    serving, engine = calls[0].serving, calls[0].engine
    requests = [call.input for call in calls]
    try:
        if engine.takes_rows:
            return _run_rows(serving, engine, cast("list[RowRequest]", requests))
        return _run_tensors(serving, engine, cast("list[TensorRequest]", requests))
    except Exception as error:  # noqa: BLE001 a bug fails these requests with 500, no more
        return [response_to(error, f"infer {serving.model}")] * len(calls)


def is_slow(calls: Sequence[Call]) -> bool:
    """Whether running these calls of one engine takes long enough to use a thread."""
    slot = calls[0].engine.slot
    items = values = 0
    for call in calls:
        items += call.input.items
        values += call.input.values
    return items * slot.timings_us.get(slot.variant, 0.0) > QUICK_US or values > LONG_JSON


def _call(serving: ServedModel, engine: Engine, request: Request) -> Call:
    body, json_bytes = request.body, request.json_bytes
    try:
        if engine.takes_rows:
            return Call(serving, engine, row_requests.read(body, json_bytes, engine))
        if json_bytes == 0:
            return Call(serving, engine, tensor_requests.read_bare(body, engine))
        parsed = protocol.parse_body(body, json_bytes)
        step = tensor_requests.step_of(parsed.given)
        engine = serving.engine_for(step, engine)
        return Call(serving, engine, tensor_requests.read(parsed, engine, step))
    except InputError:
        serving.count_error()
        raise


def _run_rows(
    serving: ServedModel, engine: Engine, requests: Sequence[RowRequest]
) -> list[Response]:
    results = serving.infer_batch(engine, [request.rows for request in requests])
    return [
        response_to(result, "")
        if isinstance(result, ShoalError)
        else Response(200, *row_requests.write(engine, request, result))
        for request, result in zip(requests, results, strict=True)
    ]


def _run_tensors(
    serving: ServedModel, engine: Engine, requests: Sequence[TensorRequest]
) -> list[Response]:
    results = serving.infer_requests(engine, requests)
    return [
        response_to(result, "")
        if isinstance(result, ShoalError)
        else Response(200, *tensor_requests.write(engine, request, result))
        for request, result in zip(requests, results, strict=True)
    ]
