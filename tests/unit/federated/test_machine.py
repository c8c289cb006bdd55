"""A round ends, whatever devices do and wherever the power fails."""

import itertools
import random

import msgspec
import pytest

from shoal.controller.federated.planning.client_selection import Candidate, Demands, select_clients
from shoal.controller.federated.rounds.machine import (
    ENDED,
    TRANSITIONS,
    Effect,
    Event,
    Mark,
    Pace,
    RoundRecord,
    State,
    decide,
    new_round,
    receive,
    step,
)
from shoal.errors import ConflictError

ATTEMPT = b"a" * 16
PACE = Pace(goal=4, least=3, recruit_s=10, train_s=100, unmask_s=20, evaluate_s=30)
NAMES = [f"d{i}" for i in range(6)]


def opened(*, secure: bool = False, pace: Pace = PACE) -> RoundRecord:
    made = new_round("t", 1, ATTEMPT, pace, NAMES, secure=secure)
    return step(made, Event.OPENED, 0.0)[0]


def said(record: RoundRecord, devices: list[str], now_s: float) -> RoundRecord:
    for device in devices:
        record, ignored = receive(record, device, ATTEMPT, now_s)
        assert not ignored, ignored
    return record


def moved(record: RoundRecord, now_s: float) -> tuple[RoundRecord, Effect | None]:
    found = decide(record, now_s)
    assert found is not None
    event, reason = found
    return step(record, event, now_s, reason)


def training(*, secure: bool = False) -> RoundRecord:
    return moved(said(opened(secure=secure), NAMES, 1.0), 1.0)[0]


def test_a_round_goes_from_its_plan_to_a_published_checkpoint() -> None:
    record = new_round("t", 1, ATTEMPT, PACE, NAMES, secure=True)
    record, effect = step(record, Event.OPENED, 0.0)
    assert (record.state, effect, record.deadline_s) == (State.RECRUITING, Effect.INVITE, 10.0)
    record, effect = moved(said(record, NAMES, 1.0), 1.0)
    assert (record.state, effect, record.deadline_s) == (State.TRAINING, Effect.TRAIN, 101.0)
    record, effect = moved(said(record, NAMES[:4], 9.0), 9.0)
    assert (record.state, effect, record.deadline_s) == (State.UNMASKING, Effect.UNMASK, 29.0)
    assert record.with_mark(Mark.LOST) == NAMES[4:]
    record, effect = moved(said(record, NAMES[:4], 10.0), 10.0)
    assert (record.state, effect) == (State.AGGREGATING, Effect.AGGREGATE)
    assert decide(record, 1e9) is None
    record, effect = step(record, Event.AGGREGATED, 11.0)
    assert (record.state, effect, record.deadline_s) == (State.EVALUATING, Effect.EVALUATE, 41.0)
    record, effect = moved(said(record, NAMES[:4], 12.0), 12.0)
    assert (record.state, effect) == (State.DONE, Effect.PUBLISH)


def test_without_secure_aggregation_nothing_is_unmasked() -> None:
    record, effect = moved(said(training(), NAMES[:4], 2.0), 2.0)
    assert (record.state, effect) == (State.AGGREGATING, Effect.AGGREGATE)
    assert step(record, Event.FINISHED, 3.0) == (
        msgspec.structs.replace(record, state=State.DONE, deadline_s=0.0), Effect.PUBLISH,
    )  # fmt: skip


@pytest.mark.parametrize(("state", "event"), list(itertools.product(State, Event)))
def test_a_transition_outside_of_the_table_changes_nothing(state: State, event: Event) -> None:
    record = msgspec.structs.replace(opened(), state=state)
    if (state, event) in TRANSITIONS:
        after, effect = step(record, event, 5.0)
        assert (after.state, effect) == TRANSITIONS[state, event]
    else:
        with pytest.raises(ConflictError, match=state.value):
            step(record, event, 5.0)


@pytest.mark.parametrize("state", State)
def test_a_restart_repeats_the_effect_of_the_state_and_keeps_its_deadline(state) -> None:
    record = msgspec.structs.replace(opened(), state=state, deadline_s=7.0)
    after, effect = step(record, Event.RESTARTED, 1000.0)
    assert after == record
    entered = {
        e for (_, event), (s, e) in TRANSITIONS.items() if s is state and event != "RESTARTED"
    }
    assert effect in (entered or {None})


def test_the_journal_holds_all_of_a_round() -> None:
    record = receive(training(secure=True), "d0", ATTEMPT, 3.0, refused="busy").record
    assert msgspec.json.decode(msgspec.json.encode(record), type=RoundRecord) == record


@pytest.mark.parametrize(
    ("device", "attempt", "now_s", "ignored"),
    [
        ("d0", ATTEMPT, 2.0, "said-before"),
        ("d1", b"b" * 16, 2.0, "another-attempt"),
        ("stranger", ATTEMPT, 2.0, "not-invited"),
        ("d1", ATTEMPT, 101.1, "late"),
        ("d5", ATTEMPT, 2.0, "left-before"),
    ],
)
def test_late_double_and_foreign_answers_change_nothing(device, attempt, now_s, ignored) -> None:
    record = receive(said(training(), ["d0"], 2.0), "d5", ATTEMPT, 2.0, refused="hot").record
    assert record.reasons["d5"] == "hot"
    after, why = receive(record, device, attempt, now_s)
    assert (after, why) == (record, ignored)


def test_an_answer_after_the_round_moved_on_is_late() -> None:
    record, _ = moved(said(training(secure=True), NAMES[:4], 2.0), 2.0)
    assert receive(record, "d5", ATTEMPT, 3.0).ignored == "left-before"
    done = msgspec.structs.replace(record, state=State.DONE)
    assert receive(done, "d0", ATTEMPT, 3.0).ignored == "late"


