"""User accounts."""

import re
import secrets
from typing import Any

from sqlalchemy import Connection, delete, func, insert, select, update

from shoal.controller.access import audit, roles, sessions, tokens
from shoal.controller.access.login_attempts import Attempts
from shoal.controller.access.password_check import Credentials, check_password
from shoal.controller.access.passwords import hash_password
from shoal.controller.access.records import Ended, User
from shoal.controller.host.context import Context
from shoal.controller.store.tables import api_token, session, user
from shoal.errors import AbsentError, ConflictError, SettingError

_NAME = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,61}[a-z0-9])?")
FIRST = "admin"
#: A one-time password is valid for so long.
ONE_TIME_S = 86_400.0


def first_admin(ctx: Context) -> str:
    """Create the first admin and return its password, which is stored only as a hash.

    ConflictError when a user exists.
    """
    with ctx.store.read() as db:
        if db.execute(select(user.c.name).limit(1)).first():
            raise ConflictError("a user exists already", "sign in as an admin to add another")
    password = secrets.token_urlsafe(15)
    add_user(ctx, actor="init", name=FIRST, role="admin", password=password)
    return password


def add_user(ctx: Context, *, actor: str, name: str, role: str, password: str = "") -> User:
    """Add a user; without a password with a one-time password, which is returned only here.

    ConflictError if the name is taken, SettingError for invalid values.
    """
    if not _NAME.fullmatch(name):
        raise SettingError(f"user name {name!r}", "use 1 to 63 of a-z, 0-9, and inner . _ -")
    _check_role(role)
    one_time = "" if password else secrets.token_urlsafe(15)
    row: dict[str, Any] = {"name": name, "role": role, "created_at": ctx.clock()}
    row |= {"password_expires_at": ctx.clock() + ONE_TIME_S if one_time else 0.0}
    password_hash = hash_password(password or one_time)
    with ctx.store.write() as db:
        if db.scalar(select(user.c.name).where(user.c.name == name)) is not None:
            raise ConflictError(f"user {name!r} exists already", "choose another name")
        db.execute(insert(user).values(password_hash=password_hash, **row))
        audit.record(db, ctx, actor, "user.add", name, role=role)
    return User(one_time_password=one_time, **row)


def list_users(ctx: Context) -> list[User]:
    """All users by name, with their valid sessions and tokens."""
    now = ctx.clock()
    ended: dict[str, dict[str, Any]] = {}
    with ctx.store.read() as db:
        rows = db.execute(select(user).order_by(user.c.name)).all()
        for table, kind, used in (
            (session, "sessions", session.c.seen_at),
            (api_token, "tokens", api_token.c.last_used_at),
        ):
            valid = table.c.expires_at > now
            counts = select(table.c.user, func.count(), func.max(used)).where(valid)
            for name, number, seen in db.execute(counts.group_by(table.c.user)):
                known = ended.setdefault(name, {})
                known |= {kind: number, "seen_at": max(known.get("seen_at", 0.0), seen)}
    return [User.of_row(row, **ended.get(row.name, {})) for row in rows]


def set_role(ctx: Context, *, actor: str, name: str, role: str, reason: str = "") -> User:
    """Give a user another role, for the next request already; ConflictError for the last admin."""
    _check_role(role)
    with ctx.store.write() as db:
        row = _user(db, name)
        if role != "admin":
            _refuse_last_admin(db, row)
        db.execute(update(user).where(user.c.name == name).values(role=role))
        audit.record(
            db, ctx, actor, "user.role", name, before=row.role, after=role, reason=reason
        )  # fmt: skip
        return User.of_row(_user(db, name))


def reset_password(ctx: Context, *, actor: str, name: str, reason: str = "") -> User:
    """Give a user a one-time password, and end all sessions and tokens.

    It is valid for a day, for choosing a password.
    """
    password, now = secrets.token_urlsafe(15), ctx.clock()
    values = {"password_hash": hash_password(password), "password_expires_at": now + ONE_TIME_S}
    with ctx.store.write() as db:
        _user(db, name)
        db.execute(update(user).where(user.c.name == name).values(values))
        ended = _end_all(db, name)
        audit.record(
            db, ctx, actor, "user.reset-password", name, sessions=ended.sessions,
            tokens=ended.tokens, reason=reason,
        )  # fmt: skip
        return User.of_row(_user(db, name), one_time_password=password)


