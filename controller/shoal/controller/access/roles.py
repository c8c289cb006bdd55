"""Roles, and the Actor of a request.

A secret is stored only as a hash (argon2 for passwords, SHA-256 for secrets of 32 random bytes),
compared in constant time, and never logged.
"""

import hashlib
from typing import NamedTuple

from shoal.errors import DeniedError

ROLES = ("viewer", "operator", "approver", "admin")


class Actor(NamedTuple):
    """Authenticated caller.

    via            "session", "token" or "password"
    key            hash of the session, or id of the token
    models, sites  scope of a token: empty for everything
    one_time       signed in with a one-time password, which has to be replaced first
    """

    name: str
    role: str
    via: str
    key: str
    models: tuple[str, ...] = ()
    sites: tuple[str, ...] = ()
    one_time: bool = False

    @property
    def scoped(self) -> bool:
        return bool(self.models or self.sites)


def reaches(role: str, wanted: str) -> bool:
    """Whether `role` is `wanted` or a higher one."""
    return ROLES.index(role) >= ROLES.index(wanted)


def require(actor: Actor | None, role: str) -> Actor:
    """Return `actor` if it has `role` or a higher one, else raise DeniedError."""
    if actor is None:
        raise DeniedError(
            "not signed in", "sign in, or send a token as `Authorization: Bearer`", signed_in=False
        )
    if not reaches(actor.role, role):
        raise DeniedError(
            f"{actor.name} is signed in as {actor.role}, this needs {role}",
            "ask an admin for that role",
            signed_in=True,
            role=actor.role,
            needed=role,
        )
    return actor


def lesser(one: str, other: str) -> str:
    """The lower of two roles: a token never has more rights than its user has now."""
    return min(one, other, key=ROLES.index)


def digest(secret: str) -> str:
    """SHA-256 of a random secret of 32 bytes, hex: the form that is stored."""
    return hashlib.sha256(secret.encode()).hexdigest()
