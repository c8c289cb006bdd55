"""People screen: users, tokens, sessions, sign-ins; and the change of one's own password."""

from typing import NamedTuple

from flask import redirect, request, url_for
from werkzeug.wrappers import Response

from shoal.controller.access import (
    audit,
    known_browsers,
    password_check,
    roles,
    sessions,
    tokens,
    users,
)
from shoal.controller.access.audit import AuditFilter
from shoal.controller.access.password_check import Credentials
from shoal.controller.web.screen import actor, attempts, blueprint, context, may, show
from shoal.errors import AbsentError, DeniedError, SettingError

DAY_S = 86_400.0
#: Verb -> title, what it does, button.
CONFIRM = {
    "reset": (
        "Reset the password of {}?",
        "Every session and token ends at once. You get a one-time password, valid for a day.",
        "Reset",
    ),
    "revoke": (
        "Sign {} out everywhere?",
        "Every session and token ends at once. The password stays valid.",
        "Sign out",
    ),
    "disable": (
        "Disable {}?",
        "Sessions end, sign-in and tokens are refused. You can take it back.",
        "Disable",
    ),
    "enable": ("Enable {}?", "Password and tokens are valid again.", "Enable"),
    "remove": (
        "Remove {}?",
        "Every session and token ends at once. What they did stays in the audit log.",
        "Remove",
    ),
}


class Shown(NamedTuple):
    """A secret that is shown once."""

    title: str
    secret: str
    note: str


@blueprint.get("/people")
def people() -> str:
    """Users for an admin; tokens, sessions and sign-ins of oneself, or for an admin everybody's."""
    return _people()


@blueprint.post("/people/users")
def user_add() -> str:
    """Add a user, and show the one-time password."""
    who, form = actor("admin"), request.form
    name = form.get("name", "").strip()
    made = users.add_user(context(), actor=who.name, name=name, role=form.get("role", ""))
    return _people(_one_time(name, made.one_time_password))


@blueprint.post("/people/users/<name>/role")
def user_role(name: str) -> Response:
    """Give a user another role."""
    users.set_role(
        context(), actor=actor("admin").name, name=name, role=request.form.get("role", "")
    )
    return redirect(url_for("web.people"), 303)


@blueprint.get("/people/users/<name>/<verb>")
def user_confirm(name: str, verb: str) -> str:
    """Confirmation dialog for an action on a user."""
    actor("admin")
    title, effect, button = _confirm(verb)
    return show(
        "user_confirm.html", name=name, verb=verb, title=title.format(name), effect=effect,
        button=button,
    )  # fmt: skip


@blueprint.post("/people/users/<name>/<verb>")
def user_act(name: str, verb: str) -> str | Response:
    """Carry out an action on a user."""
    _confirm(verb)
    ctx, reason = context(), request.form.get("reason", "")[:1000]
    by = actor("admin").name
    if verb == "reset":
        made = users.reset_password(ctx, actor=by, name=name, reason=reason)
        return _people(_one_time(name, made.one_time_password))
    if verb == "revoke":
        users.revoke_all(ctx, actor=by, name=name, reason=reason)
    elif verb == "remove":
        users.remove_user(ctx, actor=by, name=name, reason=reason)
    else:
        disabled = verb == "disable"
        users.set_disabled(ctx, actor=by, name=name, disabled=disabled, reason=reason)
    return redirect(url_for("web.people"), 303)


@blueprint.post("/people/tokens")
def token_create() -> str:
    """Create a token with the password, and show it."""
    form = request.form
    verified = password_check.check_password(
        context(), _credentials(form.get("password", "")), attempts()
    )
    made = tokens.create_token(
        context(),
        actor=verified.actor,
        name=form.get("name", "").strip()[:100],
        role=form.get("role", ""),
        ttl_s=form.get("days", 30.0, type=float) * DAY_S,
        models=_listed("models"),
        sites=_listed("sites"),
    )
    note = (
        "Send it as `Authorization: Bearer TOKEN`, or set it as SHOAL_TOKEN for the shoal command."
    )
    return _people(Shown(f"Token {made.name}", made.secret, note))


@blueprint.post("/people/tokens/<id>/revoke")
def api_token_revoke(id: str) -> Response:  # noqa: A002 - the API's word
    """Revoke a token."""
    tokens.revoke_token(context(), actor=actor(), id=id)
    return redirect(url_for("web.people"), 303)


@blueprint.post("/people/sessions/end")
def sessions_end() -> Response:
    """End all of one's own sessions but this one."""
    sessions.end_other_sessions(context(), actor=actor())
    return redirect(url_for("web.people"), 303)


@blueprint.post("/people/sessions/<id>/end")
def session_end(id: str) -> Response:  # noqa: A002
    """End a session."""
    sessions.end_session(context(), actor=actor(), id=id)
    return redirect(url_for("web.people"), 303)


@blueprint.get("/password")
def password() -> str:
    """The form for another password."""
    actor()
    return show("password.html", error="")


@blueprint.post("/password")
def password_change() -> tuple[str, int] | Response:
    """Change one's own password, and redirect to the people screen."""
    form = request.form
    try:
        if form.get("new", "") != form.get("again", ""):
            raise SettingError("the two new passwords differ", "write the same one twice")
        users.change_password(
            context(),
            _credentials(form.get("old", "")),
            attempts(),
            new=form.get("new", ""),
            keep_tokens="keep_tokens" in form,
        )
    except (DeniedError, SettingError) as error:
        wrong = "The password is wrong." if "is wrong" in error.message else f"{error}."
        return show("password.html", error=wrong[:1].upper() + wrong[1:]), 422
    return redirect(url_for("web.people"), 303)


def _people(shown: Shown | None = None) -> str:
    ctx, who = context(), actor()
    sign_ins, _ = audit.list_audit(ctx, AuditFilter(verb="user.sign-in*", actor=_own()), limit=20)
    return show(
        "people.html",
        shown=shown,
        roles=roles.ROLES,
        users=users.list_users(ctx) if may("admin") else [],
        tokens=tokens.list_tokens(ctx, actor=who),
        sessions=sessions.list_sessions(ctx, actor=who),
        sign_ins=sign_ins,
    )


def _own() -> str:
    """The user whose sign-ins are listed; "" for everybody's."""
    return "" if may("admin") else actor().name


def _credentials(password: str) -> Credentials:
    who = actor()
    browser = request.cookies.get(known_browsers.COOKIE, "")
    return Credentials(who.name, password, browser, who)


def _one_time(name: str, password: str) -> Shown:
    note = "It is valid for a day, and replaced at the first sign-in."
    return Shown(f"One-time password of {name}", password, note)


def _confirm(verb: str) -> tuple[str, str, str]:
    if verb not in CONFIRM:
        raise AbsentError("action", verb, "see the People screen")
    return CONFIRM[verb]


def _listed(field: str) -> list[str]:
    return [part.strip() for part in request.form.get(field, "").split(",") if part.strip()]
