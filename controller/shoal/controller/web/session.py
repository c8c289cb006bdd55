"""The door: signing in and out."""

from flask import current_app, redirect, request, url_for
from werkzeug.wrappers import Response

from shoal.controller.access import roles
from shoal.controller.web.screen import actor, blueprint, context, show
from shoal.errors import DeniedError


@blueprint.get("/sign-in")
def sign_in() -> str:
    """The form."""
    return show("sign_in.html", next=_inside(request.args.get("next", "")), user="", error="")


@blueprint.post("/sign-in")
def sign_in_now() -> tuple[str, int] | Response:
    """Check the password, set the cookie, go on to where one wanted to go."""
    user = request.form.get("user", "").strip()
    after = _inside(request.form.get("next", ""))
    try:
        _, secret = roles.login(
            context(),
            user_name=user,
            password=request.form.get("password", ""),
            address=request.remote_addr or "",
            attempts=current_app.extensions["shoal-attempts"],
        )
    except DeniedError as error:
        said = str(error)[:1].upper() + str(error)[1:]
        return show("sign_in.html", next=after, user=user, error=said + "."), 401
    answer = redirect(after or url_for("web.fleet"), 303)
    answer.set_cookie(
        roles.COOKIE,
        secret,
        max_age=int(roles.SESSION_S),
        secure=True,
        httponly=True,
        samesite="Strict",
    )
    return answer


@blueprint.post("/sign-out")
def sign_out() -> Response:
    """End the session, here and on the server."""
    who = actor()
    if who.via == "session":
        roles.logout(context(), actor=who)
    answer = redirect(url_for("web.sign_in"), 303)
    answer.delete_cookie(roles.COOKIE, secure=True, httponly=True, samesite="Strict")
    return answer


def _inside(address: str) -> str:
    """`address` if it is one of our own pages, else "": nobody is sent elsewhere from here."""
    ours = address.startswith("/") and not address.startswith(("//", "/\\"))
    return address if ours and address.isprintable() else ""
