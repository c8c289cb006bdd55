"""Routes for operations, profiles, health, metrics and the event stream."""

from collections.abc import Iterator
from typing import Annotated

import msgspec

from shoal.controller.access import roles
from shoal.controller.api.metrics import fleet_text
from shoal.controller.api.routing import Call, Limit, Listing, RequestModel, all_of, route
from shoal.controller.monitoring import performance
from shoal.controller.operations import operations
from shoal.controller.operations.operations import Operation
from shoal.controller.store import changes
from shoal.profile import Profile, load_profiles

TAG = "controller"
JSON_DOCUMENT, EVENTS = "application/json; charset=utf-8", "text/event-stream"
_STATE = f"^(|{'|'.join(operations.STATES)})$"
PEM, METRICS = "application/x-pem-file", "text/plain; version=0.0.4; charset=utf-8"


class OperationQuery(RequestModel, frozen=True, kw_only=True):
    """Filters of operations; empty ones match all.

    state   queued, running, succeeded, failed or canceled
    kind    such as train or import
    q       part of the id, the subject, the error or who asked for it
    sort    created, finished, subject or state; "-" before it: falling
    """

    state: Annotated[str, msgspec.Meta(pattern=_STATE)] = ""
    kind: str = ""
    subject: str = ""
    q: str = ""
    sort: str = "-created"
    cursor: str = ""
    limit: Limit = 50


class OperationLog(msgspec.Struct, frozen=True):
    """text: the end of an operation's output; "" where there is none."""

    text: str


class Liveness(msgspec.Struct, frozen=True):
    """status: "ok"; anything else is a problem instead."""

    status: str = "ok"


@route("GET", "/api/v1/operations", role="viewer", tag=TAG)
def list_operations(call: Call, query: OperationQuery) -> Listing[Operation]:
    """Operations, newest first."""
    return Listing(*operations.page(call.ctx, **msgspec.structs.asdict(query)))


@route("GET", "/api/v1/operations/<id>", role="viewer", tag=TAG)
def get_operation(call: Call, id: str) -> Operation:  # noqa: A002 - the API's word
    """One operation, with its progress."""
    return operations.get_operation(call.ctx, id)


@route("GET", "/api/v1/operations/<id>/log", role="operator", tag=TAG)
def get_operation_log(call: Call, id: str) -> OperationLog:  # noqa: A002
    """The last 64 kB of what an operation's process has printed, such as a training script."""
    return OperationLog(text=operations.log_of(call.ctx, id))


@route("POST", "/api/v1/operations/<id>/cancel", role="operator", tag=TAG)
def cancel_operation(call: Call, id: str) -> Operation:  # noqa: A002
    """Cancel an operation: a queued one is dropped, a running one is killed within a second."""
    return operations.cancel(call.ctx, actor=call.by, ident=id)


@route("GET", "/api/v1/profiles", role="viewer", tag=TAG)
def list_profiles(call: Call) -> Listing[Profile]:
    """Firmware profiles: limits of each class of board."""
    return all_of(list(load_profiles().values()))


@route("GET", "/healthz", role="", tag=TAG)
def healthz(call: Call) -> Liveness:
    """Liveness of this process."""
    return Liveness()


@route("GET", "/readyz", role="", tag=TAG)
def readyz(call: Call) -> Liveness:
    """Readiness: database and keys are available."""
    changes.newest(call.ctx)
    if not call.services.authority.bundle or not call.ctx.signer.root:
        raise RuntimeError("a key store without a root")
    return Liveness()


@route("GET", "/ca.pem", role="", tag=TAG, media=PEM)
def get_ca(call: Call) -> str:
    """The CA of this controller, its broker and its devices, as pinned by join tokens."""
    return call.services.authority.bundle


@route("GET", "/metrics", role="", tag=TAG, media=METRICS)
def get_metrics(call: Call) -> str:
    """Prometheus metrics: fleet health, the engine, and requests of this process.

    For the role viewer, unless `[network] open_metrics` is set.
    """
    if not call.ctx.settings.network.open_metrics:
        roles.require(call.actor, "viewer")
    health = performance.fleet_health(call.ctx)
    return fleet_text(health) + call.services.metrics.text()


@route("GET", "/openapi.json", role="", tag=TAG, media=JSON_DOCUMENT)
def get_document(call: Call) -> bytes:
    """This document."""
    call.headers["Cache-Control"] = "no-cache"
    return call.services.document()


@route("GET", "/api/v1/stream", role="viewer", tag=TAG, media=EVENTS)
def get_stream(call: Call) -> Iterator[bytes]:
    """Changes as server-sent events: `event` is the kind, `data` {"id", "subject", "at"}.

    It ends after some seconds and is to be opened again with Last-Event-ID, as browsers do.
    """
    call.headers["Cache-Control"] = "no-store"
    call.headers["X-Accel-Buffering"] = "no"
    return call.services.streams.follow(call.ctx, call.resume, call.gone)
