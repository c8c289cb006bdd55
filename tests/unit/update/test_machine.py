"""The update machine: every state has a way out, and nothing happens that is not in the table."""

import itertools

import msgspec
import pytest

from shoal.agent.installed.record import Record, Slot, State
from shoal.agent.update.machine import (
    CANCELABLE,
    RESTING,
    TERMINAL,
    TRANSITIONS,
    WORK,
    Effect,
    Event,
    Note,
    decide,
    on_start,
    step,
)
from shoal.errors import ConflictError
from shoal.orders import Order
from shoal.trust import removal

ORDER = Order(
    model="m",
    version=2,
    path="release/m/2/manifest.json",
    length=9,
    sha256="2" * 64,
    rollout="r-2",
    attempt=1,
)
REMOVAL = removal("m", rollout="u-1", attempt=1)
SAME_AGAIN = msgspec.structs.replace(ORDER, rollout="r-3")
OTHER = msgspec.structs.replace(
    ORDER, version=3, path="release/m/3/manifest.json", sha256="3" * 64, rollout="r-4"
)


def slot(name: str, version: int) -> Slot:
    return Slot(
        slot=name,
        model="m",
        release=f"m@{version}",
        path=f"release/m/{version}/manifest.json",
        sha256=f"{version}" * 64,
        variant="fp32",
        model_sha256="ab",
        counter=1,
    )


OLD, NEW = slot("a", 1), slot("b", 2)


def record(state: State, **fields: object) -> Record:
    base = {"order": ORDER, "serving": OLD, "trial": None if state in RESTING else NEW}
    return Record(model="m", state=state, **{**base, **fields})  # type: ignore[arg-type]


HAPPY = [
    (Event.ASSIGNED, State.QUEUED, Effect.CHECK),
    (Event.CHECKED, State.DOWNLOADING, Effect.DOWNLOAD),
    (Event.FETCHED, State.DOWNLOADED, Effect.VERIFY),
    (Event.VERIFIED, State.INSTALLING, Effect.INSTALL),
    (Event.INSTALLED, State.PROBING, Effect.PROBE),
    (Event.PASSED, State.ACTIVATING, Effect.ACTIVATE),
    (Event.ACTIVATED, State.OBSERVING, Effect.WATCH),
    (Event.HEALTHY, State.COMMITTING, Effect.COMMIT),
    (Event.COMMITTED, State.SUCCEEDED, Effect.CLEAN),
]


def test_a_whole_update_goes_through_every_state_and_swaps_the_slots() -> None:
    now = Record(model="m", serving=OLD)
    for event, state, effect in HAPPY:
        trial = NEW if event is Event.PASSED else None
        now, wanted = step(now, event, Note(order=ORDER, trial=trial, at_s=5.0))
        assert (now.state, wanted) == (state, effect)
    assert (now.serving, now.trial, now.spare) == (NEW, None, OLD)


def test_a_removal_ends_with_no_slot_at_all() -> None:
    now = record(State.SUCCEEDED, spare=slot("b", 0))
    for event, state, effect in (
        (Event.ASSIGNED, State.QUEUED, Effect.CHECK),
        (Event.REMOVAL, State.REMOVING, Effect.REMOVE),
        (Event.REMOVED, State.SUCCEEDED, Effect.CLEAN),
    ):
        now, wanted = step(now, event, Note(order=REMOVAL))
        assert (now.state, wanted) == (state, effect)
    assert (now.serving, now.trial, now.spare) == (None, None, None)
    assert decide(now, REMOVAL) is None
    assert decide(now, ORDER) is Event.ASSIGNED


def test_a_model_that_is_being_removed_serves_nothing() -> None:
    assert record(State.QUEUED, order=REMOVAL, trial=None).active == OLD
    assert record(State.REMOVING, order=REMOVAL, trial=None).active is None


def test_what_should_serve_is_the_trial_only_while_it_is_observed_or_committed() -> None:
    trying = {s for s in State if record(s, trial=NEW).active == NEW}
    assert trying == {State.OBSERVING, State.COMMITTING}


@pytest.mark.parametrize(("state", "event"), [*itertools.product(State, Event)])
def test_what_is_not_in_the_table_raises_and_changes_nothing(state: State, event: Event) -> None:
    before = record(state)
    copy = msgspec.structs.replace(before)
    if (state, event) in TRANSITIONS:
        after, _ = step(before, event, Note(order=ORDER))
        assert after.state is TRANSITIONS[state, event][0]
    else:
        with pytest.raises(ConflictError, match=event.name.lower()):
            step(before, event)
    assert before == copy


def test_every_state_but_idle_can_be_reached_and_every_working_one_left() -> None:
    reached = {after for after, _ in TRANSITIONS.values()}
    assert reached == set(State) - {State.IDLE}
    for state in WORK:
        assert {TRANSITIONS[k][0] for k in TRANSITIONS if k[0] is state} - {state}


