"""An update that comes in pieces, on disk: whatever arrives twice, late, broken or of another."""

from typing import NamedTuple

import msgspec

from shoal.controller.federated.rounds.active_round import Live
from shoal.errors import ConflictError, InputError
from shoal.federated.chunks import Assembly, Chunk

#: Pieces that one update may come in.
MOST_PIECES = 4_096
#: Beside what an update of the model's size can need.
_AROUND = 65_536
#: Of a piece's file beside its data, at most.
_HEAD = 192


class Head(NamedTuple):
    """Of which payload the pieces are that are kept."""

    digest: bytes
    total: int
    length: int


class Kept(NamedTuple):
    """ignored: why a piece was not kept; payload: the whole, once the last piece is in."""

    ignored: str
    payload: bytes | None = None


def keep(live: Live, device: str, chunk: Chunk) -> Kept:
    """Keep one piece. InputError when it is of no payload that this model can have, or the pieces
    are more than the payload: then none of the device's is kept."""
    try:
        return _keep(live, device, chunk)
    except (InputError, ConflictError) as error:
        drop(live, device)
        raise InputError(error.message, error.hint) from error


def _keep(live: Live, device: str, chunk: Chunk) -> Kept:
    alone = Assembly(_most(live))
    if chunk.total > MOST_PIECES:
        raise InputError(f"an update in {chunk.total} pieces, {MOST_PIECES} allowed")
    ignored = alone.take(chunk)
    if ignored or chunk.total == 1:
        return Kept(ignored, None if ignored else alone.payload())
    head = Head(chunk.digest, chunk.total, chunk.length)
    before = _head(live, device)
    if before != head:
        if before is not None and chunk.index:
            return Kept("foreign")
        _begin(live, device, head)  # it trained again: what it began to send before is void
    kind, lacking = _kind(chunk.index), missing(live, device)
    if chunk.index in lacking:
        _check_room(live, device, head, chunk)
        live.files.put(live.id, kind, device, msgspec.msgpack.encode(chunk))
        lacking.remove(chunk.index)
    elif lacking:
        return Kept("twice")
    # All are here, though the whole may not be: the controller was killed in between.
    return Kept("", None if lacking else _whole(live, device, head))


def missing(live: Live, device: str) -> list[int]:
    """Pieces to ask for; empty before the first one came, and when all are there."""
    head = _head(live, device)
    total = head.total if head else 0
    return [i for i in range(total) if not live.files.has(live.id, _kind(i), device)]


def drop(live: Live, device: str) -> None:
    """What came in pieces is whole elsewhere, or void."""
    head = _head(live, device)
    for index in range(head.total if head else 0):
        live.files.drop(live.id, _kind(index), device)
    live.files.drop(live.id, "head", device)


def _begin(live: Live, device: str, head: Head) -> None:
    drop(live, device)
    live.files.put(live.id, "head", device, msgspec.msgpack.encode(head))


def _whole(live: Live, device: str, head: Head) -> bytes:
    whole = Assembly(_most(live))
    for index in range(head.total):
        data = live.files.get(live.id, _kind(index), device) or b""
        whole.take(msgspec.msgpack.decode(data, type=Chunk))
    return whole.payload()


def _check_room(live: Live, device: str, head: Head, chunk: Chunk) -> None:
    """InputError when the pieces that are kept would be more than the payload with this one."""
    held = sum(live.files.size(live.id, _kind(i), device) for i in range(head.total))
    if held + len(chunk.data) > head.length + _HEAD * head.total:
        raise InputError(f"pieces of more than the {head.length} bytes that they say")


def _head(live: Live, device: str) -> Head | None:
    data = live.files.get(live.id, "head", device)
    return None if data is None else msgspec.msgpack.decode(data, type=Head)


def _kind(index: int) -> str:
    return f"piece-{index}"


def _most(live: Live) -> int:
    """Bytes of any update of this model under the round's plan, however it is compressed: masked
    numbers, or top-k of everything; twice with control variates; of any site's sum with gateways.
    """
    if live.task.plan.gateways:
        return 16 * live.size + 4 * _AROUND
    if live.plan.secure is not None:
        return 4 * live.size + _AROUND
    return (12 if live.plan.learning.terms.get("shift") else 6) * live.size + _AROUND
