"""Inference of the Open Inference Protocol v2: a request's tensors in, the response's tensors out.

A request is accepted first and run afterwards, so that requests that wait can run as one batch
(io/batching.py). Pure. Tensors are JSON or the binary tensor extension: JSON, as long as
Inference-Header-Content-Length says, and behind it the bytes of every tensor that has a
binary_data_size, little-endian, in the order of the inputs. Request and response choose
independently. Source: github.com/kserve/open-inference-protocol, HTTP/REST; Triton's
extension_binary_data.md.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from shoal.agent.serving import row_requests
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
from shoal.agent.serving.row_requests import RowRequest
from shoal.agent.serving.served_model import ServedModel
from shoal.errors import InputError, ShoalError
from shoal.sketch import F32

#: Longest run on the event loop's thread, in microseconds: meanwhile all other requests wait.
QUICK_US = 1_000.0


class Call(NamedTuple):
    """An accepted inference request: run by the engine that served when it arrived."""

    serving: ServedModel
    engine: Engine
    input: RowRequest


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
    items = sum(call.input.items for call in calls)
    values = sum(call.input.values for call in calls)
    return items * slot.timings_us.get(slot.variant, 0.0) > QUICK_US or values > LONG_JSON


def _call(serving: ServedModel, engine: Engine, request: Request) -> Call:
    try:
        return Call(serving, engine, row_requests.read(request.body, request.json_bytes, engine))
    except InputError:
        serving.count_error()
        raise


def _response(call: Call, result: F32 | ShoalError) -> Response:
    if isinstance(result, ShoalError):
        return response_to(result, "")
    return Response(200, *row_requests.write(call.engine, call.input, result))
