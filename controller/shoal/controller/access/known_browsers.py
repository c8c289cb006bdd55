"""Cookie of a browser in which a user has signed in before.

Failed guesses of others, at the user's account or behind the user's address, do not count against
who has it: nobody can lock a user out by guessing. It authenticates nothing by itself, and ends
with the user's password, whose hash is its key.

Source: "Slow Down Online Guessing Attacks with Device Cookies", OWASP.
"""

import hashlib
import hmac
import re

COOKIE = "__Host-shoal-browser"
KEPT_S = 365 * 86_400
_VALUE = re.compile(r"([0-9a-f]{32})\.([0-9a-f]{64})")


def make(user: str, password_hash: str, nonce: str) -> str:
    """Value of the cookie. nonce: 32 hex digits, random.

    >>> browser_of(make("ana", "hash", "0" * 32), "ana", "hash") == "0" * 32
    True
    >>> browser_of(make("ana", "hash", "0" * 32), "bob", "hash")
    ''
    """
    return f"{nonce}.{_code(user, password_hash, nonce)}"


def browser_of(value: str, user: str, password_hash: str) -> str:
    """Nonce of a valid cookie of this user, else ""."""
    found = _VALUE.fullmatch(value)
    if not found or not hmac.compare_digest(_code(user, password_hash, found[1]), found[2]):
        return ""
    return found[1]


def _code(user: str, password_hash: str, nonce: str) -> str:
    text = f"shoal browser\0{user}\0{nonce}"
    return hmac.new(password_hash.encode(), text.encode(), hashlib.sha256).hexdigest()
