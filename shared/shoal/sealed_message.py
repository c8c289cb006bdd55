"""Messages that go by hand where no broker is in reach: sealed parcels in a folder, on a stick.

A parcel holds the very messages that would have gone over MQTT, and who sealed it stands for the
connection's certificate: the device for what goes up, the controller for what comes down. What a
message must be signed with besides (an assignment, by the director) it still must.

    body       MessagePack of a MessageBatch
    signature  ECDSA over SHA-256 of `signed_bytes`, by the key of `certificate`
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Annotated, TypeVar

import msgspec

from shoal.errors import BundleError, OversizeError
from shoal.validation_errors import decode_errors_as

UP, DOWN = "up", "down"
#: Bytes of one sealed parcel; letters in it; bytes of letters from which the next one is begun.
LIMIT, MAX_MESSAGES, BATCH_BYTES = 8 << 20, 2_000, 4 << 20
_PEM_LIMIT, _SIGNATURE_LIMIT, _ROOTS = 16_384, 1_024, 64
_T = TypeVar("_T")


class BatchMessage(msgspec.Struct, frozen=True, array_like=True):
    """One message: kind of its topic ("window", "assignment", ...), and its bytes on the wire."""

    kind: str
    payload: bytes


class MessageBatch(msgspec.Struct, frozen=True, kw_only=True, tag="parcel"):
    """What one device says, or is told.

    device        whom it is from, going up; whom it is for, coming down
    made_s        Unix seconds, by the clock of who sealed it
    trip          random name of the export that it belongs to
    part          1, 2, 3, ... of the trip
    parts         in the last part, how many there are; 0 before
    roots         coming down: the director's root metadata, each signed by the one before
    """

    device: str
    made_s: Annotated[float, msgspec.Meta(ge=0, le=2**33)]
    trip: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{8}$")]
    letters: Annotated[list[BatchMessage], msgspec.Meta(max_length=MAX_MESSAGES)]
    part: Annotated[int, msgspec.Meta(ge=1, le=100_000)] = 1
    parts: Annotated[int, msgspec.Meta(ge=0, le=100_000)] = 1
    roots: Annotated[list[bytes], msgspec.Meta(max_length=_ROOTS)] = []

    @property
    def name(self) -> str:
        """File name, different for every parcel, that every file system takes."""
        return f"{int(self.made_s):011d}-{self.trip}-{self.part:05d}.parcel"


class SealedMessage(msgspec.Struct, frozen=True, kw_only=True, tag="sealed-parcel"):
    """A parcel as it travels. certificate: PEM, the chain of who sealed it."""

    body: bytes
    certificate: str
    signature: bytes


def signed_bytes(way: str, body: bytes) -> bytes:
    """What the seal is over: a parcel that goes up is none that comes down."""
    return f"shoal parcel v1 {way}\n".encode() + body


def seal(parcel: MessageBatch, way: str, certificate: str, sign: Callable[[bytes], bytes]) -> bytes:
    """The bytes that travel. sign: message -> signature, by the certificate's key."""
    body = msgspec.msgpack.encode(parcel)
    sealed = SealedMessage(
        body=body, certificate=certificate, signature=sign(signed_bytes(way, body))
    )
    return msgspec.msgpack.encode(sealed)


def unseal(data: bytes) -> SealedMessage:
    """Take a sealed parcel apart; whose it is has still to be proved. BundleError if none."""
    if len(data) > LIMIT:
        raise OversizeError("parcel", len(data), LIMIT)
    sealed = _decode(data, SealedMessage)
    if len(sealed.certificate) > _PEM_LIMIT or len(sealed.signature) > _SIGNATURE_LIMIT:
        raise BundleError("parcel: its seal is too long")
    return sealed


def decode_batch(body: bytes) -> MessageBatch:
    """The parcel in a body whose seal was verified; BundleError if it is none."""
    return _decode(body, MessageBatch)


def batches(letters: Iterable[BatchMessage]) -> Iterator[list[BatchMessage]]:
    """Letters, in order, in batches that fit a parcel each; one empty portion for none.

    >>> [len(some) for some in batches([BatchMessage("window", b"x" * (BATCH_BYTES // 2))] * 5)]
    [2, 2, 1]
    """
    some: list[BatchMessage] = []
    size, given = 0, False
    for letter in letters:
        if some and (size + len(letter.payload) > BATCH_BYTES or len(some) == MAX_MESSAGES):
            yield some
            some, size, given = [], 0, True
        some.append(letter)
        size += len(letter.payload)
    if some or not given:
        yield some


def _decode(data: bytes, kind: type[_T]) -> _T:
    def damaged(cause: Exception) -> BundleError:
        return BundleError(
            f"parcel: {cause}", "it was not copied whole, or is none: export it again"
        )

    with decode_errors_as(damaged):
        return msgspec.msgpack.decode(data, type=kind)
