"""Password hashes: argon2id, verified in the same time for known and unknown users."""

import argon2
from argon2.exceptions import InvalidHashError, VerificationError

from shoal.errors import SettingError

SHORTEST, LONGEST = 12, 256
# OWASP's second choice: 19 MiB per hash, so that many sign-ins at once fit a small controller.
_hasher = argon2.PasswordHasher(time_cost=2, memory_cost=19_456, parallelism=1)
#: Verified for an unknown user, so that it takes as long as a wrong password.
_DUMMY_HASH = (
    "$argon2id$v=19$m=19456,t=2,p=1$c2hvYWwgbm9ib2R5ISEhIQ$"
    "MTIzNDU2Nzg5MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTI"
)


def hash_password(password: str) -> str:
    """Argon2id hash; SettingError if the password is too short or too long."""
    if not SHORTEST <= len(password) <= LONGEST:
        raise SettingError(f"a password has {SHORTEST} to {LONGEST} characters")
    return _hasher.hash(password)


def is_password(password_hash: str | None, password: str) -> bool:
    """Whether `password` matches the hash; for None False, after the same time."""
    try:
        _hasher.verify(password_hash or _DUMMY_HASH, password[:LONGEST])
    except (VerificationError, InvalidHashError):
        return False
    return password_hash is not None


def outdated(password_hash: str) -> bool:
    """Whether it was hashed with other parameters than the current ones."""
    return _hasher.check_needs_rehash(password_hash)
