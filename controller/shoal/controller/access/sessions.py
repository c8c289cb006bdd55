"""Sessions of the console: sign in with a password, the session cookie, sign out."""

import secrets
from typing import Any

from sqlalchemy import Connection, Select, Update, delete, func, insert, select, update

from shoal.controller.access import audit, known_browsers
from shoal.controller.access.login_attempts import Attempts
from shoal.controller.access.password_check import Credentials, check_password
from shoal.controller.access.records import SessionInfo
from shoal.controller.access.roles import Actor, digest
from shoal.controller.host.context import Context
from shoal.controller.store.tables import session, user
from shoal.errors import AbsentError, StorageError

COOKIE = "__Host-shoal"
SESSION_S = 12 * 3600.0
#: Resolution of `seen_at` and `last_used_at`, seconds: most reads do not write.
SEEN_EVERY_S = 60.0
_ID_DIGITS = 16
_AGENT_CHARACTERS = 300


def login(
    ctx: Context, given: Credentials, attempts: Attempts, agent: str = ""
) -> tuple[Actor, dict[str, tuple[str, int]]]:
    """Create a session: the actor, and cookies as name -> (value, seconds).

    agent   the browser's User-Agent, for the list of sessions

    DeniedError as check_password.
    """
    found = check_password(ctx, given, attempts)
    actor = found.actor
    secret, now = secrets.token_urlsafe(32), ctx.clock()
    with ctx.store.write() as db:
        db.execute(delete(session).where(session.c.expires_at <= now))
        db.execute(
            insert(session).values(
                id_hash=digest(secret), user=actor.name, created_at=now,
                expires_at=now + SESSION_S, seen_at=now, address=ctx.address,
                agent="".join(c for c in agent if c.isprintable())[:_AGENT_CHARACTERS],
            )
        )  # fmt: skip
        audit.record(db, ctx, actor.name, "user.sign-in", actor.name)
    nonce = found.browser or secrets.token_hex(16)
    browser = known_browsers.make(actor.name, found.password_hash, nonce)
    cookies = {
        COOKIE: (secret, int(SESSION_S)),
        known_browsers.COOKIE: (browser, known_browsers.KEPT_S),
    }
    return actor._replace(via="session", key=digest(secret)), cookies


def actor_of_session(ctx: Context, secret: str) -> Actor | None:
    """Actor of a session cookie; None when unknown, expired, revoked, or the user is disabled."""
    key, now = digest(secret), ctx.clock()
    wanted = (
        select(user.c.name, user.c.role, user.c.password_expires_at, session.c.seen_at)
        .join(session, session.c.user == user.c.name)
        .where(session.c.id_hash == key, session.c.expires_at > now, user.c.disabled_at == 0)
    )
    with ctx.store.read() as db:
        row = db.execute(wanted).one_or_none()
    if row is None:
        return None
    if row.seen_at < now - SEEN_EVERY_S:
        touch(ctx, update(session).where(session.c.id_hash == key).values(seen_at=now))
    return Actor(row.name, row.role, "session", key, one_time=bool(row.password_expires_at))


def logout(ctx: Context, *, actor: Actor) -> None:
    """End the session of `actor`."""
    with ctx.store.write() as db:
        db.execute(delete(session).where(session.c.id_hash == actor.key))
        audit.record(db, ctx, actor.name, "user.sign-out", actor.name)


def list_sessions(ctx: Context, *, actor: Actor) -> list[SessionInfo]:
    """The actor's valid sessions, or everybody's for an admin; last used first."""
    wanted = _mine(select(session), actor).where(session.c.expires_at > ctx.clock())
    with ctx.store.read() as db:
        rows = db.execute(wanted.order_by(session.c.seen_at.desc(), session.c.id_hash)).all()
    return [
        SessionInfo.of_row(
            row, id=row.id_hash[:_ID_DIGITS], current=row.id_hash == actor.key
        )
        for row in rows
    ]  # fmt: skip


def end_session(ctx: Context, *, actor: Actor, id: str) -> None:  # noqa: A002 - name of the API field
    """End a session; AbsentError if it is unknown, or of another user and the actor no admin."""
    wanted = _mine(select(session.c.id_hash, session.c.user), actor)
    with ctx.store.write() as db:
        same = func.substr(session.c.id_hash, 1, _ID_DIGITS) == id
        row = db.execute(wanted.where(same)).first()
        if row is None:
            raise AbsentError("session", id, "see: shoal user sessions")
        db.execute(delete(session).where(session.c.id_hash == row.id_hash))
        audit.record(db, ctx, actor.name, "user.end-session", row.user, session=id)


def end_other_sessions(ctx: Context, *, actor: Actor) -> int:
    """End every session of the actor but this one; how many."""
    with ctx.store.write() as db:
        ended = end_sessions(db, actor.name, but=actor.key)
        audit.record(db, ctx, actor.name, "user.end-sessions", actor.name, sessions=ended)
    return ended


def end_sessions(db: Connection, name: str, *, but: str = "") -> int:
    """End every session of a user, except `but`; how many."""
    mine = (session.c.user == name) & (session.c.id_hash != but)
    return db.execute(delete(session).where(mine)).rowcount


def touch(ctx: Context, statement: Update) -> None:
    """Store the time of use; a busy database must not refuse the request."""
    try:
        with ctx.store.write() as db:
            db.execute(statement)
    except StorageError:
        return


def _mine(wanted: Select[Any], actor: Actor) -> Select[Any]:
    return wanted if actor.role == "admin" else wanted.where(session.c.user == actor.name)
