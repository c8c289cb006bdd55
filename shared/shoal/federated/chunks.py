"""An update in pieces small enough for MQTT, put together whatever arrives twice, late or broken.

>>> pieces = cut(b"0123456789", 4)
>>> whole = Assembly(most=100)
>>> [whole.take(piece) for piece in (pieces[2], pieces[0], pieces[0], pieces[1])]
['', '', 'twice', '']
>>> whole.payload()
b'0123456789'
"""

import hashlib
from typing import Annotated

import msgspec

from shoal.errors import ConflictError, InputError

#: Of a message on the wire: LIMIT["round"] less what is around it.
LARGEST = 960 * 1024
_CHECK = 16

Natural = Annotated[int, msgspec.Meta(ge=0, le=2**31)]


class Chunk(msgspec.Struct, frozen=True, kw_only=True):
    """One piece.

    digest   SHA-256 of the whole payload: its name
    index    0, 1, ... of `total`
    length   of the whole payload, in bytes
    check    first 16 bytes of SHA-256 over digest, index and data
    """

    digest: bytes
    index: Natural
    total: Natural
    length: Natural
    check: bytes
    data: bytes


def cut(payload: bytes, size: int = LARGEST) -> list[Chunk]:
    """Pieces of `size` bytes, the last one shorter; one empty piece of an empty payload."""
    digest = hashlib.sha256(payload).digest()
    total = max(1, -(-len(payload) // size))
    parts = [payload[i * size : (i + 1) * size] for i in range(total)]
    return [chunk_of(digest, i, total, len(payload), part) for i, part in enumerate(parts)]


def chunk_of(digest: bytes, index: int, total: int, length: int, data: bytes) -> Chunk:
    """One piece of a payload that is not in memory as a whole; see Chunk."""
    check = _check(digest, index, data)
    return Chunk(digest=digest, index=index, total=total, length=length, check=check, data=data)


class Assembly:
    """Pieces of one device's payload.

    most   bytes that a payload may have: InputError, and nothing is kept, beyond it
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._first: Chunk | None = None
        self._parts: dict[int, bytes] = {}

    def take(self, chunk: Chunk) -> str:
        """Keep a piece; why it was ignored, or "" when it is in: corrupt, foreign, twice."""
        if chunk.length > self._most or chunk.total > max(1, chunk.length):
            raise InputError(
                f"a payload of {chunk.length} bytes in {chunk.total} pieces, {self._most} allowed",
                "another model's?",
            )
        if chunk.check != _check(chunk.digest, chunk.index, chunk.data):
            return "corrupt"
        first = self._first or chunk
        same = (first.digest, first.total, first.length) == (
            chunk.digest,
            chunk.total,
            chunk.length,
        )
        if not same or chunk.index >= chunk.total:
            return "foreign"
        if chunk.index in self._parts:
            return "twice"
        held = sum(map(len, self._parts.values())) + len(chunk.data)
        if held > chunk.length:
            return "foreign"
        self._first, self._parts[chunk.index] = first, chunk.data
        return ""

    def missing(self) -> list[int]:
        """Pieces to ask for again; empty before the first one came."""
        total = self._first.total if self._first else 0
        return [i for i in range(total) if i not in self._parts]

    def complete(self) -> bool:
        return self._first is not None and not self.missing()

    def payload(self) -> bytes:
        """ConflictError before it is complete; InputError when it is not what its name says."""
        if self._first is None or not self.complete():
            raise ConflictError(f"pieces {self.missing()} are missing", "wait for them")
        whole = b"".join(self._parts[i] for i in range(self._first.total))
        if len(whole) != self._first.length or (
            hashlib.sha256(whole).digest() != self._first.digest
        ):
            raise InputError("the pieces are not the payload that they say", "ask for it again")
        return whole


def _check(digest: bytes, index: int, data: bytes) -> bytes:
    return hashlib.sha256(digest + index.to_bytes(8) + data).digest()[:_CHECK]
