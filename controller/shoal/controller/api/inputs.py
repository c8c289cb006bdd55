"""Requests into structs: bounded, typed, nothing ignored."""

import tempfile
from pathlib import Path
from typing import IO, Any

import msgspec
from flask import Request, current_app, request
from werkzeug.exceptions import RequestEntityTooLarge, UnsupportedMediaType

from shoal.controller.api.declare import Route, Upload
from shoal.controller.api.refusals import refused
from shoal.errors import InputError, WireError

FORM = "multipart/form-data"


class SpooledRequest(Request):
    """A request whose files go straight to the controller's own disk, never through memory."""

    def _get_file_stream(self, *_facts: Any, **_more: Any) -> IO[bytes]:
        folder = uploads_folder(current_app.extensions["shoal"].folder)
        return tempfile.NamedTemporaryFile("w+b", dir=folder)


def uploads_folder(folder: Path) -> Path:
    """Where files lie while their request lasts."""
    uploads = folder / "uploads"
    uploads.mkdir(mode=0o700, exist_ok=True)
    return uploads


def clear_uploads(folder: Path) -> None:
    """Remove what a process that was killed left behind."""
    for path in uploads_folder(folder).iterdir():
        path.unlink(missing_ok=True)


def read(route: Route) -> dict[str, Any]:
    """What the view of `route` wants of the request in hand, by parameter name.

    Raises WireError for a body that is no JSON, InputError for one that does not fit.
    """
    request.max_content_length = route.limit
    wanted, given = route.inputs, {}
    if "query" in wanted:
        given["query"] = _convert(request.args.to_dict(), wanted["query"], "query")
    elif request.args:
        raise InputError(f"query: {route.path} takes no parameters")
    if "body" in wanted:
        given["body"] = _json(wanted["body"])
    if "form" in wanted:
        given["files"] = _files(route)
        given["form"] = _convert(request.form.to_dict(), wanted["form"], "form")
    return given


def _json(kind: Any) -> Any:
    data = request.get_data(cache=True) or b"{}"
    if request.max_content_length and len(data) >= request.max_content_length:
        raise RequestEntityTooLarge  # a body without a length was cut off at the limit
    if request.content_length and not request.is_json:
        raise UnsupportedMediaType("send the body as Content-Type: application/json")
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.ValidationError as error:
        raise refused("body", error, kind) from error
    except (msgspec.DecodeError, RecursionError, UnicodeError) as error:
        raise WireError(f"body is not JSON: {error}") from error


def _files(route: Route) -> dict[str, Upload]:
    if request.mimetype != FORM:
        raise UnsupportedMediaType(f"send a form as Content-Type: {FORM}")
    sent = {}
    for name, file in request.files.items():
        if not any(_names(pattern, name) for pattern in route.files):
            raise InputError(f"form: unexpected file {name[:80]!r}")
        file.stream.flush()
        sent[name] = Upload(Path(file.stream.name), file.filename or "")
    missing = [name for name in route.files if not name.endswith("*") and name not in sent]
    if missing:
        raise InputError(f"form: no file {missing[0]!r}")
    return sent


def _names(pattern: str, name: str) -> bool:
    return name.startswith(pattern[:-1]) if pattern.endswith("*") else name == pattern


def _convert(values: dict[str, str], kind: Any, what: str) -> Any:
    try:
        return msgspec.convert(values, kind, strict=False)
    except msgspec.ValidationError as error:
        raise refused(what, error, kind) from error
