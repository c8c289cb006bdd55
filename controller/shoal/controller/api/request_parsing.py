"""Parse and validate a request into the parameters of a view: bounded, typed, nothing ignored."""

import shutil
import tempfile
from pathlib import Path
from typing import IO, Any

import msgspec
from flask import Request, current_app, request
from werkzeug.exceptions import RequestEntityTooLarge, UnsupportedMediaType

from shoal.controller.api.routing import FORM, Route, Upload
from shoal.controller.federated.records import NAME_PATTERN
from shoal.errors import InputError, StorageError, WireError
from shoal.validation_errors import field_error

#: Bytes of disk that uploads leave free, for the database.
RESERVE = 64 << 20
#: Pattern -> its description in an error.
_PATTERNS = {
    NAME_PATTERN: "lower-case letters, digits and hyphens, 63 at most, no hyphen at either end"
}


class SpooledRequest(Request):
    """A request whose files go straight to the controller's own disk, never through memory.

    StorageError where the disk has no room for them: they are there while the request lasts, and
    are copied to the artifacts.
    """

    def _get_file_stream(
        self, total_content_length: int | None, *_: Any, **_more: Any
    ) -> IO[bytes]:
        folder = uploads_folder(current_app.extensions["shoal"].folder)
        need, free = 2 * (total_content_length or 0), shutil.disk_usage(folder).free
        if total_content_length and need + RESERVE > free:
            raise StorageError(
                f"{need >> 20} MB of disk are needed to take this upload, and the controller has "
                f"{free >> 20} MB free, {RESERVE >> 20} of them to be left",
                "make room there, or delete old releases: shoal release delete MODEL@N",
            )
        return tempfile.NamedTemporaryFile("w+b", dir=folder)


def uploads_folder(folder: Path) -> Path:
    """Folder of uploaded files while their request lasts."""
    uploads = folder / "uploads"
    uploads.mkdir(mode=0o700, exist_ok=True)
    return uploads


def clear_uploads(folder: Path) -> None:
    """Delete uploads left over from a killed process."""
    for path in uploads_folder(folder).iterdir():
        path.unlink(missing_ok=True)


def parse(route: Route) -> dict[str, Any]:
    """Query, body, form and files of the current request, by parameter name of the view.

    Raises WireError for a body that is not JSON, InputError for one that does not validate.
    """
    request.max_content_length = route.limit
    wanted, found = route.inputs, {}
    if "query" in wanted:
        found["query"] = _convert(request.args.to_dict(), wanted["query"], "query")
    elif request.args:
        raise InputError(f"query: {route.path} takes no parameters")
    if "body" in wanted:
        found["body"] = _json(wanted["body"])
    if "form" in wanted:
        found["files"] = _files(route)
        found["form"] = _convert(request.form.to_dict(), wanted["form"], "form")
    return found


def _json(kind: Any) -> Any:
    data = request.get_data(cache=True) or b"{}"
    if request.max_content_length and len(data) >= request.max_content_length:
        raise RequestEntityTooLarge  # a body without a length was cut off at the limit
    if request.content_length and not request.is_json:
        raise UnsupportedMediaType("send the body as Content-Type: application/json")
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.ValidationError as error:
        raise _input_error("body", error, kind) from error
    except (msgspec.DecodeError, RecursionError, UnicodeError) as error:
        raise WireError(f"body is not JSON: {error}") from error


def _files(route: Route) -> dict[str, Upload]:
    if request.mimetype != FORM:
        raise UnsupportedMediaType(f"send a form as Content-Type: {FORM}")
    uploads = {}
    for name, file in request.files.items():
        if not any(_matches(pattern, name) for pattern in route.files):
            raise InputError(f"form: unexpected file {name[:80]!r}")
        file.stream.flush()
        uploads[name] = Upload(Path(file.stream.name), file.filename or "")
    needed = [name for name in route.files if name[-1] not in "*?"]
    missing = [name for name in needed if name not in uploads]
    if missing:
        raise InputError(f"form: no file {missing[0]!r}")
    return uploads


def _matches(pattern: str, name: str) -> bool:
    if pattern.endswith("*"):
        return name.startswith(pattern[:-1])
    return name == pattern.removesuffix("?")


def _convert(values: dict[str, str], kind: Any, part: str) -> Any:
    try:
        return msgspec.convert(values, kind, strict=False)
    except msgspec.ValidationError as error:
        raise _input_error(part, error, kind) from error


def _input_error(part: str, error: msgspec.ValidationError, kind: Any) -> InputError:
    """A validation error with field and hint. part: "body", "query" or "form"; kind: its struct."""
    found = field_error(error, kind)
    where = ": ".join(filter(None, (part, found.where)))
    for pattern, description in _PATTERNS.items():
        if repr(pattern) in found.what:
            return InputError(f"{where}: not a name", f"write it with {description}")
    return InputError(f"{where}: {found.what}", found.hint)
