"""Where a list goes on: the last row's key, opaque to who holds it."""

import base64
import binascii
from typing import Any

import msgspec

from shoal.errors import InputError

MOST = 500
_LONGEST = 1024


def encode(*key: str | float) -> str:
    """Cursor after the row with this key."""
    return base64.urlsafe_b64encode(msgspec.json.encode(key)).decode().rstrip("=")


def decode(cursor: str, *types: Any) -> tuple[Any, ...]:
    """Key of a cursor, parts of `types`; InputError if it is not one of ours.

    >>> decode(encode("d-17", 3), str, int)
    ('d-17', 3)
    """
    try:
        if len(cursor) > _LONGEST:
            raise ValueError("too long")
        data = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
        key: tuple[Any, ...] = msgspec.json.decode(data, type=tuple[types])  # type: ignore[valid-type]
        if any(isinstance(part, int) and abs(part) >= 2**63 for part in key):
            raise ValueError("larger than the database can hold")
    except (ValueError, binascii.Error, msgspec.MsgspecError) as error:
        raise InputError("cursor is not one", "take `page.next` of the page before") from error
    return key


def bounded(limit: int) -> int:
    """`limit` itself if it is 1 to MOST, else InputError."""
    if not 1 <= limit <= MOST:
        raise InputError(f"limit {limit}", f"use 1 to {MOST}")
    return limit
