"""User accounts."""

import re
import secrets

from sqlalchemy import delete, func, insert, select, update

from shoal.controller.access import audit, roles, sessions
from shoal.controller.access.login_attempts import Attempts
from shoal.controller.access.passwords import hash_password
from shoal.controller.access.records import User
from shoal.controller.access.roles import Actor
from shoal.controller.host.context import Context
from shoal.controller.store.tables import api_token, user
from shoal.errors import AbsentError, ConflictError, SettingError

_NAME = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,61}[a-z0-9])?")
FIRST = "admin"


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


def add_user(ctx: Context, *, actor: str, name: str, role: str, password: str) -> User:
    """Add a user; ConflictError if the name is taken, SettingError for invalid values."""
    if not _NAME.fullmatch(name):
        raise SettingError(f"user name {name!r}", "use 1 to 63 of a-z, 0-9, and inner . _ -")
    _check_role(role)
    created = User(name=name, role=role, created_at=ctx.clock())
    password_hash = hash_password(password)
    with ctx.store.write() as db:
        if db.scalar(select(user.c.name).where(user.c.name == name)) is not None:
            raise ConflictError(f"user {name!r} exists already", "choose another name")
        db.execute(
            insert(user).values(
                name=name, role=role, password_hash=password_hash, created_at=created.created_at
            )
        )
        audit.record(db, ctx, actor, "user.add", name, role=role)
    return created


def list_users(ctx: Context) -> list[User]:
    """All users by name."""
    with ctx.store.read() as db:
        rows = db.execute(select(user).order_by(user.c.name)).all()
    return [User.of_row(row) for row in rows]


def remove_user(ctx: Context, *, actor: str, name: str) -> None:
    """Remove a user with all sessions and tokens; ConflictError for the last admin."""
    with ctx.store.write() as db:
        row = db.execute(select(user).where(user.c.name == name)).one_or_none()
        if row is None:
            raise AbsentError("user", name)
        admins = db.execute(select(func.count()).where(user.c.role == "admin")).scalar_one()
        if row.role == "admin" and admins == 1:
            raise ConflictError(f"{name} is the last admin", "add another admin first")
        sessions.end_sessions(db, name)
        db.execute(delete(api_token).where(api_token.c.user == name))
        db.execute(delete(user).where(user.c.name == name))
        audit.record(db, ctx, actor, "user.remove", name)


def change_password(
    ctx: Context, *, actor: Actor, old: str, new: str, address: str, attempts: Attempts
) -> None:
    """Change the actor's own password and end the user's other sessions.

    DeniedError if `old` is wrong or was tried too often, SettingError if `new` is too short.
    """
    sessions.check_password(
        ctx, user_name=actor.name, password=old, address=address, attempts=attempts
    )
    password_hash = hash_password(new)
    with ctx.store.write() as db:
        db.execute(
            update(user).where(user.c.name == actor.name).values(password_hash=password_hash)
        )
        sessions.end_sessions(db, actor.name, but=actor.key)
        audit.record(db, ctx, actor.name, "user.password", actor.name)


def _check_role(role: str) -> None:
    if role not in roles.ROLES:
        raise SettingError(f"role {role!r}", f"use one of: {', '.join(roles.ROLES)}")
