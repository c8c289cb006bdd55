"""Sequences of a recurrent model: its states between the steps of a client's stream.

The client names a sequence and sends its steps one after the other; the states stay here, in
memory. A sequence ends with its last step, after IDLE_S without one, or as the oldest when there
are too many. It stays on the release that it began with, as long as that one is loaded.
Source: Triton's extension_sequence.md.
"""

from typing import NamedTuple

import numpy as np

from shoal.agent.serving.engine import Engine
from shoal.errors import ConflictError, InputError
from shoal.tensors import DTYPES, Array, Named

#: Sequences of one model, and bytes of their states; seconds without a step.
MOST, BYTES, IDLE_S = 64, 16 << 20, 60.0


class Step(NamedTuple):
    """One step of a sequence: the sequence's id, and whether it is its first or last one."""

    id: int | str
    start: bool
    end: bool


class SequenceError(ConflictError):
    """The release that a sequence began with is no longer loaded."""

    code = "sequence-ended"


class _Sequence(NamedTuple):
    engine: Engine
    states: Named
    last_s: float
    size: int


class Sequences:
    """The open sequences of one model, least recently used first. Times are monotonic seconds.

    dropped   sequences that were dropped because there were too many, or their states too large
    """

    def __init__(self) -> None:
        self._open: dict[int | str, _Sequence] = {}
        self._running: set[int | str] = set()
        self._changed: dict[int | str, None] = {}
        self.dropped = 0

    def __len__(self) -> int:
        return len(self._open)

    def engine_of(self, step: Step, current: Engine) -> Engine:
        """The release that the step is for: that of its sequence, or `current`."""
        found = None if step.start else self._open.get(step.id)
        return found.engine if found is not None else current

    def begin(self, step: Step, engine: Engine, now_s: float) -> Named:
        """States for a step, which `keep` or `abandon` must follow.

        InputError for a sequence that is not open, SequenceError when its release is gone,
        ConflictError while another step of it runs.
        """
        self.expire(now_s)
        if step.id in self._running:
            raise ConflictError(f"a step of sequence {step.id!r} runs; wait for its response")
        if step.start:
            states: Named = initial_states(engine)
        else:
            states = self._found(step, engine).states
        self._running.add(step.id)
        return states

    def keep(
        self, step: Step, engine: Engine, states: Named, now_s: float, *, loaded: bool
    ) -> None:
        """Store the states after a step, or drop them at the end; the oldest ones make room.

        InputError when they are too large to be kept.

        loaded   whether `engine` still is
        """
        self._running.discard(step.id)
        self._open.pop(step.id, None)
        self._changed.pop(step.id, None)
        if step.end:
            return
        if not loaded:
            self._note_change(step.id)
            return
        size = sum(array.nbytes for array in states.values())
        if size > BYTES:
            self.dropped += 1
            raise InputError(f"sequence {step.id!r}: states of {size} bytes, {BYTES} are kept")
        self._open[step.id] = _Sequence(engine, states, now_s, size)
        while len(self._open) > MOST or sum(one.size for one in self._open.values()) > BYTES:
            del self._open[next(iter(self._open))]
            self.dropped += 1

    def abandon(self, step: Step) -> None:
        """The step failed: its sequence is as it was before."""
        self._running.discard(step.id)

    def close(self, engine: Engine) -> None:
        """End the sequences of a release that is unloaded."""
        for key in [key for key, one in self._open.items() if one.engine is engine]:
            del self._open[key]
            self._note_change(key)

    def expire(self, now_s: float) -> None:
        """End the sequences that had no step for IDLE_S."""
        for key in [key for key, one in self._open.items() if now_s - one.last_s > IDLE_S]:
            del self._open[key]

    def _found(self, step: Step, engine: Engine) -> _Sequence:
        found = self._open.get(step.id)
        if found is not None and found.engine is engine:
            return found
        if found is not None or step.id in self._changed:
            raise SequenceError(
                f"sequence {step.id!r}: the release has changed", "start the sequence again"
            )
        raise InputError(f"unknown sequence {step.id!r}", "send sequence_start with its first step")

    def _note_change(self, key: int | str) -> None:
        self._changed[key] = None
        while len(self._changed) > MOST:
            del self._changed[next(iter(self._changed))]


def initial_states(engine: Engine) -> dict[str, Array]:
    """State inputs of a first step, by name."""
    inputs = engine.tensors[0]
    return {
        state.taken: np.full(state.shape, state.initial, DTYPES[inputs[state.taken].datatype])
        if inputs[state.taken].datatype != "BYTES"
        else np.full(state.shape, "", np.object_)
        for state in engine.signature.states
    }
