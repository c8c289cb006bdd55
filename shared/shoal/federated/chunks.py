"""Chunked transfer of an update over MQTT, robust to duplicate, late and corrupt chunks.

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

#: Bytes of a chunk: the wire's LIMIT["round"] less the envelope.
LARGEST = 960 * 1024
_CHECK = 16

Natural = Annotated[int, msgspec.Meta(ge=0, le=2**31)]


class Chunk(msgspec.Struct, frozen=True, kw_only=True):
    """One piece of a payload.

    digest   SHA-256 of the whole payload, which identifies it
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
    """Split into pieces of `size` bytes, the last one shorter; at least one piece."""
    digest = hashlib.sha256(payload).digest()
    total = max(1, -(-len(payload) // size))
    parts = [payload[i * size : (i + 1) * size] for i in range(total)]
    return [chunk_of(digest, i, total, len(payload), part) for i, part in enumerate(parts)]


def chunk_of(digest: bytes, index: int, total: int, length: int, data: bytes) -> Chunk:
    """A piece of a payload that is not in memory as a whole; see Chunk."""
    check = _check(digest, index, data)
    return Chunk(digest=digest, index=index, total=total, length=length, check=check, data=data)


class Assembly:
    """Reassembly of one device's payload.

    most   largest payload in bytes; a longer one raises InputError
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._first: Chunk | None = None
        self._parts: dict[int, bytes] = {}
        self._held = 0

    def take(self, chunk: Chunk) -> str:
        """Add a piece; return why it was ignored ("corrupt", "foreign", "twice"), or ""."""
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
        if self._held + len(chunk.data) > chunk.length:
            return "foreign"
        self._first, self._parts[chunk.index] = first, chunk.data
        self._held += len(chunk.data)
        return ""

    def missing(self) -> list[int]:
        """Indexes of missing pieces; empty before the first piece."""
        total = self._first.total if self._first else 0
        return [i for i in range(total) if i not in self._parts]

    def complete(self) -> bool:
        return self._first is not None and len(self._parts) == self._first.total

    def payload(self) -> bytes:
        """The payload. ConflictError before it is complete; InputError when its hash is wrong."""
        if self._first is None or not self.complete():
            raise ConflictError(f"pieces {self.missing()} are missing", "wait for them")
        whole = b"".join(self._parts[i] for i in range(self._first.total))
        if len(whole) != self._first.length or (
            hashlib.sha256(whole).digest() != self._first.digest
        ):
            raise InputError("the pieces do not match the payload's hash", "request it again")
        return whole


def _check(digest: bytes, index: int, data: bytes) -> bytes:
    return hashlib.sha256(digest + index.to_bytes(8) + data).digest()[:_CHECK]
