"""Sealed messages: batches of MQTT messages in signed files, for devices without a network.

A batch holds the same messages that MQTT would carry. Its signature replaces the TLS client
certificate of the connection: the device signs upward batches, the controller downward ones.
Signatures inside of messages (the director's, on an assignment) are required as ever.

    body       MessagePack of a MessageBatch
    signature  ECDSA over SHA-256 of `signed_bytes`, by the key of `certificate`
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Annotated, TypeVar

import msgspec

from shoal.errors import BundleError, OversizeError
from shoal.validation_errors import decode_errors_as

UP, DOWN = "up", "down"
#: Bytes of a sealed batch; messages in it; payload bytes after which the next batch begins.
LIMIT, MAX_MESSAGES, BATCH_BYTES = 8 << 20, 2_000, 4 << 20
_PEM_LIMIT, _SIGNATURE_LIMIT, _ROOTS = 16_384, 1_024, 64
_T = TypeVar("_T")


class BatchMessage(msgspec.Struct, frozen=True, array_like=True):
    """One message: kind of its topic ("window", "assignment", ...) and its encoded bytes."""

    kind: str
    payload: bytes


class MessageBatch(msgspec.Struct, frozen=True, kw_only=True, tag="parcel"):
    """Messages from one device (upward) or to it (downward).

    device        sender of an upward batch, receiver of a downward one
    made_s        Unix seconds, by the sender's clock
    trip          random id of the export
    letters       the messages, in order
    part          1, 2, 3, ... within the export
    parts         number of parts, in the last one; 0 in the others
    roots         downward: root metadata of the director, each signed by its predecessor
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
        """Unique file name, valid on FAT."""
        return f"{int(self.made_s):011d}-{self.trip}-{self.part:05d}.parcel"


class SealedMessage(msgspec.Struct, frozen=True, kw_only=True, tag="sealed-parcel"):
    """An encoded batch and its signature. certificate: PEM chain of the signer."""

    body: bytes
    certificate: str
    signature: bytes


def signed_bytes(direction: str, body: bytes) -> bytes:
    """The signed bytes: they name the direction, so an upward batch is never valid downward."""
    return f"shoal parcel v1 {direction}\n".encode() + body


def seal(
    batch: MessageBatch, direction: str, certificate: str, sign: Callable[[bytes], bytes]
) -> bytes:
    """Encode and sign a batch. sign: message -> signature, by the certificate's key."""
    body = msgspec.msgpack.encode(batch)
    sealed = SealedMessage(
        body=body, certificate=certificate, signature=sign(signed_bytes(direction, body))
    )
    return msgspec.msgpack.encode(sealed)


def unseal(data: bytes) -> SealedMessage:
    """Decode a sealed batch without verifying its signature. Raises BundleError."""
    if len(data) > LIMIT:
        raise OversizeError("sealed messages", len(data), LIMIT)
    sealed = _decode(data, SealedMessage)
    if len(sealed.certificate) > _PEM_LIMIT or len(sealed.signature) > _SIGNATURE_LIMIT:
        raise BundleError("sealed messages: certificate or signature is too long")
    return sealed


def decode_batch(body: bytes) -> MessageBatch:
    """Decode the body of a verified sealed batch. Raises BundleError."""
    return _decode(body, MessageBatch)


def batches(messages: Iterable[BatchMessage]) -> Iterator[list[BatchMessage]]:
    """Split messages, in order, into lists that fit a batch each; one empty list for none.

    >>> [len(batch) for batch in batches([BatchMessage("window", b"x" * (BATCH_BYTES // 2))] * 5)]
    [2, 2, 1]
    """
    batch: list[BatchMessage] = []
    size, yielded = 0, False
    for message in messages:
        if batch and (size + len(message.payload) > BATCH_BYTES or len(batch) == MAX_MESSAGES):
            yield batch
            batch, size, yielded = [], 0, True
        batch.append(message)
        size += len(message.payload)
    if batch or not yielded:
        yield batch


def _decode(data: bytes, kind: type[_T]) -> _T:
    def damaged(cause: Exception) -> BundleError:
        return BundleError(
            f"sealed messages: {cause}", "the file was not copied whole: export it again"
        )

    with decode_errors_as(damaged):
        return msgspec.msgpack.decode(data, type=kind)
