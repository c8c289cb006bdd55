"""Request dispatch: check the role, parse, replay or call the view, build the response.

A request with an Idempotency-Key that was completed before gets the recorded response.
"""

import functools
import hashlib
import select
import socket
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from flask import Blueprint, Response, current_app, g, request
from werkzeug.datastructures import Headers

from shoal.controller.access import idempotency, known_browsers, roles
from shoal.controller.access.roles import Actor
from shoal.controller.api import request_parsing, scoped
from shoal.controller.api.routing import JSON, Call, Route
from shoal.errors import DeniedError, InputError

IDEMPOTENCY_KEY = "Idempotency-Key"
REPLAYED = "Idempotency-Replayed"
_MAX_KEY_LENGTH = 255
#: Views for who has signed in with a one-time password.
ONE_TIME = frozenset({"get_me", "sign_out"})

_encode = msgspec.json.Encoder().encode


def blueprint(routes: Sequence[Route]) -> Blueprint:
    """Flask blueprint of the declared routes only: Flask's automatic OPTIONS is off."""
    api = Blueprint("api", __name__)
    for route in routes:
        api.add_url_rule(
            route.path, route.name, _bind(route), methods=[route.method],
            provide_automatic_options=False,
        )  # fmt: skip
    return api


def _bind(route: Route) -> Callable[..., Response]:
    def dispatch(**path: Any) -> Response:
        if route.role:
            _require_own_password(roles.require(g.actor, route.role), route)
        parameters = request_parsing.parse(route) | path
        if g.actor is not None:
            scoped.require(g.ctx, g.actor, route, parameters)
        call = Call(
            ctx=g.ctx,
            services=current_app.extensions["shoal-services"],
            actor=g.actor,
            headers={},
            cookies=[],
            agent=request.headers.get("User-Agent", ""),
            browser=request.cookies.get(known_browsers.COOKIE, ""),
            resume=request.headers.get("Last-Event-ID", ""),
            gone=functools.partial(_is_closed, request.environ.get("gunicorn.socket")),
        )
        if route.repeatable and (key := request.headers.get(IDEMPOTENCY_KEY)):
            return _once(call, route, key, parameters)
        return _respond(call, route, parameters)

    return dispatch


def _require_own_password(actor: Actor, route: Route) -> None:
    """DeniedError for who has signed in with a one-time password, but to replace it."""
    if actor.one_time and route.name not in ONE_TIME:
        raise DeniedError(
            "choose a password of your own first", "POST /api/v1/me/password", signed_in=True
        )


def _respond(call: Call, route: Route, parameters: dict[str, Any]) -> Response:
    value = route.view(call, **parameters)
    headers = Headers(call.headers)
    for cookie in call.cookies:
        headers.add("Set-Cookie", cookie)
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


def _once(call: Call, route: Route, key: str, parameters: dict[str, Any]) -> Response:
    """Respond from the record of this key, or call the view and record its response.

    ConflictError when the first request is still running or was a different one; a failed one is
    forgotten, so that it can be retried.
    """
    if len(key) > _MAX_KEY_LENGTH or not key.isprintable():
        raise InputError(f"{IDEMPOTENCY_KEY}: use up to {_MAX_KEY_LENGTH} printable characters")
    name = _hash(call.by, route.name, request.path, key)
    recorded = idempotency.begin(call.ctx, name, _hash(request.get_data(as_text=True)))
    if recorded is not None:
        location = {"Location": recorded.location} if recorded.location else {}
        headers = {REPLAYED: "true"} | location
        return Response(recorded.body, recorded.status, headers, content_type=JSON)
    try:
        response = _respond(call, route, parameters)
    except BaseException:
        idempotency.forget(call.ctx, name)
        raise
    body = response.get_data()
    if route.secret:
        body = _encode(msgspec.json.decode(body) | dict.fromkeys(route.secret, ""))
    location_ = response.headers.get("Location", "")
    idempotency.keep(call.ctx, name, response.status_code, location_, body)
    return response


def _hash(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode(errors="replace")).hexdigest()


def _is_closed(connection: socket.socket | None) -> bool:
    """Whether the client closed the connection: it is readable though no more data is due."""
    if connection is None:
        return False
    try:
        poll = select.poll()
        poll.register(connection, select.POLLIN)
        return bool(poll.poll(0))
    except (OSError, ValueError):
        return True
