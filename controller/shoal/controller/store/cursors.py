"""Cursors of keyset pagination: the last row's key, opaque to clients."""

import base64
import binascii
from typing import Any

import msgspec

from shoal.errors import InputError

MAX_LIMIT = 500
_MAX_LENGTH = 1024


def encode(*key: str | float) -> str:
    """Encode the cursor after the row with this key."""
    return base64.urlsafe_b64encode(msgspec.json.encode(key)).decode().rstrip("=")


def decode(cursor: str, *types: Any) -> tuple[Any, ...]:
    """Decode a cursor to its key, parts of `types`; InputError if it is invalid.

    >>> decode(encode("d-17", 3), str, int)
    ('d-17', 3)
    """
    try:
        if len(cursor) > _MAX_LENGTH:
            raise ValueError("too long")
        data = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
        key: tuple[Any, ...] = msgspec.json.decode(data, type=tuple[types])  # type: ignore[valid-type]
        if any(isinstance(part, int) and abs(part) >= 2**63 for part in key):
            raise ValueError("larger than the database can hold")
    except (ValueError, binascii.Error, msgspec.MsgspecError) as error:
        raise InputError("invalid cursor", "use `page.next` of the previous page") from error
    return key


def bounded(limit: int) -> int:
    """Return `limit` if it is 1 to MAX_LIMIT, else raise InputError."""
    if not 1 <= limit <= MAX_LIMIT:
        raise InputError(f"limit {limit}", f"use 1 to {MAX_LIMIT}")
    return limit
