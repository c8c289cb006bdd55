"""What all screens share: the blueprint, who is signed in, how a template is rendered."""

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
from shoal.controller.access.roles import Actor
from shoal.controller.alerts import alerts
from shoal.controller.fleet.enrolment import Authority
from shoal.controller.host.context import Context
from shoal.controller.store.records import Page
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

#: Screens that need nobody to be signed in.
OPEN = frozenset({"web.static", "web.sign_in", "web.sign_in_now"})


def context() -> Context:
    """The use cases' first argument, of the app that serves this request."""
    return current_app.extensions["shoal"]


def authority() -> Authority:
    """The device CA, whose fingerprint join tokens carry."""
    return current_app.extensions["shoal-services"].authority


def actor() -> Actor:
    """Who is signed in; DeniedError for nobody."""
    return roles.require(g.get("actor"), "viewer")


def may(role: str) -> bool:
    """Whether who is signed in may act as `role`: what a button is shown for."""
    who = g.get("actor")
    return who is not None and roles.ROLES.index(who.role) >= roles.ROLES.index(role)


@blueprint.before_request
def only_signed_in() -> Response | None:
    """Send strangers to the door, and back to where they wanted to go afterwards."""
    if request.endpoint in OPEN:
        return None
    if g.get("actor"):
        return None
    door = url_for("web.sign_in", next=request.full_path.rstrip("?"))
    if "HX-Request" not in request.headers:
        return redirect(door)
    answer = Response(status=401)
    answer.headers["HX-Redirect"] = url_for("web.sign_in")
    return answer


@blueprint.after_request
def keep_or_not(response: Response) -> Response:
    """Files named by their age are kept for good, screens never: the back button after signing
    out must not show a fleet."""
    lasting = request.endpoint == "web.static" and "v" in request.args
    response.headers["Cache-Control"] = (
        "public, max-age=31536000, immutable" if lasting else "no-store"
    )
    return response


def show(template: str, **values: Any) -> str:
    """A screen, whole; a dialog's bare inside when the console's script asked for that."""
    bare = request.headers.get("X-Dialog") == "1"
    return render_template(template, bare=bare, me=g.get("actor"), **values)


def next_page(page: Page) -> str:
    """Address of this list's next page with its filters; "" at the end."""
    if not page.next:
        return ""
    return url_for(str(request.endpoint), **_here() | {"cursor": page.next})


def first_page() -> str:
    """Address of this list's beginning; "" when already there."""
    here = _here()
    return url_for(str(request.endpoint), **here) if "cursor" in request.args else ""


def with_args(**values: str) -> str:
    """This screen's address with some arguments set, or taken away where empty."""
    here = {**_here(), **values}
    return url_for(str(request.endpoint), **{k: v for k, v in here.items() if v})


def _here() -> dict[str, Any]:
    return {
        **{k: v for k, v in request.args.items() if v and k != "cursor"},
        **(request.view_args or {}),
    }


def clock(at: float, *, relative: bool = True) -> Markup:
    """A moment as <time>: how long ago, or the clock; the whole of it on hover, in UTC."""
    if not at:
        return Markup('<span class="muted">never</span>')
    moment = datetime.fromtimestamp(at, UTC)
    whole = moment.strftime("%Y-%m-%d %H:%M:%S UTC")
    iso = moment.isoformat(timespec="seconds")
    if not relative:
        mark = Markup('<time datetime="{}" title="{}">{}</time>')
        return mark.format(iso, whole, moment.strftime("%H:%M:%S"))
    mark = Markup('<time datetime="{}" title="{}" data-ago="{:.0f}">{}</time>')
    return mark.format(iso, whole, at, wording.ago(context().clock() - at))


def day(at: float) -> str:
    """The day of a moment, in UTC."""
    return datetime.fromtimestamp(at, UTC).strftime("%A, %d %B %Y")


def open_alerts() -> int:
    """For the badge in the navigation."""
    return len(alerts.list_alerts(context(), state="open"))


def asset(name: str) -> str:
    """Address of a static file that changes with its bytes' age, so that browsers may keep it."""
    path = Path(str(blueprint.static_folder)) / name
    mark = int(path.stat().st_mtime) if path.is_file() else 0
    return url_for("web.static", filename=name, v=mark)


@blueprint.record_once
def _words(state: BlueprintSetupState) -> None:
    """What every template and macro may say."""
    jinja = state.app.jinja_env
    jinja.trim_blocks = jinja.lstrip_blocks = True
    jinja.filters["lower_first"] = lambda text: text[:1].lower() + text[1:]
    jinja.globals.update(
        say=wording,
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
def went_wrong(error: ShoalError) -> Any:
    """What Shoal refused, as a screen that says why and what to do."""
    if error.facts.get("signed_in") is False:
        return redirect(url_for("web.sign_in"))
    status = next((code for kind, code in STATUS if isinstance(error, kind)), 422)
    return show("error.html", error=error), status


def is_wanted() -> bool:
    """Whether who asks is a browser that shows a screen, not a program that reads a problem."""
    kinds = ("application/json", "text/html")
    wanted = request.accept_mimetypes.best_match(kinds) == "text/html"
    return wanted and not request.path.startswith("/api/")


def not_found() -> Response:
    """The error screen for an unknown address."""
    error = AbsentError("screen at", request.path[:200], "the menu has all that there are")
    response = only_signed_in() or make_response(show("error.html", error=error), 404)
    return keep_or_not(response)