def test_from_every_working_state_the_machine_can_come_to_rest() -> None:
    for state in WORK:
        seen, edge = {state}, [state]
        while edge:
            here = edge.pop()
            for (there, _), (after, _) in TRANSITIONS.items():
                if there is here and after not in seen:
                    seen.add(after)
                    edge.append(after)
        assert seen & TERMINAL


@pytest.mark.parametrize("state", sorted(CANCELABLE))
@pytest.mark.parametrize(
    ("event", "end"),
    [
        (Event.CANCEL, State.CANCELED),
        (Event.LATE, State.TIMED_OUT),
        (Event.BROKE, State.FAILED),
    ],
)
def test_until_it_is_activated_an_attempt_ends_without_touching_what_serves(
    state: State, event: Event, end: State
) -> None:
    after, effect = step(record(state), event, Note(cause="x", detail="y"))
    assert (after.state, effect) == (end, Effect.CLEAN)
    assert (after.serving, after.trial, after.cause) == (OLD, None, "x")


@pytest.mark.parametrize("state", [State.ACTIVATING, State.COMMITTING, State.ROLLING_BACK])
def test_around_the_swap_an_attempt_can_neither_be_canceled_nor_late(state: State) -> None:
    for event in (Event.CANCEL, Event.LATE):
        with pytest.raises(ConflictError):
            step(record(state), event)


def test_the_reason_survives_the_way_back() -> None:
    now, effect = step(
        record(State.OBSERVING),
        Event.UNHEALTHY,
        Note(cause="too-slow", detail="p99", facts={"n": 1}),
    )
    assert (now.state, effect) == (State.ROLLING_BACK, Effect.REVERT)
    now, _ = step(now, Event.REVERTED)
    assert (now.state, now.cause, now.detail, now.facts) == (
        State.FAILED,
        "too-slow",
        "p99",
        {"n": 1},
    )
    assert (now.serving, now.trial) == (OLD, None)


@pytest.mark.parametrize("state", sorted(WORK))
def test_a_start_repeats_the_work_of_the_state(state: State) -> None:
    after, effect = step(record(state), Event.STARTED)
    assert (after.state, effect, after.starts) == (state, WORK[state], 1)


@pytest.mark.parametrize("state", sorted(WORK))
def test_the_third_start_blames_a_release_that_could_be_to_blame(state: State) -> None:
    event, note = on_start(record(state, starts=2), 7.0)
    risky = state in (State.PROBING, State.ACTIVATING, State.OBSERVING)
    assert (event is not Event.STARTED) == risky
    assert (note.cause == "crash-loop") == risky
    step(record(state, starts=2), event, note)


def test_damage_is_counted_over_the_attempt() -> None:
    now, _ = step(record(State.DOWNLOADED), Event.DAMAGED)
    now, _ = step(msgspec.structs.replace(now, state=State.INSTALLING), Event.DAMAGED)
    assert (now.state, now.redone) == (State.DOWNLOADING, 2)


def test_the_spare_is_given_up_only_when_its_slot_will_be_overwritten() -> None:
    spare = slot("b", 0)
    queued, _ = step(record(State.IDLE, spare=spare), Event.ASSIGNED, Note(order=OTHER))
    assert queued.spare == spare
    fetching, _ = step(queued, Event.CHECKED)
    assert fetching.spare is None


MEANING = [
    (State.IDLE, None, None),
    (State.IDLE, OTHER, Event.ASSIGNED),
    (State.SUCCEEDED, ORDER, None),
    (State.FAILED, ORDER, None),
    (State.REJECTED, ORDER, None),
    (State.FAILED, SAME_AGAIN, Event.ASSIGNED),
    (State.DOWNLOADING, ORDER, None),
    (State.DOWNLOADING, OTHER, Event.CANCEL),
    (State.PROBING, None, Event.CANCEL),
    (State.ACTIVATING, OTHER, None),
    (State.OBSERVING, OTHER, Event.CANCEL),
    (State.OBSERVING, SAME_AGAIN, None),
    (State.OBSERVING, None, None),
    (State.COMMITTING, OTHER, None),
    (State.ROLLING_BACK, OTHER, None),
    (State.SUCCEEDED, REMOVAL, Event.ASSIGNED),
    (State.DOWNLOADING, REMOVAL, Event.CANCEL),
    (State.OBSERVING, REMOVAL, Event.CANCEL),
    (State.REMOVING, None, None),
    (State.REMOVING, OTHER, None),
]


@pytest.mark.parametrize(("state", "order", "event"), MEANING)
def test_what_is_wanted_means(state: State, order: Order | None, event: Event | None) -> None:
    assert decide(record(state), order) is event


def test_the_inactive_slot_is_never_the_one_that_serves() -> None:
    assert record(State.IDLE, serving=OLD).inactive == "b"
    assert record(State.IDLE, serving=NEW).inactive == "a"


def test_a_record_survives_its_bytes() -> None:
    one = record(State.OBSERVING, facts={"worst_error": 0.5}, starts=1)
    assert msgspec.json.decode(msgspec.json.encode(one), type=Record) == one
