"""Hash chain of the audit log: each entry's hash covers the hash before it.

    hash(n) = SHA-256(hash(n-1) in hex + JSON of the entry's fields, keys sorted)

An entry without an address is hashed without that field, as those of before there were addresses.
The chain alone finds an entry that was edited or removed from the middle; a tail that was cut, or a
chain that was written anew, is found against a `Head` that was signed while it was there.
"""

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import msgspec

from shoal.errors import TrustError

FIELDS = ("at", "actor", "verb", "subject", "detail", "address")


class Head(NamedTuple):
    """The newest entry of a chain. hash: 64 hex digits; "" and 0 of an empty chain."""

    id: int = 0
    hash: str = ""


def entry_hash(before: str, entry: Mapping[str, Any]) -> str:
    """Hash of an entry that follows the one with hash `before`."""
    fields = {k: entry[k] for k in FIELDS if k != "address" or entry.get(k)}
    data = before.encode() + msgspec.json.encode(fields, order="sorted")
    return hashlib.sha256(data).hexdigest()


def follow(entries: Iterable[Mapping[str, Any]]) -> dict[int, str]:
    """Hashes by id of a chain from its first entry on, oldest first.

    TrustError names the first entry that was changed, or the ids that are missing.
    """
    found: dict[int, str] = {}
    last = Head()
    for entry in entries:
        number = entry["id"]
        if number != last.id + 1:
            raise TrustError(_missing(last.id + 1, number - 1), entry=last.id + 1)
        if entry["hash"] != entry_hash(last.hash, entry):
            raise TrustError(
                f"audit entry {number} was changed, or does not follow entry {last.id}",
                entry=number,
            )
        last = Head(number, entry["hash"])
        found[number] = last.hash
    return found


def check_head(found: Mapping[int, str], signed: Head) -> None:
    """TrustError when a chain is not the one whose head was signed, or ends before it."""
    newest = max(found, default=0)
    if newest < signed.id:
        raise TrustError(
            f"{_missing(newest + 1, signed.id)} at the end: entry {signed.id} was signed as the "
            "newest",
            entry=newest + 1,
        )
    if signed.id and found[signed.id] != signed.hash:
        raise TrustError(
            f"audit entry {signed.id} is not the one that was signed: the chain up to it was "
            "written anew",
            entry=signed.id,
        )


def _missing(first: int, last: int) -> str:
    if last < first:
        return f"audit entry {last + 1} stands twice, or in another order"
    return (
        f"audit entry {first} is missing"
        if first == last
        else f"audit entries {first} to {last} are missing"
    )
