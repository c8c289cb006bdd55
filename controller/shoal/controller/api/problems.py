"""Errors as RFC 9457 problems: HTTP status by class of error, and handlers for all others."""

import errno
import logging
import secrets
from http import HTTPStatus
from typing import Annotated, Any

import msgspec
from flask import Flask, Response, request
from werkzeug.exceptions import HTTPException

from shoal import errors
from shoal.errors import ShoalError, hint_fields

log = logging.getLogger(__name__)

TYPE = "https://shoal.dev/problems/"
MEDIA = "application/problem+json"
#: The first matching class is used: subclasses before their bases.
STATUS: tuple[tuple[type[ShoalError], int], ...] = (
    (errors.AbsentError, 404),
    (errors.ConflictError, 409),
    (errors.DeniedError, 403),
    (errors.OversizeError, 413),
    (errors.WireError, 400),
    (errors.TrustError, 409),
    (errors.StorageError, 507),
    (errors.LinkError, 503),
    (errors.SettingError, 422),
    (errors.InputError, 422),
    (errors.DatasetError, 422),
    (errors.ModelError, 422),
    (errors.SketchError, 422),
    (errors.BundleError, 422),
)
_DEPRECATED = msgspec.Meta(extra_json_schema={"deprecated": True})
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """Why a request failed. Facts of the error are further fields.

    type      names the kind of problem; its last part is the error's code
    detail    what is wrong, and what to do about it
    hint      what to do about it: the second half of detail alone, where there is one
    mend      deprecated, goes in 0.2: the same as hint
    instance  path of the request
    id        of an unexpected error: what to look for in the controller's log
    """

    type: str
    title: str
    status: int
    detail: str
    instance: str = ""
    hint: str = ""
    mend: Annotated[str, _DEPRECATED] = ""
    id: str = ""


def status_of(error: ShoalError) -> int:
    """HTTP status of an error: DeniedError is 401, 403 or 429 by its facts."""
    if "retry_after_s" in error.facts:
        return 429
    if error.facts.get("signed_in") is False:
        return 401
    return next((status for kind, status in STATUS if isinstance(error, kind)), 500)


def of_error(error: ShoalError) -> Response:
    """Problem of a ShoalError, with its facts as fields."""
    status = status_of(error)
    if status >= 500:
        log.error("%s %s: %s", request.method, request.path, error)
    response = _respond(status, error.code, str(error), hint=error.hint, facts=error.facts)
    if status == 401:
        response.headers["WWW-Authenticate"] = 'Bearer realm="shoal"'
    if status == 429:
        response.headers["Retry-After"] = str(error.facts["retry_after_s"])
    return response


def of_http(error: HTTPException) -> Response:
    """Problem of an HTTP error of Flask or Werkzeug."""
    status = error.code or 500
    code = HTTPStatus(status).phrase.lower().replace(" ", "-").replace("'", "")
    response = _respond(status, code, _detail(error))
    for name, value in error.get_headers():
        if name.lower() not in ("content-type", "content-length"):
            response.headers[name] = value
    return response


def _detail(error: HTTPException) -> str:
    """Detail of an HTTP error, more specific than Werkzeug's where possible."""
    if error.code == 404:
        return f"no route {request.path[:200]}; /openapi.json lists all"
    if error.code == 405:
        return f"{request.method} is not allowed for {request.path[:200]}"
    if error.code == 413:
        return f"the body is larger than the {request.max_content_length} bytes allowed here"
    return error.description or error.name


def of_exception(error: Exception) -> Response:
    """Problem of an unexpected error: only an id, which the log has with the traceback."""
    if isinstance(error, OSError) and error.errno in _FULL:
        return of_error(errors.StorageError("the controller's disk is full", "free some space"))
    ident = secrets.token_hex(6)
    log.error("%s %s failed, id %s", request.method, request.path, ident, exc_info=error)
    detail = f"unexpected error; look for {ident} in the controller's log"
    return _respond(500, "internal-error", detail, facts={"id": ident})


def install(app: Flask) -> None:
    """Register the handlers on `app`; a blueprint may have its own."""
    app.register_error_handler(ShoalError, of_error)
    app.register_error_handler(HTTPException, of_http)
    app.register_error_handler(Exception, of_exception)


def _respond(
    status: int, code: str, detail: str, *, hint: str = "", facts: dict[str, Any] | None = None
) -> Response:
    fields = {
        "type": TYPE + code,
        "title": code.replace("-", " ").capitalize(),
        "status": status,
        "detail": detail,
        "instance": request.path[:200],
    }
    body = {**(facts or {}), **(hint_fields(hint) if hint else {}), **fields}
    data = msgspec.json.encode(body, enc_hook=str)
    response = Response(data, status=status, content_type=MEDIA)
    response.headers["Cache-Control"] = "no-store"
    return response
