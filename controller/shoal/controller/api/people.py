"""Routes for sessions, API tokens and users."""

from typing import Annotated

import msgspec
from werkzeug.http import dump_cookie

from shoal.controller.access import roles, sessions, tokens, users
from shoal.controller.access.records import ApiToken, User
from shoal.controller.access.roles import Actor
from shoal.controller.api.routing import Call, Listing, RequestModel, all_of, route

TAG = "people"
Short = Annotated[str, msgspec.Meta(max_length=100)]


class SignIn(RequestModel, frozen=True, kw_only=True):
    """Credentials for a console session."""

    user: Short
    password: Annotated[str, msgspec.Meta(max_length=1000)]


class Me(msgspec.Struct, frozen=True, kw_only=True):
    """The authenticated user. via: "session" or "token"."""

    name: str
    role: str
    via: str


class NewToken(RequestModel, frozen=True, kw_only=True):
    """A token of one's own. Without user and password, for the signed-in user.

    role    "" for the user's role
    ttl_s   seconds it stays valid
    """

    name: Short
    role: str = ""
    ttl_s: float = 30 * 86_400.0
    user: Short = ""
    password: Annotated[str, msgspec.Meta(max_length=1000)] = ""


class NewPassword(RequestModel, frozen=True, kw_only=True):
    """A change of the user's own password."""

    old: Annotated[str, msgspec.Meta(max_length=1000)]
    new: str


class NewUser(RequestModel, frozen=True, kw_only=True):
    """A new user. role: viewer, operator, approver or admin."""

    name: Short
    role: str
    password: str


@route("POST", "/api/v1/session", role="", tag=TAG, status=201)
def sign_in(call: Call, body: SignIn) -> Me:
    """Sign in: the response sets the session cookie."""
    actor, secret = sessions.login(
        call.ctx, user_name=body.user, password=body.password, address=call.address,
        attempts=call.services.attempts,
    )  # fmt: skip
    call.headers["Set-Cookie"] = _cookie(secret, int(sessions.SESSION_S))
    return _me(actor)


@route("DELETE", "/api/v1/session", role="viewer", tag=TAG, status=204)
def sign_out(call: Call) -> None:
    """Sign out: the session ends at once."""
    sessions.logout(call.ctx, actor=roles.require(call.actor, "viewer"))
    call.headers["Set-Cookie"] = _cookie("", 0)


@route("GET", "/api/v1/me", role="viewer", tag=TAG)
def get_me(call: Call) -> Me:
    """The authenticated user and role."""
    return _me(roles.require(call.actor, "viewer"))


@route("POST", "/api/v1/me/password", role="viewer", tag=TAG, status=204)
def change_password(call: Call, body: NewPassword) -> None:
    """Change the user's own password; the user's other sessions end."""
    actor = roles.require(call.actor, "viewer")
    users.change_password(
        call.ctx, actor=actor, old=body.old, new=body.new, address=call.address,
        attempts=call.services.attempts,
    )  # fmt: skip


@route("GET", "/api/v1/tokens", role="viewer", tag=TAG)
def list_tokens(call: Call) -> Listing[ApiToken]:
    """The user's own tokens; for an admin all tokens."""
    return all_of(tokens.list_tokens(call.ctx, actor=roles.require(call.actor, "viewer")))


@route("POST", "/api/v1/tokens", role="", tag=TAG, status=201)
def create_token(call: Call, body: NewToken) -> ApiToken:
    """Create a token for the signed-in user, or with user and password; `secret` is shown once."""
    if body.user:
        actor = sessions.check_password(
            call.ctx, user_name=body.user, password=body.password, address=call.address,
            attempts=call.services.attempts,
        )  # fmt: skip
    else:
        actor = roles.require(call.actor, "viewer")
    return tokens.create_token(
        call.ctx, actor=actor, name=body.name, role=body.role, ttl_s=body.ttl_s
    )


@route("DELETE", "/api/v1/tokens/<id>", role="viewer", tag=TAG, status=204)
def revoke_token(call: Call, id: str) -> None:  # noqa: A002 - the API's word
    """Revoke a token at once."""
    tokens.revoke_token(call.ctx, actor=roles.require(call.actor, "viewer"), id=id)


@route("GET", "/api/v1/users", role="admin", tag=TAG)
def list_users(call: Call) -> Listing[User]:
    """All users."""
    return all_of(users.list_users(call.ctx))


@route("POST", "/api/v1/users", role="admin", tag=TAG, status=201)
def add_user(call: Call, body: NewUser) -> User:
    """Add a user."""
    return users.add_user(call.ctx, actor=call.by, **msgspec.structs.asdict(body))


@route("DELETE", "/api/v1/users/<name>", role="admin", tag=TAG, status=204)
def remove_user(call: Call, name: str) -> None:
    """Remove a user, with all sessions and tokens."""
    users.remove_user(call.ctx, actor=call.by, name=name)


def _me(actor: Actor) -> Me:
    return Me(name=actor.name, role=actor.role, via=actor.via)


def _cookie(secret: str, max_age: int) -> str:
    return dump_cookie(
        sessions.COOKIE, secret, max_age=max_age, path="/", secure=True, httponly=True,
        samesite="Strict",
    )  # fmt: skip