def set_disabled(ctx: Context, *, actor: str, name: str, disabled: bool, reason: str = "") -> User:
    """Disable a user: sessions end, sign-in and tokens are refused until enabled again.

    ConflictError for the last admin.
    """
    with ctx.store.write() as db:
        row = _user(db, name)
        if disabled:
            _refuse_last_admin(db, row)
            sessions.end_sessions(db, name)
        since = (row.disabled_at or ctx.clock()) if disabled else 0.0
        db.execute(update(user).where(user.c.name == name).values(disabled_at=since))
        verb = "user.disable" if disabled else "user.enable"
        audit.record(db, ctx, actor, verb, name, reason=reason)
        return User.of_row(_user(db, name))


def revoke_all(ctx: Context, *, actor: str, name: str, reason: str = "") -> Ended:
    """End every session and token of a user."""
    with ctx.store.write() as db:
        _user(db, name)
        ended = _end_all(db, name)
        audit.record(
            db, ctx, actor, "user.revoke-all", name, sessions=ended.sessions, tokens=ended.tokens,
            reason=reason,
        )  # fmt: skip
    return ended


def remove_user(ctx: Context, *, actor: str, name: str, reason: str = "") -> None:
    """Remove a user with all sessions and tokens; ConflictError for the last admin."""
    with ctx.store.write() as db:
        row = _user(db, name)
        _refuse_last_admin(db, row)
        _end_all(db, name)
        db.execute(delete(user).where(user.c.name == name))
        audit.record(db, ctx, actor, "user.remove", name, role=row.role, reason=reason)


def change_password(
    ctx: Context, given: Credentials, attempts: Attempts, *, new: str, keep_tokens: bool = False
) -> Ended:
    """Change a user's own password; the other sessions end, and the other tokens unless kept.

    The session or token of `given.holder` stays. DeniedError if the old password is wrong or was
    tried too often, SettingError if `new` is too short, or the old one.
    """
    actor = check_password(ctx, given, attempts).actor
    if new == given.password:
        raise SettingError("the new password is the old one", "choose another")
    password_hash = hash_password(new)
    holder = given.holder if given.holder and given.holder.name == actor.name else None
    mine = {holder.via: holder.key} if holder else {}
    with ctx.store.write() as db:
        values = {"password_hash": password_hash, "password_expires_at": 0.0}
        db.execute(update(user).where(user.c.name == actor.name).values(values))
        ended = Ended(
            sessions=sessions.end_sessions(db, actor.name, but=mine.get("session", "")),
            tokens=0 if keep_tokens
            else tokens.revoke_tokens(db, actor.name, but=mine.get("token", "")),
        )  # fmt: skip
        audit.record(
            db, ctx, actor.name, "user.password", actor.name, sessions=ended.sessions,
            tokens=ended.tokens,
        )  # fmt: skip
    return ended


def _user(db: Connection, name: str) -> Any:
    row = db.execute(select(user).where(user.c.name == name)).one_or_none()
    if row is None:
        raise AbsentError("user", name, "see: shoal user list")
    return row


def _end_all(db: Connection, name: str) -> Ended:
    return Ended(
        sessions=sessions.end_sessions(db, name), tokens=tokens.revoke_tokens(db, name)
    )  # fmt: skip


def _refuse_last_admin(db: Connection, row: Any) -> None:
    """ConflictError if nobody else could sign in as an admin."""
    others = (user.c.role == "admin") & (user.c.disabled_at == 0) & (user.c.name != row.name)
    count = select(func.count()).where(others)
    if row.role == "admin" and not row.disabled_at and not db.execute(count).scalar_one():
        raise ConflictError(f"{row.name} is the last admin", "add another admin first")


def _check_role(role: str) -> None:
    if role not in roles.ROLES:
        raise SettingError(f"role {role!r}", f"use one of: {', '.join(roles.ROLES)}")
