"""Client updates of a round, on disk: assembled from chunks, validated, decoded.

Chunks may arrive twice, late, corrupt, or for another payload.
"""

from typing import NamedTuple

import msgspec

from shoal.controller.federated.aggregation.kept_updates import (
    has_control,
    is_sliced,
    slices,
    square_in_slices,
)
from shoal.controller.federated.planning import plans
from shoal.controller.federated.rounds.active_round import ActiveRound, IncomingUpdate
from shoal.controller.federated.updates import Update, check
from shoal.errors import ConflictError, InputError, WireError
from shoal.federated.chunks import Assembly, Chunk
from shoal.federated.compression import PackedUpdate
from shoal.federated.messages import Contribution
from shoal.federated.sums import LARGEST

#: Largest number of chunks of one update.
MAX_CHUNKS = 4_096
#: Bytes of a payload beside its numbers, at most.
_OVERHEAD = 65_536
#: Bytes of a chunk's file beside its data, at most.
_CHUNK_OVERHEAD = 192


class Head(NamedTuple):
    """Identity of the payload that the kept chunks belong to."""

    digest: bytes
    total: int
    length: int


class Kept(NamedTuple):
    """ignored: why a chunk was not kept; payload: all of it, after the last chunk."""

    ignored: str
    payload: bytes | None = None


def keep_chunk(active: ActiveRound, device: str, chunk: Chunk) -> Kept:
    """Keep one chunk. InputError, and all of the device's chunks are dropped, if its payload cannot
    be an update of this model or the chunks exceed the payload."""
    try:
        return _keep(active, device, chunk)
    except (InputError, ConflictError) as error:
        drop_chunks(active, device)
        raise InputError(error.message, error.hint) from error


def missing_chunks(active: ActiveRound, device: str) -> list[int]:
    """Indexes of the chunks to request again; empty before the first one and when all arrived."""
    incoming = _incoming(active, device)
    return sorted(incoming.missing) if incoming else []


def drop_chunks(active: ActiveRound, device: str) -> None:
    """Delete a device's chunks: the whole is kept elsewhere, or void."""
    incoming = _incoming(active, device)
    active.incoming[device] = None
    if incoming is None:
        return
    for index in set(range(incoming.payload[1])) - incoming.missing:
        active.files.drop(active.id, _kind(index), device)
    active.files.drop(active.id, "head", device)


def decode(active: ActiveRound, device: str, payload: bytes) -> Contribution:
    """Decode an update and check it against the model's size and the range of a sum.

    A gateway's site sum is checked in `gateways`. InputError or WireError for an invalid one.
    """
    try:
        found = msgspec.msgpack.decode(payload, type=Contribution)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise WireError(f"an undecodable update: {error}") from error
    if found.site:
        return found
    if active.plan.secure is None:
        _check(active, device, found)
    elif len(found.update) != 4 * (active.size + 1):
        raise InputError(f"a masked update of {len(found.update)} bytes", "another model's?")
    return found


def _check(active: ActiveRound, device: str, found: Contribution) -> None:
    """InputError or WireError for an update that is none of this model, or that exceeds its share
    of the range in which sums are exact."""
    size, strategy = active.size, plans.strategy_for(active.task.plan)
    square = None
    if is_sliced(size):
        active.squares[device] = square = square_in_slices(found.update, size)
    delta = PackedUpdate(found.update, size)
    control = PackedUpdate(found.control, size) if has_control(active) else None
    for part in slices(size):
        update = Update(
            device=device,
            delta=delta.part(part.start, part.stop),
            examples=active.limit_rows(device, found.examples),
            loss=found.loss,
            control=control.part(part.start, part.stop) if control else None,
            behind=active.record.behind(device),
            square=square,
        )
        check(update, part.stop - part.start)
        reach = strategy.reach(update)
        if not reach <= LARGEST / len(active.record.marks) - 1:
            raise InputError(f"an update that reaches {reach:g}", "its training diverged")


def _keep(active: ActiveRound, device: str, chunk: Chunk) -> Kept:
    alone = Assembly(_max_bytes(active))
    if chunk.total > MAX_CHUNKS:
        raise InputError(f"an update in {chunk.total} pieces, {MAX_CHUNKS} allowed")
    ignored = alone.take(chunk)
    if ignored or chunk.total == 1:
        return Kept(ignored, None if ignored else alone.payload())
    head = Head(chunk.digest, chunk.total, chunk.length)
    incoming = _incoming(active, device)
    if incoming is None or incoming.payload != head:
        if incoming is not None and chunk.index:
            return Kept("foreign")
        drop_chunks(active, device)  # the device trained again: its earlier chunks are void
        active.files.put(active.id, "head", device, msgspec.msgpack.encode(head))
        incoming = active.incoming[device] = IncomingUpdate(head)
    if chunk.index in incoming.missing:
        data = msgspec.msgpack.encode(chunk)
        if incoming.held + len(chunk.data) > head.length + _CHUNK_OVERHEAD * head.total:
            raise InputError(f"pieces of more than the {head.length} bytes they declare")
        active.files.put(active.id, _kind(chunk.index), device, data)
        incoming.take(chunk.index, len(data))
    elif incoming.missing:
        return Kept("twice")
    # All chunks may be here without the whole update: the controller was killed in between.
    return Kept("", None if incoming.missing else _assemble(active, device, head))


def _assemble(active: ActiveRound, device: str, head: Head) -> bytes:
    whole = Assembly(_max_bytes(active))
    for index in range(head.total):
        data = active.files.get(active.id, _kind(index), device) or b""
        whole.take(msgspec.msgpack.decode(data, type=Chunk))
    return whole.payload()


def _incoming(active: ActiveRound, device: str) -> IncomingUpdate | None:
    """Kept in memory, so that a chunk costs the same however many there are."""
    if device not in active.incoming:
        active.incoming[device] = _on_disk(active, device)
    return active.incoming[device]


def _on_disk(active: ActiveRound, device: str) -> IncomingUpdate | None:
    data = active.files.get(active.id, "head", device)
    if data is None:
        return None
    found = IncomingUpdate(msgspec.msgpack.decode(data, type=Head))
    for index in tuple(found.missing):
        if active.files.has(active.id, _kind(index), device):
            found.take(index, active.files.size(active.id, _kind(index), device))
    return found


def _kind(index: int) -> str:
    return f"piece-{index}"


def _max_bytes(active: ActiveRound) -> int:
    """Largest payload of this model under the round's plan, however it is compressed: masked
    numbers, or top-k of everything; twice with control variates; of any site's sum with gateways.
    """
    if active.task.plan.gateways:
        return 16 * active.size + 4 * _OVERHEAD
    if active.plan.secure is not None:
        return 4 * active.size + _OVERHEAD
    return (12 if active.plan.learning.terms.get("shift") else 6) * active.size + _OVERHEAD
