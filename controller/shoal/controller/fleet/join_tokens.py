"""Join tokens: each allows a number of devices of one site to enrol until it expires."""

import hmac
import re
import secrets

import msgspec
from sqlalchemy import Connection, delete, insert, select, update

from shoal.controller.access import audit
from shoal.controller.access.roles import digest
from shoal.controller.fleet.records import JoinToken
from shoal.controller.host.context import Context
from shoal.controller.store.tables import join_token
from shoal.enrolment import JoinSecret
from shoal.errors import AbsentError, DeniedError, SettingError

RINGS = ("stable", "canary")
MOST_USES, LONGEST_S, LONGEST_SITE = 100_000, 366 * 86_400.0, 63
_SITE = re.compile(r"\w(?:[\w .,:/&+#'()-]*[\w)])?")
_HINT = "make another with: shoal device token --site SITE"


def create_join_token(
    ctx: Context,
    *,
    actor: str,
    ca_sha256: str,
    site: str,
    rings: list[str],
    uses: int = 1,
    ttl_s: float = 86_400.0,
) -> JoinToken:
    """Create a token for `uses` devices of `site`; its secret is returned only here.

    ca_sha256 pins the root CA for the device's first request. SettingError for an invalid site,
    ring, number or time.
    """
    _check(site, rings, uses, ttl_s)
    id_, secret, now = secrets.token_hex(5), secrets.token_urlsafe(24), ctx.clock()
    rings = sorted(set(rings), key=RINGS.index)
    token = JoinToken(
        id=id_, site=site, rings=rings, uses_left=uses, created_at=now, expires_at=now + ttl_s,
        secret=f"sj1.{id_}.{secret}.{ca_sha256}",
    )  # fmt: skip
    row = msgspec.structs.asdict(token) | {"secret_hash": digest(secret)}
    del row["secret"]
    with ctx.store.write() as db:
        db.execute(insert(join_token).values(row))
        audit.record(db, ctx, actor, "join-token.create", id_, site=site, rings=rings, uses=uses)
    return token


def list_join_tokens(ctx: Context) -> list[JoinToken]:
    """Unexpired tokens, newest first, without secrets."""
    wanted = select(join_token).where(join_token.c.expires_at > ctx.clock())
    with ctx.store.read() as db:
        rows = db.execute(wanted.order_by(join_token.c.created_at.desc(), join_token.c.id)).all()
    return [JoinToken.of_row(row) for row in rows]


def revoke_join_token(ctx: Context, *, actor: str, id: str) -> None:  # noqa: A002 - name of the API field
    """Revoke a token; AbsentError if it does not exist."""
    with ctx.store.write() as db:
        if not db.execute(delete(join_token).where(join_token.c.id == id)).rowcount:
            raise AbsentError("join token", id)
        audit.record(db, ctx, actor, "join-token.revoke", id)


def use(
    db: Connection, ctx: Context, given: JoinSecret, ring: str, *, retry: bool = False
) -> JoinToken:
    """Count one use of a token, in the enrolment's transaction, which rolls it back on failure.

    retry   the same device was counted a moment ago: count no further use

    DeniedError when it is unknown, expired, used up or not for `ring`; which of these is revealed
    only to a sender of the right secret.
    """
    row = db.execute(select(join_token).where(join_token.c.id == given.id)).one_or_none()
    if not hmac.compare_digest(digest(given.secret), row.secret_hash if row else "") or not row:
        raise DeniedError("this join token is unknown or revoked", _HINT)
    if row.expires_at <= ctx.clock():
        raise DeniedError("this join token has expired", _HINT)
    if ring not in row.rings:
        raise DeniedError(
            f"this join token is not for ring {ring!r}", f"it is for: {', '.join(row.rings)}"
        )
    if retry:
        return JoinToken.of_row(row)
    # The condition is part of the statement: two devices cannot both take the last use.
    left = join_token.c.uses_left
    taken = update(join_token).where(join_token.c.id == row.id, left > 0).values(uses_left=left - 1)
    if not db.execute(taken).rowcount:
        raise DeniedError("this join token is used up", _HINT)
    return JoinToken.of_row(row)


def _check(site: str, rings: list[str], uses: int, ttl_s: float) -> None:
    if len(site) > LONGEST_SITE or not _SITE.fullmatch(site):
        raise SettingError(
            f"site {site!r:.80}",
            f"use 1 to {LONGEST_SITE} letters and digits, and between them spaces and any of "
            ". , : / & + # ' ( ) _ -",
        )
    if not rings or set(rings) - set(RINGS):
        raise SettingError(f"rings {rings!r:.80}", f"choose of: {', '.join(RINGS)}")
    if not 1 <= uses <= MOST_USES:
        raise SettingError(f"uses {uses}", f"use 1 to {MOST_USES}")
    if not 0 < ttl_s <= LONGEST_S:
        raise SettingError(f"ttl_s {ttl_s:g}", f"use up to {LONGEST_S:.0f} seconds")
