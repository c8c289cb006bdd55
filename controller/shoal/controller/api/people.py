"""Routes for users and their passwords, sessions and API tokens."""

from typing import Annotated

import msgspec
from werkzeug.http import dump_cookie

from shoal.controller.access import password_check, roles, sessions, tokens, users
from shoal.controller.access.password_check import Credentials
from shoal.controller.access.records import ApiToken, Ended, SessionInfo, User
from shoal.controller.access.roles import Actor
from shoal.controller.api.routing import Call, Listing, RequestModel, all_of, route
from shoal.errors import DeniedError

TAG = "people"
Short = Annotated[str, msgspec.Meta(max_length=100)]
Reason = Annotated[str, msgspec.Meta(max_length=1000)]
Scope = Annotated[list[Short], msgspec.Meta(max_length=100)]
Secret = Annotated[str, msgspec.Meta(max_length=1000)]


class SignIn(RequestModel, frozen=True, kw_only=True):
    """Credentials for a console session."""

    user: Short
    password: Secret


class Me(msgspec.Struct, frozen=True, kw_only=True):
    """The authenticated user.

    via            "session" or "token"
    models, sites  scope of the token; empty for everything
    one_time       signed in with a one-time password: all else is refused until it is replaced
    """

    name: str
    role: str
    via: str
    models: list[str] = []
    sites: list[str] = []
    one_time: bool = False


class NewToken(RequestModel, frozen=True, kw_only=True):
    """A token of one's own. It needs the password, signed in or not.

    role            "" for the user's role
    ttl_s           seconds it stays valid
    models, sites   what it is for; empty for everything
    user            "" for the signed-in user
    """

    name: Short
    role: str = ""
    ttl_s: float = 30 * 86_400.0
    models: Scope = msgspec.field(default_factory=list)
    sites: Scope = msgspec.field(default_factory=list)
    user: Short = ""
    password: Secret = ""


class NewPassword(RequestModel, frozen=True, kw_only=True):
    """A change of the user's own password.

    old          the password, or the one-time password
    user         "" for the signed-in user
    keep_tokens  the user's tokens stay valid; otherwise they end, except the one in use
    """

    old: Secret
    new: Secret
    user: Short = ""
    keep_tokens: bool = False


class NewUser(RequestModel, frozen=True, kw_only=True):
    """A new user.

    role      viewer, operator, approver or admin
    password  "" for a one-time password, which is in the response
    """

    name: Short
    role: str
    password: Secret = ""


class NewRole(RequestModel, frozen=True, kw_only=True):
    """role: viewer, operator, approver or admin; reason: for the audit log."""

    role: str
    reason: Reason = ""


class Why(RequestModel, frozen=True, kw_only=True):
    """reason: for the audit log."""

    reason: Reason = ""


@route("POST", "/api/v1/session", role="", tag=TAG, status=201)
def sign_in(call: Call, body: SignIn) -> Me:
    """Sign in: the response sets the session cookie."""
    given = Credentials(body.user, body.password, call.browser, call.actor)
    actor, cookies = sessions.login(call.ctx, given, call.services.attempts, call.agent)
    call.cookies.extend(_cookie(*named) for named in cookies.items())
    return _me(actor)


@route("DELETE", "/api/v1/session", role="viewer", tag=TAG, status=204)
def sign_out(call: Call) -> None:
    """Sign out: the session ends at once."""
    sessions.logout(call.ctx, actor=roles.require(call.actor, "viewer"))
    call.cookies.append(_cookie(sessions.COOKIE, ("", 0)))


@route("GET", "/api/v1/sessions", role="viewer", tag=TAG)
def list_sessions(call: Call) -> Listing[SessionInfo]:
    """The user's own console sessions; for an admin everybody's."""
    return all_of(sessions.list_sessions(call.ctx, actor=roles.require(call.actor, "viewer")))


@route("DELETE", "/api/v1/sessions/<id>", role="viewer", tag=TAG, status=204)
def end_session(call: Call, id: str) -> None:  # noqa: A002 - the API's word
    """End a session at once."""
    sessions.end_session(call.ctx, actor=roles.require(call.actor, "viewer"), id=id)