def test_the_goal_ends_training_at_once_and_the_deadline_ends_it_with_the_least() -> None:
    record = said(training(), NAMES[:3], 2.0)
    assert decide(record, 3.0) is None
    assert decide(said(record, ["d3"], 3.0), 3.0) == (Event.COLLECTED, "")
    assert decide(record, 101.1) == (Event.COLLECTED, "")


@pytest.mark.parametrize(("state", "reason"), [("r", "too-few-joined"), ("t", "too-few-updates")])
def test_a_round_that_cannot_reach_its_least_fails_with_the_reason(state, reason) -> None:
    record = opened() if state == "r" else training()
    few = said(record, NAMES[:2], 2.0)
    assert decide(few, 2.0) is None
    assert decide(few, 1e6) == (Event.FAILED, reason)
    for device in NAMES[2:]:
        few = receive(few, device, ATTEMPT, 2.0, refused="busy").record
    failed, effect = moved(few, 2.0)
    assert (failed.state, failed.reason, effect) == (State.FAILED, reason, Effect.DISMISS)


def test_a_device_that_sent_a_masked_update_and_no_shares_stays_in_the_sum() -> None:
    record, _ = moved(said(training(secure=True), NAMES[:4], 2.0), 2.0)
    record = said(record, NAMES[:3], 3.0)
    assert decide(record, 3.0) is None
    record, _ = moved(record, 1e6)
    assert record.state is State.AGGREGATING
    assert record.marks["d3"] is Mark.UPDATED


def test_recruiting_ends_when_all_answered_or_at_its_deadline() -> None:
    record = said(opened(), NAMES[:4], 1.0)
    assert decide(record, 1.0) is None
    assert decide(record, 10.1) == (Event.RECRUITED, "")
    for device in NAMES[4:]:
        record = receive(record, device, ATTEMPT, 1.0, refused="hot").record
    assert decide(record, 1.0) == (Event.RECRUITED, "")


def test_a_round_with_its_goal_joined_does_not_wait_long_for_silent_devices() -> None:
    enough, few = said(opened(), NAMES[:4], 1.0), said(opened(), NAMES[:3], 1.0)
    assert decide(enough, 2.4) is None
    assert decide(enough, 2.6) == (Event.RECRUITED, "")
    assert decide(few, 2.6) is None
    record, _ = moved(enough, 2.6)
    assert record.with_mark(Mark.LOST) == NAMES[4:]


@pytest.mark.parametrize("seed", range(40))
def test_whatever_devices_do_and_wherever_power_fails_a_round_ends(seed: int) -> None:
    draw = random.Random(seed)
    record, now_s = opened(secure=bool(seed % 2)), 0.0
    for _ in range(200):
        now_s += draw.expovariate(0.2)
        for device in [*NAMES, "stranger"]:
            if draw.random() < 0.4:
                refused = draw.choice(["", "", "", "hot"])
                attempt = draw.choice([ATTEMPT, ATTEMPT, b"b" * 16])
                record = receive(record, device, attempt, now_s, refused=refused).record
        if draw.random() < 0.2:
            record = msgspec.json.decode(msgspec.json.encode(record), type=RoundRecord)
            record, _ = step(record, Event.RESTARTED, now_s)
        if record.state is State.AGGREGATING:
            record, _ = step(
                record, draw.choice([Event.AGGREGATED, Event.FINISHED, Event.FAILED]), now_s
            )
        elif found := decide(record, now_s):
            record, _ = step(record, found[0], now_s, found[1])
        if record.state in ENDED:
            break
    assert record.state in ENDED


def test_a_round_without_enough_devices_is_not_planned() -> None:
    with pytest.raises(ConflictError, match="2 devices"):
        new_round("t", 1, ATTEMPT, PACE, NAMES[:2], secure=False)


# ---------------------------------------------------------------- whom it invites


def candidate(name: str, **facts: object) -> Candidate:
    good: dict = {
        "online": True, "ring": "stable", "site": "north", "release": "lot-codes@3",
        "ram_mb": 4000.0, "rows": 100,
    }  # fmt: skip
    return Candidate(device=name, **(good | facts))


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({"online": False}, "offline"),
        ({"ring": "canary"}, "other-ring"),
        ({"site": "south"}, "other-site"),
        ({"release": "other@1"}, "other-model"),
        ({"ram_mb": 500.0}, "little-memory"),
        ({"rows": 9}, "few-rows"),
        ({"cohort": PACE.least + 1}, "small-cohort"),
        ({"resting": 1}, "resting"),
    ],
)
def test_an_ineligible_device_is_left_out_with_the_reason(facts: dict, reason: str) -> None:
    demands = Demands(
        model="lot-codes", rings=("stable",), sites=("north",), ram_mb=1000, rows=10, rest=2
    )
    found = select_clients([candidate("good"), candidate("bad", **facts)], demands, PACE, b"s")
    assert found.invited == ["good"]
    assert found.left_out == {"bad": reason}


def test_more_devices_than_needed_are_sampled_independently_of_order() -> None:
    fleet = [candidate(f"d{i:03}") for i in range(100)]
    pace = Pace(goal=10, least=5, over=1.3)
    found = select_clients(fleet, Demands(model="lot-codes"), pace, b"seed")
    assert len(found.invited) == 13
    assert set(found.left_out.values()) == {"not-drawn"}
    assert select_clients(fleet[::-1], Demands(model="lot-codes"), pace, b"seed") == found
    assert (
        select_clients(fleet, Demands(model="lot-codes"), pace, b"other").invited != found.invited
    )
