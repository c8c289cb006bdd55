"""Verification of a user's password: at sign-in, for a token, and before a new password."""

import logging
from typing import Any, NamedTuple

from sqlalchemy import select, update

from shoal.controller.access import audit, known_browsers
from shoal.controller.access.login_attempts import Attempts, Origin, origin_of
from shoal.controller.access.passwords import hash_password, is_password, outdated
from shoal.controller.access.roles import Actor
from shoal.controller.host.context import Context
from shoal.controller.store.tables import user
from shoal.errors import DeniedError

_log = logging.getLogger(__name__)
REFUSED = "user.sign-in-refused"


class Credentials(NamedTuple):
    """What a request shows of a user.

    browser   cookie of a browser in which the user signed in before
    holder    who sent the request, by a valid token or session
    """

    user: str
    password: str
    browser: str = ""
    holder: Actor | None = None


class Verified(NamedTuple):
    """A user whose password is right. password_hash is the key of known_browsers."""

    actor: Actor
    password_hash: str
    browser: str = ""


def check_password(ctx: Context, given: Credentials, attempts: Attempts) -> Verified:
    """Verify user and password; the same DeniedError whichever is wrong, or no longer valid."""
    name, now = given.user[:64], ctx.clock()
    with ctx.store.read() as db:
        row = db.execute(select(user).where(user.c.name == name)).one_or_none()
    proof, browser = _second_proof(row, given) if row is not None else ("", "")
    origin = origin_of(name, ctx.address, proof)
    try:
        attempts.begin(origin, now)
    except DeniedError as error:
        if attempts.is_news(origin):
            _refuse(ctx, row, f"too many wrong passwords, {error.hint}")
        raise
    right = is_password(row.password_hash if row else None, given.password)
    why = _why_refused(row, right, now)
    if row is None or why:
        _refuse(ctx, row, why)
        raise DeniedError("user or password is wrong", signed_in=False)
    return _accept(ctx, row, given, (attempts, origin, browser))


def _accept(
    ctx: Context, row: Any, given: Credentials, counted: tuple[Attempts, Origin, str]
) -> Verified:
    attempts, origin, browser = counted
    attempts.succeeded(origin)
    password_hash = row.password_hash
    if outdated(password_hash):
        password_hash = hash_password(given.password)
        with ctx.store.write() as db:
            unchanged = (user.c.name == row.name) & (user.c.password_hash == row.password_hash)
            db.execute(update(user).where(unchanged).values(password_hash=password_hash))
        browser = ""  # its key was the old hash
    actor = Actor(row.name, row.role, "password", "", one_time=bool(row.password_expires_at))
    return Verified(actor, password_hash, browser)


def _second_proof(row: Any, given: Credentials) -> tuple[str, str]:
    """Key of a second proof that the user shows, "" for none, and of a known browser."""
    browser = known_browsers.browser_of(given.browser, row.name, row.password_hash)
    holder = given.holder
    held = holder.key if holder is not None and holder.name == row.name else ""
    return browser or held, browser


def _why_refused(row: Any, right: bool, now: float) -> str:
    """Why a sign-in is refused, for the audit log: the client learns none of it."""
    if row is None:
        return "unknown user"
    if not right:
        return "wrong password"
    if row.disabled_at:
        return "disabled"
    if row.password_expires_at and row.password_expires_at <= now:
        return "one-time password expired"
    return ""


def _refuse(ctx: Context, row: Any, why: str) -> None:
    """Never store the given name of an unknown user: people type passwords into that field."""
    name = row.name if row is not None else ""
    _log.warning("sign-in of %s from %s: %s", name or "an unknown user", ctx.address, why)
    with ctx.store.write() as db:
        audit.record(db, ctx, name, REFUSED, name, reason=why)
