"""What a strategy carries from round to round, as a blob: the same bytes for the same numbers."""

import msgspec
import numpy as np
from sqlalchemy import select, update

from shoal.controller.federated.updates import F64, Server
from shoal.controller.host.context import Context
from shoal.controller.store.tables import federated_round, federated_task

#: Newest rounds of a task whose memory stays, for a task that goes on from before a poisoned one.
KEPT = 20


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


def forget_old(ctx: Context, task: str, number: int) -> None:
    """Of rounds so far before `number`: a task that goes on from one of them begins without.

    A strategy may remember several times the model for every round.
    """
    table = federated_round
    old = (table.c.task == task) & (table.c.number <= number - KEPT) & (table.c.memory != "")
    ended = (table.c.task == task) & (table.c.ended_at > 0)
    with ctx.store.write() as db:
        db.execute(update(table).where(ended, table.c.old_memory != "").values(old_memory=""))
        names = set(db.scalars(select(table.c.memory).where(old)))
        if not names:
            return
        db.execute(update(table).where(old).values(memory=""))
        for column in (table.c.memory, table.c.old_memory, federated_task.c.memory):
            names -= set(db.scalars(select(column).where(column.in_(names))))
    for name in names:
        ctx.blobs.remove(name)
