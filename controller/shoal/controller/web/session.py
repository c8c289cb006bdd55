"""Sign-in and sign-out."""

from flask import redirect, request, url_for
from werkzeug.wrappers import Response

from shoal.controller.access import known_browsers, sessions
from shoal.controller.access.password_check import Credentials
from shoal.controller.web.screen import actor, attempts, blueprint, context, show
from shoal.errors import DeniedError


@blueprint.get("/sign-in")
def sign_in() -> str:
    """The sign-in form."""
    return show("sign_in.html", next=_local_path(request.args.get("next", "")), user="", error="")


@blueprint.post("/sign-in")
def sign_in_now() -> tuple[str, int] | Response:
    """Check the password, set the session cookie, redirect to the requested page."""
    user = request.form.get("user", "").strip()
    after = _local_path(request.form.get("next", ""))
    browser = request.cookies.get(known_browsers.COOKIE, "")
    given = Credentials(user, request.form.get("password", ""), browser)
    try:
        _, cookies = sessions.login(context(), given, attempts(), request.user_agent.string)
    except DeniedError as error:
        message = str(error)[:1].upper() + str(error)[1:]
        return show("sign_in.html", next=after, user=user, error=message + "."), 401
    response = redirect(after or url_for("web.need_list"), 303)
    for name, (value, seconds) in cookies.items():
        response.set_cookie(
            name, value, max_age=seconds, secure=True, httponly=True, samesite="Strict"
        )
    return response


@blueprint.post("/sign-out")
def sign_out() -> Response:
    """End the session: delete the cookie and revoke it on the server."""
    who = actor()
    if who.via == "session":
        sessions.logout(context(), actor=who)
    response = redirect(url_for("web.sign_in"), 303)
    response.delete_cookie(sessions.COOKIE, secure=True, httponly=True, samesite="Strict")
    return response


def _local_path(address: str) -> str:
    """`address` if it is a local path, else "": no open redirect."""
    ours = address.startswith("/") and not address.startswith(("//", "/\\"))
    return address if ours and address.isprintable() else ""
