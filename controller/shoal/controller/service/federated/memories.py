"""What a strategy carries from round to round, as a blob: the same bytes for the same numbers."""

import msgspec
import numpy as np

from shoal.controller.federated.updates import F64, Server
from shoal.controller.service.context import Context


class Memory(msgspec.Struct, frozen=True, kw_only=True):
    """rounds: that were aggregated; vectors: the strategy's own, float64 (P,), by name."""

    rounds: int = 0
    vectors: dict[str, F64] = {}


class _Stored(msgspec.Struct, frozen=True, kw_only=True):
    rounds: int
    vectors: dict[str, bytes]


def load(ctx: Context, sha256: str) -> Memory:
    """An empty one for "": before the first round. AbsentError when the blob is gone."""
    if not sha256:
        return Memory()
    stored = msgspec.msgpack.decode(ctx.blobs.read(sha256), type=_Stored)
    vectors = {name: np.frombuffer(data, "<f8") for name, data in stored.vectors.items()}
    return Memory(rounds=stored.rounds, vectors=vectors)


def store(ctx: Context, server: Server) -> str:
    """Its name."""
    vectors = {name: server.memory[name].astype("<f8").tobytes() for name in sorted(server.memory)}
    stored = _Stored(rounds=server.rounds, vectors=vectors)
    return ctx.blobs.put_bytes(msgspec.msgpack.encode(stored)).sha256
