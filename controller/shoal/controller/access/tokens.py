"""API tokens for machines and the CLI: "shoal_<id>_<secret>", stored as a hash."""

import hmac
import re
import secrets
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, delete, insert, select, update

from shoal.controller.access import audit, roles, sessions
from shoal.controller.access.records import ApiToken
from shoal.controller.access.roles import Actor
from shoal.controller.host.context import Context
from shoal.controller.store.tables import api_token, user
from shoal.errors import AbsentError, DeniedError, SettingError

LONGEST_S = 366 * 86_400.0
_TOKEN = re.compile(r"shoal_([0-9a-f]{12})_([A-Za-z0-9_-]{43})")


def create_token(
    ctx: Context,
    *,
    actor: Actor,
    name: str,
    role: str = "",
    ttl_s: float = 30 * 86_400.0,
    models: Sequence[str] = (),
    sites: Sequence[str] = (),
) -> ApiToken:
    """Create a token for `actor`; its secret is returned only here.

    role            "" is the actor's own
    models, sites   what it is for; empty for everything: shoal.controller.access.scopes

    DeniedError for a role above the actor's, or one who has a one-time password; SettingError for a
    ttl_s of zero or above a year.
    """
    role = role or actor.role
    if role not in roles.ROLES:
        raise SettingError(f"role {role!r}", f"use one of: {', '.join(roles.ROLES)}")
    roles.require(actor, role)
    if actor.one_time:
        raise DeniedError(
            "this is a one-time password",
            "choose your own first: sign in to the console, or shoal login",
            signed_in=False, one_time=True,
        )  # fmt: skip
    if not 0 < ttl_s <= LONGEST_S:
        raise SettingError(f"ttl_s {ttl_s:g}", f"use up to {LONGEST_S:.0f}")
    secret, now = secrets.token_urlsafe(32), ctx.clock()
    id_ = secrets.token_hex(6)
    rights: dict[str, Any] = {
        "role": role, "expires_at": now + ttl_s, "models": sorted(set(models)),
        "sites": sorted(set(sites)),
    }  # fmt: skip
    row: dict[str, Any] = {"id": id_, "name": name, "user": actor.name, "created_at": now, **rights}
    with ctx.store.write() as db:
        db.execute(insert(api_token).values(secret_hash=roles.digest(secret), **row))
        audit.record(db, ctx, actor.name, "token.create", id_, name=name, **rights)
    return ApiToken(secret=f"shoal_{id_}_{secret}", **row)


def list_tokens(ctx: Context, *, actor: Actor) -> list[ApiToken]:
    """The actor's tokens, or all for an admin; newest first, without secrets."""
    wanted = select(api_token).order_by(api_token.c.created_at.desc(), api_token.c.id)
    if actor.role != "admin":
        wanted = wanted.where(api_token.c.user == actor.name)
    with ctx.store.read() as db:
        return [ApiToken.of_row(row) for row in db.execute(wanted)]


def revoke_token(ctx: Context, *, actor: Actor, id: str) -> None:  # noqa: A002 - name of the API field
    """Revoke a token. AbsentError if it is unknown, or of another user and the actor no admin."""
    mine = delete(api_token).where(api_token.c.id == id)
    if actor.role != "admin":
        mine = mine.where(api_token.c.user == actor.name)
    with ctx.store.write() as db:
        if not db.execute(mine).rowcount:
            raise AbsentError("token", id, "see: shoal token list")
        audit.record(db, ctx, actor.name, "token.revoke", id)


def revoke_tokens(db: Connection, name: str, *, but: str = "") -> int:
    """Revoke every token of a user, except `but`; how many."""
    mine = (api_token.c.user == name) & (api_token.c.id != but)
    return db.execute(delete(api_token).where(mine)).rowcount


def actor_of_token(ctx: Context, text: str) -> Actor | None:
    """Actor of a token; None when malformed, unknown, expired, revoked, or its user disabled."""
    found, now = _TOKEN.fullmatch(text), ctx.clock()
    if not found:
        return None
    id_, secret = found.groups()
    wanted = (
        select(api_token, user.c.role.label("user_role"))
        .join(user, user.c.name == api_token.c.user)
        .where(api_token.c.id == id_, user.c.disabled_at == 0)
    )
    with ctx.store.read() as db:
        row = db.execute(wanted).one_or_none()
    stored = row.secret_hash if row else ""
    if not hmac.compare_digest(roles.digest(secret), stored) or row is None:
        return None
    if row.expires_at <= now:
        return None
    if row.last_used_at < now - sessions.SEEN_EVERY_S:
        sessions.touch(ctx, update(api_token).where(api_token.c.id == id_).values(last_used_at=now))
    role = roles.lesser(row.role, row.user_role)
    return Actor(row.user, role, "token", id_, tuple(row.models), tuple(row.sites))
