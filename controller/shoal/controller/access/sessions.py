"""Sessions of the console: sign in with a password, the session cookie, sign out."""

import logging
import secrets

from sqlalchemy import Connection, Update, delete, insert, select, update

from shoal.controller.access import audit
from shoal.controller.access.login_attempts import Attempts, allowances
from shoal.controller.access.passwords import hash_password, is_password, outdated
from shoal.controller.access.roles import Actor, digest
from shoal.controller.host.context import Context
from shoal.controller.store.tables import session, user
from shoal.errors import DeniedError, StorageError

_log = logging.getLogger(__name__)

COOKIE = "__Host-shoal"
SESSION_S = 12 * 3600.0
#: Resolution of `seen_at` and `last_used_at`, seconds: most reads do not write.
SEEN_EVERY_S = 60.0


def check_password(
    ctx: Context, *, user_name: str, password: str, address: str, attempts: Attempts
) -> Actor:
    """Verify user and password; the same DeniedError whichever is wrong."""
    keys = allowances(user_name[:64], address)
    attempts.begin(keys, ctx.clock())
    with ctx.store.read() as db:
        row = db.execute(select(user).where(user.c.name == user_name[:64])).one_or_none()
    if not is_password(row.password_hash if row else None, password) or row is None:
        # Never log the given name: users type passwords into that field.
        _log.warning(
            "wrong password for %s, from %s", row.name if row else "an unknown user", address
        )
        raise DeniedError("user or password is wrong", signed_in=False)
    attempts.forget(keys)
    if outdated(row.password_hash):
        fresh = update(user).where(user.c.name == row.name)
        with ctx.store.write() as db:
            db.execute(fresh.values(password_hash=hash_password(password)))
    return Actor(row.name, row.role, "password", "")


def login(
    ctx: Context, *, user_name: str, password: str, address: str, attempts: Attempts
) -> tuple[Actor, str]:
    """Create a session: the actor, and the secret for COOKIE. DeniedError as check_password."""
    actor = check_password(
        ctx, user_name=user_name, password=password, address=address, attempts=attempts
    )
    secret, now = secrets.token_urlsafe(32), ctx.clock()
    with ctx.store.write() as db:
        db.execute(delete(session).where(session.c.expires_at <= now))
        db.execute(
            insert(session).values(
                id_hash=digest(secret),
                user=actor.name,
                created_at=now,
                expires_at=now + SESSION_S,
                seen_at=now,
            )
        )
        audit.record(db, ctx, actor.name, "user.sign-in", actor.name, address=address)
    return actor._replace(via="session", key=digest(secret)), secret


def actor_of_session(ctx: Context, secret: str) -> Actor | None:
    """Actor of a session cookie; None when it is unknown, expired or revoked."""
    key, now = digest(secret), ctx.clock()
    wanted = (
        select(user.c.name, user.c.role, session.c.seen_at)
        .join(session, session.c.user == user.c.name)
        .where(session.c.id_hash == key, session.c.expires_at > now)
    )
    with ctx.store.read() as db:
        row = db.execute(wanted).one_or_none()
    if row is None:
        return None
    if row.seen_at < now - SEEN_EVERY_S:
        touch(ctx, update(session).where(session.c.id_hash == key).values(seen_at=now))
    return Actor(row.name, row.role, "session", key)


def logout(ctx: Context, *, actor: Actor) -> None:
    """End the session of `actor`."""
    with ctx.store.write() as db:
        db.execute(delete(session).where(session.c.id_hash == actor.key))
        audit.record(db, ctx, actor.name, "user.sign-out", actor.name)


def end_sessions(db: Connection, name: str, *, but: str = "") -> None:
    """End every session of a user, except `but`."""
    db.execute(delete(session).where(session.c.user == name, session.c.id_hash != but))


def touch(ctx: Context, statement: Update) -> None:
    """Store the time of use; a busy database must not refuse the request."""
    try:
        with ctx.store.write() as db:
            db.execute(statement)
    except StorageError:
        return
