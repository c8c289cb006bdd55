"""Route declarations: the URL map, the checks and the OpenAPI document are derived from them.

A view is a plain function. Its parameters and its return type are its contract:

    @route("POST", "/api/v1/rollouts", role="operator", status=201, tag="rollouts", repeatable=True)
    def start_rollout(call: Call, body: RolloutPlan) -> Rollout:
        \"\"\"Start a rollout.\"\"\"

``body`` is a JSON struct, ``query`` and ``form`` structs of the query string and of a multipart
form, ``files`` its files; every other parameter is part of the path. A RequestModel rejects unknown
fields.
"""

import inspect
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Generic, NamedTuple, TypeVar

import msgspec

from shoal.controller.access.login_attempts import Attempts
from shoal.controller.access.roles import Actor
from shoal.controller.api.metrics import HttpMetrics
from shoal.controller.api.stream import Streams
from shoal.controller.data.adding import PackItems
from shoal.controller.data.masking import KeyOf
from shoal.controller.fleet.certificates import DeviceCA
from shoal.controller.host.context import Context
from shoal.controller.mlflow.registry import Registry
from shoal.controller.store import cursors
from shoal.controller.store.records import Page
from shoal.controller.training.imports import ReadFacts

T = TypeVar("T")
View = TypeVar("View", bound=Callable[..., Any])

JSON = "application/json"
FORM = "multipart/form-data"
BODY_LIMIT = 1 << 20
UPLOAD_LIMIT = 1 << 30
#: View parameters that do not come from the path.
RESERVED = frozenset({"query", "body", "form", "files"})
_MARK = "__route__"


#: Page size of a list.
Limit = Annotated[int, msgspec.Meta(ge=1, le=cursors.MAX_LIMIT)]


class RequestModel(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of bodies, queries and forms: an unknown field is an error, never ignored."""


class Listing(msgspec.Struct, Generic[T], frozen=True):
    """A page of a list."""

    items: list[T]
    page: Page


def all_of(items: list[T]) -> Listing[T]:
    """A list short enough for a single page."""
    return Listing(items, Page(total=len(items)))


def listed(text: str) -> list[str]:
    """Values of a field that are separated by commas."""
    return [part.strip() for part in text.split(",") if part.strip()]


class Upload(NamedTuple):
    """An uploaded file: its path until the request ends, and the client's name for it."""

    path: Path
    filename: str


Uploads = Mapping[str, Upload]


class AppServices(NamedTuple):
    """Services that `create_app` builds once for all requests.

    document   makes the OpenAPI document, JSON bytes
    masking_keys   keys of masking policies, by name
    """

    authority: DeviceCA
    attempts: Attempts
    metrics: HttpMetrics
    streams: Streams
    document: Callable[[], bytes]
    read_facts: ReadFacts
    pack_items: PackItems
    masking_keys: KeyOf
    mlflow: Registry


class Call(NamedTuple):
    """Context of one request, passed to the view beside its own parameters.

    by        name of the authenticated user; "" for an anonymous request
    agent     User-Agent of the client
    browser   cookie of a browser in which a user signed in before
    headers   of the response: a view may add some
    cookies   that the response sets: values of Set-Cookie
    resume    the Last-Event-ID of a resumed stream
    gone      whether the client has closed the connection
    """

    ctx: Context
    services: AppServices
    actor: Actor | None
    headers: dict[str, str]
    cookies: list[str]
    agent: str = ""
    browser: str = ""
    resume: str = ""
    gone: Callable[[], bool] = bool

    @property
    def by(self) -> str:
        return self.actor.name if self.actor else ""


class Route(NamedTuple):
    """A declared route.

    role        lowest role allowed; "" for everybody
    result      type of the JSON response, None for none
    media       of the response; if not JSON, the view returns text, bytes or an iterator of bytes
    location    template of the Location header, filled from the response's fields
    files       names of files in a form and what they are; a name that ends with ``*`` is a prefix,
                one that ends with ``?`` may be left out
    repeatable  honours Idempotency-Key
    secret      response fields shown once: never again to a repeated request
    """

    method: str
    path: str
    view: Callable[..., Any]
    role: str
    status: int
    tag: str
    media: str
    location: str
    files: Mapping[str, str]
    repeatable: bool
    secret: tuple[str, ...]
    limit: int
    inputs: Mapping[str, Any]
    result: Any

    @property
    def name(self) -> str:
        return self.view.__name__

    @property
    def parameters(self) -> dict[str, Any]:
        """Path parameters and their types."""
        return {name: kind for name, kind in self.inputs.items() if name not in RESERVED}


def route(
    method: str,
    path: str,
    *,
    role: str,
    tag: str,
    status: int = 200,
    media: str = JSON,
    location: str = "",
    files: Mapping[str, str] = MappingProxyType({}),
    repeatable: bool = False,
    secret: tuple[str, ...] = (),
    limit: int = BODY_LIMIT,
) -> Callable[[View], View]:
    """Declare the decorated function as the view of a route; parameters as in Route."""

    def declare(view: View) -> View:
        hints = typing.get_type_hints(view)
        result = hints.pop("return")
        hints.pop("call")
        if not inspect.getdoc(view):
            raise TypeError(f"{view.__name__} has no docstring, and so no documentation")
        declared = Route(
            method, path, view, role, status, tag, media, location, files, repeatable, secret,
            limit, hints, result,
        )  # fmt: skip
        setattr(view, _MARK, declared)
        return view

    return declare


def routes_of(module: object) -> list[Route]:
    """Routes declared in a module, in source order."""
    return [getattr(value, _MARK) for value in vars(module).values() if hasattr(value, _MARK)]
