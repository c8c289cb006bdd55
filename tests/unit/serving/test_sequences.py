"""Sequences of a recurrent model: opened, kept, dropped, and ended with their release."""

import numpy as np
import pytest

from shoal.agent.serving.engine import Engine
from shoal.agent.serving.sequences import BYTES, IDLE_S, MOST, SequenceError, Sequences, Step
from shoal.errors import ConflictError, InputError
from shoal.signature import Signature, State
from shoal.tensors import Named
from tensor_models import engine_of, tensor

SIGNATURE = Signature(
    inputs=[tensor("x", "FP32", [1]), tensor("h", "INT32", ["K"]), tensor("s", "BYTES", [1])],
    outputs=[tensor("hn", "INT32", ["K"]), tensor("sn", "BYTES", [1])],
    states=[
        State(taken="h", given="hn", shape=[2], initial=3),
        State(taken="s", given="sn", shape=[1]),
    ],
)
OLD, NEW = engine_of(SIGNATURE), engine_of(SIGNATURE, version=2)


class Stream:
    """The sequences of a model on a clock of their own."""

    def __init__(self) -> None:
        self.sequences, self.now = Sequences(), 0.0

    def step(
        self, name: int | str, engine: Engine = OLD, *, start: bool = False, end: bool = False,
        size: int = 2, loaded: bool = True,
    ) -> Named:  # fmt: skip
        """Run a step that adds one; the states it was given."""
        step = Step(name, start, end)
        engine = self.sequences.engine_of(step, engine)
        states = self.sequences.begin(step, engine, self.now)
        after = {"h": np.resize(states["h"] + 1, size), "s": states["s"]}
        self.sequences.keep(step, engine, after, self.now, loaded=loaded)
        return states


def test_a_sequence_begins_with_the_initial_states_and_goes_on_with_its_own() -> None:
    stream = Stream()
    first = stream.step("a", start=True)
    assert (first["h"].dtype, first["h"].tolist(), first["s"].tolist()) == (np.int32, [3, 3], [""])
    stream.step("b", start=True)
    assert stream.step("a")["h"].tolist() == [4, 4]
    assert stream.step("a")["h"].tolist() == [5, 5]
    assert stream.step("b")["h"].tolist() == [4, 4]
    assert stream.step("a", start=True)["h"].tolist() == [3, 3]
    assert len(stream.sequences) == 2


def test_a_number_and_its_text_are_two_sequences() -> None:
    stream = Stream()
    stream.step(7, start=True)
    with pytest.raises(InputError, match="unknown sequence '7'; send sequence_start"):
        stream.step("7")


def test_after_its_last_step_a_sequence_is_unknown() -> None:
    stream = Stream()
    stream.step("a", start=True, end=True)
    with pytest.raises(InputError, match="unknown"):
        stream.step("a")
    assert len(stream.sequences) == 0


def test_a_sequence_without_a_step_for_a_minute_ends() -> None:
    stream = Stream()
    stream.step("a", start=True)
    stream.now = IDLE_S
    stream.step("a")
    stream.now = 2 * IDLE_S + 1
    with pytest.raises(InputError, match="unknown"):
        stream.step("a")
    assert stream.sequences.dropped == 0


def test_the_least_recently_used_sequence_makes_room_and_is_counted() -> None:
    stream = Stream()
    for i in range(1, MOST + 1):
        stream.step(i, start=True)
    stream.step(1)
    stream.step("one more", start=True)
    assert (len(stream.sequences), stream.sequences.dropped) == (MOST, 1)
    stream.step(1)
    with pytest.raises(InputError, match="unknown sequence 2"):
        stream.step(2)


def test_states_have_a_limit_in_bytes() -> None:
    stream, third = Stream(), BYTES // 3 // 4
    for name in "abcd":
        stream.step(name, start=True, size=third)
    assert (len(stream.sequences), stream.sequences.dropped) == (2, 2)
    with pytest.raises(InputError, match=f"{BYTES} are kept"):
        stream.step("d", size=BYTES // 4 + 1)
    with pytest.raises(InputError, match="unknown"):
        stream.step("d")
    assert stream.step("c")["h"].size == third


def test_a_step_waits_for_the_one_before_and_a_failed_one_changes_nothing() -> None:
    stream = Stream()
    stream.step("a", start=True)
    step = Step("a", False, False)
    before = stream.sequences.begin(step, OLD, 0.0)
    with pytest.raises(ConflictError, match="wait for its response"):
        stream.step("a")
    stream.sequences.abandon(step)
    assert stream.step("a")["h"].tolist() == before["h"].tolist()


def test_a_sequence_stays_on_its_release_until_that_is_unloaded() -> None:
    stream = Stream()
    stream.step("a", start=True)
    assert stream.sequences.engine_of(Step("a", False, False), NEW) is OLD
    assert stream.sequences.engine_of(Step("a", True, False), NEW) is NEW
    stream.step("a", NEW)
    stream.sequences.close(OLD)
    with pytest.raises(SequenceError, match="the release has changed; start the sequence again"):
        stream.step("a", NEW)
    stream.step("a", NEW, start=True)
    assert stream.step("a", NEW)["h"].tolist() == [4, 4]


def test_a_release_that_is_unloaded_during_a_step_ends_the_sequence() -> None:
    stream = Stream()
    stream.step("a", start=True, loaded=False)
    with pytest.raises(SequenceError):
        stream.step("a", NEW)


def test_what_is_remembered_of_ended_sequences_is_bounded() -> None:
    stream = Stream()
    for i in range(1, 3 * MOST):
        stream.step(i, start=True, loaded=False)
    with pytest.raises(InputError, match="unknown"):
        stream.step(1, NEW)
    with pytest.raises(SequenceError):
        stream.step(3 * MOST - 1, NEW)
