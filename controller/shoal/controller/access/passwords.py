"""Passwords that people choose: argon2id, and nothing a clock could tell."""

import argon2
from argon2.exceptions import InvalidHashError, VerificationError

from shoal.errors import SettingError

SHORTEST, LONGEST = 12, 256
# OWASP's second choice: 19 MiB a guess, so that a burst of log-ins fits a small controller.
_hasher = argon2.PasswordHasher(time_cost=2, memory_cost=19_456, parallelism=1)
#: Of a password nobody has: an unknown user costs as long as a wrong password.
_NOBODY = (
    "$argon2id$v=19$m=19456,t=2,p=1$c2hvYWwgbm9ib2R5ISEhIQ$"
    "MTIzNDU2Nzg5MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTI"
)


def hash_password(password: str) -> str:
    """Argon2id hash; SettingError if the password is too short or too long."""
    if not SHORTEST <= len(password) <= LONGEST:
        raise SettingError(f"a password has {SHORTEST} to {LONGEST} characters")
    return _hasher.hash(password)


def is_password(password_hash: str | None, password: str) -> bool:
    """Whether `password` is the one hashed; None takes as long, and is never it."""
    try:
        _hasher.verify(password_hash or _NOBODY, password[:LONGEST])
    except (VerificationError, InvalidHashError):
        return False
    return password_hash is not None


def outdated(password_hash: str) -> bool:
    """Whether it was hashed with other costs than today's."""
    return _hasher.check_needs_rehash(password_hash)
