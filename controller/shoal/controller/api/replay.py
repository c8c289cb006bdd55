"""Idempotency-Key: the same request sent twice is done once, and answered alike."""

import hashlib
from collections.abc import Callable

import msgspec
from flask import Response, request

from shoal.controller.access import idempotency
from shoal.controller.api.declare import JSON, Call, Route
from shoal.errors import InputError

HEADER = "Idempotency-Key"
REPLAYED = "Idempotency-Replayed"
_LONGEST = 255


def once(call: Call, route: Route, key: str, answer: Callable[[], Response]) -> Response:
    """Answer a request with an Idempotency-Key: from the record, or by `answer` and keep it.

    ConflictError when the first is still at work or was another request; a failed one is
    forgotten, so that it may be tried again.
    """
    if len(key) > _LONGEST or not key.isprintable():
        raise InputError(f"{HEADER}: use up to {_LONGEST} printable characters")
    name = _hash(call.by, route.name, request.path, key)
    kept = idempotency.begin(call.ctx, name, _hash(request.get_data(as_text=True)))
    if kept is not None:
        headers = {REPLAYED: "true"} | ({"Location": kept.location} if kept.location else {})
        return Response(kept.body, kept.status, headers, content_type=JSON)
    try:
        response = answer()
    except BaseException:
        idempotency.forget(call.ctx, name)
        raise
    body = _without_secrets(response.get_data(), route.secret)
    idempotency.keep(
        call.ctx, name, response.status_code, response.headers.get("Location", ""), body
    )
    return response


def _without_secrets(body: bytes, fields: tuple[str, ...]) -> bytes:
    """What is shown once is not kept for a second showing."""
    if not fields:
        return body
    return msgspec.json.encode(msgspec.json.decode(body) | dict.fromkeys(fields, ""))


def _hash(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode(errors="replace")).hexdigest()