@route("GET", "/api/v1/me", role="viewer", tag=TAG)
def get_me(call: Call) -> Me:
    """The authenticated user and role."""
    return _me(roles.require(call.actor, "viewer"))


@route("POST", "/api/v1/me/password", role="", tag=TAG)
def change_password(call: Call, body: NewPassword) -> Ended:
    """Change one's own password, signed in or not; the other sessions and tokens end."""
    given = _credentials(call, body.user, body.old)
    return users.change_password(
        call.ctx, given, call.services.attempts, new=body.new, keep_tokens=body.keep_tokens
    )


@route("GET", "/api/v1/tokens", role="viewer", tag=TAG)
def list_tokens(call: Call) -> Listing[ApiToken]:
    """The user's own tokens; for an admin all tokens."""
    return all_of(tokens.list_tokens(call.ctx, actor=roles.require(call.actor, "viewer")))


@route("POST", "/api/v1/tokens", role="", tag=TAG, status=201)
def create_token(call: Call, body: NewToken) -> ApiToken:
    """Create a token. A session or token alone cannot: the password is needed again.

    `secret` is shown once.
    """
    given = _credentials(call, body.user, body.password)
    actor = password_check.check_password(call.ctx, given, call.services.attempts).actor
    return tokens.create_token(
        call.ctx, actor=actor, name=body.name, role=body.role, ttl_s=body.ttl_s,
        models=body.models, sites=body.sites,
    )  # fmt: skip


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
    """Add a user; without a password, `one_time_password` is shown once."""
    return users.add_user(call.ctx, actor=call.by, **msgspec.structs.asdict(body))


@route("POST", "/api/v1/users/<name>/role", role="admin", tag=TAG)
def set_role(call: Call, name: str, body: NewRole) -> User:
    """Give a user another role: from the next request on, for sessions and tokens too."""
    return users.set_role(
        call.ctx, actor=call.by, name=name, role=body.role, reason=body.reason
    )  # fmt: skip


@route("POST", "/api/v1/users/<name>/reset", role="admin", tag=TAG)
def reset_password(call: Call, name: str, body: Why) -> User:
    """Give a user a one-time password, shown once, and end all sessions and tokens."""
    return users.reset_password(call.ctx, actor=call.by, name=name, reason=body.reason)


@route("POST", "/api/v1/users/<name>/disable", role="admin", tag=TAG)
def disable_user(call: Call, name: str, body: Why) -> User:
    """Refuse a user's sign-in and tokens, and end the sessions, until enabled again."""
    return users.set_disabled(
        call.ctx, actor=call.by, name=name, disabled=True, reason=body.reason
    )  # fmt: skip


@route("POST", "/api/v1/users/<name>/enable", role="admin", tag=TAG)
def enable_user(call: Call, name: str, body: Why) -> User:
    """Take back that a user is disabled."""
    return users.set_disabled(
        call.ctx, actor=call.by, name=name, disabled=False, reason=body.reason
    )  # fmt: skip


@route("POST", "/api/v1/users/<name>/revoke", role="admin", tag=TAG)
def revoke_all(call: Call, name: str, body: Why) -> Ended:
    """End every session and token of a user."""
    return users.revoke_all(call.ctx, actor=call.by, name=name, reason=body.reason)


@route("DELETE", "/api/v1/users/<name>", role="admin", tag=TAG, status=204)
def remove_user(call: Call, name: str) -> None:
    """Remove a user, with all sessions and tokens."""
    users.remove_user(call.ctx, actor=call.by, name=name)


def _credentials(call: Call, user: str, password: str) -> Credentials:
    """Of the named user, or of the signed-in one; DeniedError without either, or a password."""
    name = user or roles.require(call.actor, "viewer").name
    if not password:
        raise DeniedError(
            "this needs your password again",
            "send it as `password`",
            signed_in=call.actor is not None,
        )
    return Credentials(name, password, call.browser, call.actor)


def _me(actor: Actor) -> Me:
    return Me(
        name=actor.name, role=actor.role, via=actor.via, models=list(actor.models),
        sites=list(actor.sites), one_time=actor.one_time,
    )  # fmt: skip


def _cookie(name: str, value: tuple[str, int]) -> str:
    return dump_cookie(
        name, value[0], max_age=value[1], path="/", secure=True, httponly=True, samesite="Strict"
    )
