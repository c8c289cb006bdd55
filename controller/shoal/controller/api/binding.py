"""Declared routes on a Flask blueprint: check, read, call, answer."""

import functools
import select
import socket
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from flask import Blueprint, Response, current_app, g, request
from werkzeug.datastructures import Headers

from shoal.controller.access import roles
from shoal.controller.api import inputs, replay
from shoal.controller.api.declare import JSON, Call, Route

_encode = msgspec.json.Encoder().encode


def blueprint(routes: Sequence[Route]) -> Blueprint:
    """The API. Only what is declared is there: OPTIONS is not answered by Flask itself."""
    api = Blueprint("api", __name__)
    for route in routes:
        api.add_url_rule(
            route.path, route.name, _bind(route), methods=[route.method],
            provide_automatic_options=False,
        )  # fmt: skip
    return api


def _bind(route: Route) -> Callable[..., Response]:
    def answer(**path: Any) -> Response:
        if route.role:
            roles.require(g.actor, route.role)
        given = inputs.read(route)
        if route.repeatable and (key := request.headers.get(replay.HEADER)):
            return replay.once(_call(), route, key, lambda: _answer(route, path, given))
        return _answer(route, path, given)

    return answer


def _answer(route: Route, path: dict[str, Any], given: dict[str, Any]) -> Response:
    call = _call()
    value = route.view(call, **path, **given)
    headers = Headers(call.headers)
    if route.location:
        headers["Location"] = route.location.format_map(msgspec.to_builtins(value))
    if route.media != JSON:
        return Response(value, route.status, headers, content_type=route.media)
    if value is None:
        return Response(status=route.status, headers=headers)
    response = Response(_encode(value), route.status, headers, content_type=JSON)
    response.headers.setdefault("Cache-Control", "private, no-cache")
    if request.method == "GET":
        response.add_etag()
        response.make_conditional(request)
    return response


def _call() -> Call:
    return Call(
        ctx=current_app.extensions["shoal"],
        house=current_app.extensions["shoal-house"],
        actor=g.actor,
        address=request.remote_addr or "",
        headers={},
        resume=request.headers.get("Last-Event-ID", ""),
        gone=functools.partial(_hung_up, request.environ.get("gunicorn.socket")),
    )


def _hung_up(connection: socket.socket | None) -> bool:
    """Whether there is something to read where nobody should say anything more: the end."""
    if connection is None:
        return False
    try:
        poll = select.poll()
        poll.register(connection, select.POLLIN)
        return bool(poll.poll(0))
    except (OSError, ValueError):
        return True
