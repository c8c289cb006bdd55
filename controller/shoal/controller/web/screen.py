"""Shared by all screens: blueprint, authentication, rendering, template globals, errors."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from flask import (
    Blueprint,
    current_app,
    g,
    make_response,
    redirect,
    render_template,
    request,
    url_for,
)
from flask.blueprints import BlueprintSetupState
from markupsafe import Markup
from werkzeug.wrappers import Response

from shoal.controller.access import roles
from shoal.controller.access.login_attempts import Attempts
from shoal.controller.access.roles import Actor
from shoal.controller.alerts import listing
from shoal.controller.data.adding import PackItems
from shoal.controller.data.masking import KeyOf
from shoal.controller.fleet.certificates import DeviceCA
from shoal.controller.host.context import Context
from shoal.controller.mlflow.registry import Registry
from shoal.controller.store.records import Page
from shoal.controller.training.imports import ReadFacts
from shoal.controller.web import charts, wording
from shoal.errors import AbsentError, ConflictError, DeniedError, ShoalError, StorageError

#: Static files are under /assets: Flask's own folder may keep /static.
blueprint = Blueprint(
    "web", __name__, template_folder="templates", static_folder="static", static_url_path="/assets"
)

STATUS: tuple[tuple[type[ShoalError], int], ...] = (
    (AbsentError, 404),
    (DeniedError, 403),
    (ConflictError, 409),
    (StorageError, 507),
)

#: Endpoints that need no authentication.
PUBLIC = frozenset({"web.static", "web.sign_in", "web.sign_in_now"})
#: Endpoints for who has signed in with a one-time password, who is led to the first.
ONE_TIME = ("web.password", "web.password_change", "web.sign_out")


def context() -> Context:
    """Context of this request."""
    return g.ctx


def authority() -> DeviceCA:
    """The device CA; join tokens carry its fingerprint."""
    return current_app.extensions["shoal-services"].authority


def read_facts() -> ReadFacts:
    """Reader of uploaded ONNX files."""
    return current_app.extensions["shoal-services"].read_facts


def mlflow_server() -> Registry:
    """The MLflow server that is configured."""
    return current_app.extensions["shoal-services"].mlflow


def pack_items() -> PackItems:
    """Reader of uploaded archives and arrays."""
    return current_app.extensions["shoal-services"].pack_items


def masking_keys() -> KeyOf:
    """Keys of masking policies, by name."""
    return current_app.extensions["shoal-services"].masking_keys


def attempts() -> Attempts:
    """Counts of wrong passwords."""
    return current_app.extensions["shoal-services"].attempts


def actor(role: str = "viewer") -> Actor:
    """The signed-in user; DeniedError without one, or without the role."""
    return roles.require(g.get("actor"), role)


def may(role: str) -> bool:
    """Whether the signed-in user has `role`: for showing buttons."""
    who = g.get("actor")
    return who is not None and roles.reaches(who.role, role)


@blueprint.before_request
def require_sign_in() -> Response | None:
    """Redirect an unauthenticated request to the sign-in form, with the page to return to."""
    if request.endpoint in PUBLIC:
        return None
    if who := g.get("actor"):
        if who.scoped:
            raise DeniedError("the console is not for tokens with a scope", "use the API")
        if who.one_time and request.endpoint not in ONE_TIME:
            return redirect(url_for(ONE_TIME[0]))
        return None
    target = url_for("web.sign_in", next=request.full_path.rstrip("?"))
    if "HX-Request" not in request.headers:
        return redirect(target)
    response = Response(status=401)
    response.headers["HX-Redirect"] = url_for("web.sign_in")
    return response


@blueprint.after_request
def set_cache_control(response: Response) -> Response:
    """Versioned static files are cached permanently, screens never: the back button after
    signing out must not show a fleet."""
    immutable = request.endpoint == "web.static" and "v" in request.args
    response.headers["Cache-Control"] = (
        "public, max-age=31536000, immutable" if immutable else "no-store"
    )
    return response


def show(template: str, **values: Any) -> str:
    """Render a screen; without its frame for a dialog (header X-Dialog) and for htmx, which takes
    parts of it: a live update, or a search while one types."""
    headers = request.headers
    bare = headers.get("X-Dialog") == "1"
    part = "HX-Request" in headers and "HX-History-Restore-Request" not in headers
    frame = "fragment.html" if part else "base.html"
    return render_template(template, bare=bare, frame=frame, me=g.get("actor"), **values)


def next_page(page: Page) -> str:
    """URL of the next page with its filters; "" on the last one."""
    if not page.next:
        return ""
    return url_for(str(request.endpoint), **_current_args() | {"cursor": page.next})


def asked(*names: str, sort: str = "") -> dict[str, Any]:
    """Filters, order and cursor of a list, from the URL. sort: the order if none is asked for."""
    given = {name: request.args.get(name, "").strip() for name in (*names, "cursor")}
    return given | {"sort": request.args.get("sort", "").strip() or sort}


def first_page() -> str:
    """URL of the first page; "" when already there."""
    here = _current_args()
    return url_for(str(request.endpoint), **here) if "cursor" in request.args else ""


def with_args(**values: str) -> str:
    """URL of this screen with some arguments set, or removed where empty."""
    here = {**_current_args(), **values}
    return url_for(str(request.endpoint), **{k: v for k, v in here.items() if v})


def _current_args() -> dict[str, Any]:
    return {
        **{k: v for k, v in request.args.items() if v and k != "cursor"},
        **(request.view_args or {}),
    }


def clock(at: float, *, relative: bool = True) -> Markup:
    """A time as <time>: relative, or the time of day; the full UTC time as its title."""
    if not at:
        return Markup('<span class="muted">never</span>')
    moment = datetime.fromtimestamp(at, UTC)
    full = moment.strftime("%Y-%m-%d %H:%M:%S UTC")
    iso = moment.isoformat(timespec="seconds")
    if not relative:
        mark = Markup('<time datetime="{}" title="{}">{}</time>')
        return mark.format(iso, full, moment.strftime("%H:%M:%S"))
    mark = Markup('<time datetime="{}" title="{}" data-ago="{:.0f}">{}</time>')
    return mark.format(iso, full, at, wording.ago(context().clock() - at))


def day(at: float) -> str:
    """The day of a time, in UTC."""
    return datetime.fromtimestamp(at, UTC).strftime("%A, %d %B %Y")


def open_alerts() -> int:
    """Number of open alerts, for the navigation."""
    return listing.counts(context()).state.get("open", 0)


def asset(name: str) -> str:
    """URL of a static file with its modification time, so that browsers can cache it."""
    path = Path(str(blueprint.static_folder)) / name
    mark = int(path.stat().st_mtime) if path.is_file() else 0
    return url_for("web.static", filename=name, v=mark)


@blueprint.record_once
def _set_globals(state: BlueprintSetupState) -> None:
    """Globals and filters of all templates."""
    jinja = state.app.jinja_env
    jinja.trim_blocks = jinja.lstrip_blocks = True
    jinja.filters["lower_first"] = lambda text: text[:1].lower() + text[1:]
    jinja.globals.update(
        text=wording,
        chart=charts,
        may=may,
        clock=clock,
        day=day,
        asset=asset,
        next_page=next_page,
        first_page=first_page,
        with_args=with_args,
        open_alerts=open_alerts,
    )


@blueprint.errorhandler(ShoalError)
def show_error(error: ShoalError) -> Any:
    """An error as a screen with its message and hint."""
    if error.facts.get("signed_in") is False:
        return redirect(url_for("web.sign_in"))
    status = next((code for kind, code in STATUS if isinstance(error, kind)), 422)
    return show("error.html", error=error), status


def wants_html() -> bool:
    """Whether the client is a browser, not an API client that reads a problem."""
    kinds = ("application/json", "text/html")
    wanted = request.accept_mimetypes.best_match(kinds) == "text/html"
    return wanted and not request.path.startswith("/api/")


def not_found() -> Response:
    """The error screen for an unknown address."""
    error = AbsentError("screen at", request.path[:200], "the menu has all that there are")
    response = require_sign_in() or make_response(show("error.html", error=error), 404)
    return set_cache_control(response)
