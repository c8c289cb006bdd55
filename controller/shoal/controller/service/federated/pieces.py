"""An update that comes in pieces, on disk: whatever arrives twice, late, broken or of another."""

from typing import NamedTuple

import msgspec

from shoal.controller.service.federated.live import Live
from shoal.errors import InputError
from shoal.federated.chunks import Assembly, Chunk

#: Pieces that one update may come in.
MOST_PIECES = 4_096
#: Beside what an update of the model's size can need.
_AROUND = 65_536


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
    """Keep one piece. InputError when it is of no payload that this model can have."""
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
    try:
        return whole.payload()
    except InputError:
        drop(live, device)
        raise


def _head(live: Live, device: str) -> Head | None:
    data = live.files.get(live.id, "head", device)
    return None if data is None else msgspec.msgpack.decode(data, type=Head)


def _kind(index: int) -> str:
    return f"piece-{index}"


def _most(live: Live) -> int:
    """Bytes of any update and any control variate of this model, however it is compressed; and of
    any site's sum."""
    if live.task.plan.gateways:
        return 16 * live.size + 4 * _AROUND
    return 12 * live.size + _AROUND
