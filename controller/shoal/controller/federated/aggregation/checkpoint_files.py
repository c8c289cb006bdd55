"""theta and the strategy's state of a task, as blobs, read and written a slice at a time.

theta    float32, little-endian
state    msgpack {"rounds": n, "vectors": {name: float64 (P,), little-endian}}
"""

import mmap
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import msgspec
import numpy as np
from sqlalchemy import select, update

from shoal.controller.federated.rounds.active_round import ActiveRound
from shoal.controller.federated.updates import F64, Server
from shoal.controller.host.context import Context
from shoal.controller.store.tables import federated_round, federated_task
from shoal.errors import InputError
from shoal.params import F32

#: Newest rounds of a task whose strategy state is kept, to resume before a poisoned round.
KEPT_STATES = 20
#: Vectors of a strategy's state, at most: what the head of a small msgpack map can say.
MOST_VECTORS = 15


class StrategyState(msgspec.Struct, frozen=True, kw_only=True):
    """rounds: aggregated so far; vectors: the strategy's own, float64 (P,), by name."""

    rounds: int = 0
    vectors: dict[str, F64] = {}


class _Stored(msgspec.Struct, frozen=True, kw_only=True):
    rounds: int
    vectors: dict[str, memoryview]


def load_state(ctx: Context, sha256: str) -> StrategyState:
    """Empty for "": before the first round. Vectors are read from the file as far as they are used.
    AbsentError when the blob is missing."""
    if not sha256:
        return StrategyState()
    with ctx.blobs.path(sha256).open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    stored = msgspec.msgpack.decode(memoryview(mapped), type=_Stored)
    vectors = {name: np.frombuffer(data, "<f8") for name, data in stored.vectors.items()}
    return StrategyState(rounds=stored.rounds, vectors=vectors)


class CheckpointFiles:
    """The server's state before a round, and after it: `write` slice by slice, then `finish`."""

    def __init__(self, ctx: Context, active: ActiveRound) -> None:
        self._ctx, self._active = ctx, active
        self._drafts = ExitStack()
        self._rounds, self._starts = 0, dict[str, int]()

    def __enter__(self) -> Self:
        draft = self._active.files.draft
        self._theta = self._drafts.enter_context(draft(self._active.id, "draft-theta"))
        self._state = self._drafts.enter_context(draft(self._active.id, "draft-state"))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool | None:
        return self._drafts.__exit__(kind, error, trace)

    def before(self, columns: slice) -> Server:
        """These parameters of the server's state before the round."""
        state = load_state(self._ctx, self._active.old_memory)
        return Server(
            theta=_read_floats(self._ctx, self._active.theta, columns),
            rounds=state.rounds,
            memory={name: vector[columns].copy() for name, vector in state.vectors.items()},
        )

    def write(self, columns: slice, after: Server) -> None:
        """The same parameters after it; slices in any order, each once."""
        if not self._starts and not self._state.tell():
            self._write_head(after)
        if set(after.memory) != set(self._starts):
            raise InputError("a strategy whose state has other vectors in another slice")
        _write_at(self._theta, 4 * columns.start, after.theta.astype("<f4"))
        for name, start in self._starts.items():
            _write_at(self._state, start + 8 * columns.start, after.memory[name].astype("<f8"))

    def finish(self) -> tuple[str, str]:
        """SHA-256 of the blobs of theta and of the state: the same for the same numbers."""
        blobs = []
        for file in (self._theta, self._state):
            file.flush()
            blobs.append(self._ctx.blobs.put_file(Path(file.name)).sha256)
        return blobs[0], blobs[1]

    def _write_head(self, after: Server) -> None:
        """The state up to its vectors, and the place of each."""
        if len(after.memory) > MOST_VECTORS:
            raise InputError(f"a strategy with more than {MOST_VECTORS} vectors of state")
        head = msgspec.msgpack.encode({"rounds": after.rounds, "vectors": {}})
        at = self._state.write(head[:-1] + bytes([head[-1] | len(after.memory)]))
        length = 8 * self._active.size
        for name in sorted(after.memory):
            self._state.seek(at)
            at += self._state.write(msgspec.msgpack.encode(name))
            at += self._state.write(b"\xc6" + length.to_bytes(4))
            self._starts[name] = at
            at += length


def _read_floats(ctx: Context, sha256: str, columns: slice) -> F32:
    count = columns.stop - columns.start
    return np.fromfile(ctx.blobs.path(sha256), "<f4", count, offset=4 * columns.start)


def _write_at(file: BinaryIO, start: int, values: F32 | F64) -> None:
    file.seek(start)
    file.write(values.data)


def forget_old_states(ctx: Context, task: str, number: int) -> None:
    """Delete strategy states of rounds KEPT_STATES and more before `number`.

    A state may be several times the model's size. A task that resumes from such a round starts
    with an empty one.
    """
    table = federated_round
    old = (table.c.task == task) & (table.c.number <= number - KEPT_STATES) & (table.c.memory != "")
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
