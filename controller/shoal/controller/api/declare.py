"""How a route is declared: once, and the URL map, the checks and the OpenAPI document follow.

A view is a plain function. Its parameters and what it returns are its contract:

    @route("POST", "/api/v1/rollouts", role="operator", status=201, tag="rollouts", repeatable=True)
    def start_rollout(call: Call, body: RolloutPlan) -> Rollout:
        \"\"\"Start a rollout.\"\"\"

``body`` is a JSON struct, ``query`` and ``form`` structs of the query string and of a multipart
form, ``files`` its files; every other parameter stands in the path. Structs that refuse unknown
fields refuse them with a message.
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
from shoal.controller.api.stream import Streams
from shoal.controller.api.traffic import Traffic
from shoal.controller.host.context import Context
from shoal.controller.offline.folders import Sealing
from shoal.controller.store import cursors
from shoal.controller.store.records import Page

T = TypeVar("T")
View = TypeVar("View", bound=Callable[..., Any])

JSON = "application/json"
BODY_LIMIT = 1 << 20
UPLOAD_LIMIT = 1 << 30
PLAIN = frozenset({"query", "body", "form", "files"})
_MARK = "__route__"


#: How many of a list to give at once.
Limit = Annotated[int, msgspec.Meta(ge=1, le=cursors.MOST)]


class Asked(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of bodies, queries and forms: a misspelt field is an error, never ignored."""


class Listing(msgspec.Struct, Generic[T], frozen=True):
    """A page of a list."""

    items: list[T]
    page: Page


def all_of(items: list[T]) -> Listing[T]:
    """A list that is short enough to be one page."""
    return Listing(items, Page(total=len(items)))


class Upload(NamedTuple):
    """A file that was sent: where it lies until the request ends, and what its sender calls it."""

    path: Path
    filename: str


Uploads = Mapping[str, Upload]


class House(NamedTuple):
    """What `create_app` built once for all requests.

    document   OpenAPI, JSON bytes
    """

    authority: Sealing
    attempts: Attempts
    traffic: Traffic
    streams: Streams
    document: bytes


class Call(NamedTuple):
    """What a view is given beside its own parameters.

    by        name of who asks; "" where no role is needed and nobody is signed in
    headers   of the answer: a view may add some
    resume    the Last-Event-ID of a stream that goes on
    gone      whether who asked has hung up meanwhile
    """

    ctx: Context
    house: House
    actor: Actor | None
    address: str
    headers: dict[str, str]
    resume: str = ""
    gone: Callable[[], bool] = bool

    @property
    def by(self) -> str:
        return self.actor.name if self.actor else ""


class Route(NamedTuple):
    """A declared route.

    role        least role that may; "" for everybody
    answer      type of the JSON answer, None for none
    media       of the answer; other than JSON the view returns text, bytes or an iterator of bytes
    location    template of the Location header, filled from the answer's fields
    files       names of files in a form and what they are; a name that ends with ``*`` is a prefix
    repeatable  honours Idempotency-Key
    secret      fields of the answer that are shown once and never again to a repeated request
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
    answer: Any

    @property
    def name(self) -> str:
        return self.view.__name__

    @property
    def parameters(self) -> dict[str, Any]:
        """Path parameters and their types."""
        return {name: kind for name, kind in self.inputs.items() if name not in PLAIN}


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
    """Declare the function below as the view of a route. See Route and the top of this module."""

    def declare(view: View) -> View:
        hints = typing.get_type_hints(view)
        answer = hints.pop("return")
        hints.pop("call")
        if not inspect.getdoc(view):
            raise TypeError(f"{view.__name__} has no docstring, and so no documentation")
        made = Route(
            method, path, view, role, status, tag, media, location, files, repeatable, secret,
            limit, hints, answer,
        )  # fmt: skip
        setattr(view, _MARK, made)
        return view

    return declare


def routes_of(module: object) -> list[Route]:
    """The routes declared in a module, in the order of its text."""
    return [getattr(value, _MARK) for value in vars(module).values() if hasattr(value, _MARK)]
