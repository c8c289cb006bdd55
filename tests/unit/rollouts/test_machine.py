"""Rollout and stage machines, and who is drawn into which stage."""

from collections import Counter

import pytest

from shoal.controller.rollouts import cohort, device_states
from shoal.controller.rollouts.cohort import Candidate
from shoal.controller.rollouts.machine import (
    ACTIVE,
    ENDED,
    STAGE_TRANSITIONS,
    TRANSITIONS,
    Event,
    StageEvent,
    StageState,
    State,
    stage_step,
    step,
)
from shoal.controller.rollouts.records import Selector, StagePlan
from shoal.errors import ConflictError

STAGES = [
    StagePlan(name="canary", select=Selector(ring="canary")),
    StagePlan(name="tenth", select=Selector(percent=10)),
    StagePlan(name="rest"),
]


def fleet(n):
    return [
        Candidate(
            f"d-{i}", f"site-{i % 4}", ("rpi4", "x86-vnni")[i % 2], "canary" if i < 4 else "stable",
            {"line": str(i % 3)},
        )
        for i in range(n)
    ]  # fmt: skip


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("event", Event)
def test_an_event_that_is_not_in_the_table_raises_an_error_that_names_it(state, event):
    if (state, event) in TRANSITIONS:
        assert step(state, event) is TRANSITIONS[state, event][0]
    else:
        with pytest.raises(ConflictError, match=state.value):
            step(state, event)


@pytest.mark.parametrize("state", sorted(ENDED))
def test_an_ended_rollout_stays_ended(state):
    assert not any(s is state for s, _ in TRANSITIONS)


@pytest.mark.parametrize("state", sorted(set(State) - ENDED))
def test_every_rollout_can_still_be_ended_by_a_person_or_by_itself(state):
    reached, new = {state}, {state}
    while new:
        new = {after for (s, _), (after, _) in TRANSITIONS.items() if s in new} - reached
        reached |= new
    assert reached & ENDED


def test_aborting_cancels_or_reverts_and_a_paused_rollout_does_nothing_by_itself():
    assert step(State.PAUSED, Event.ABORTED) is State.STOPPING
    assert step(State.RUNNING, Event.REVERTED) is State.ROLLING_BACK
    assert State.PAUSED not in ACTIVE


def test_a_stage_is_judged_before_it_is_anything_else_than_running():
    ends = {StageState.SUCCESSFUL, StageState.FAILED, StageState.INCONCLUSIVE}
    sources = {s for (s, _), (after, _) in STAGE_TRANSITIONS.items() if after in ends}
    assert sources <= {StageState.ANALYSING, StageState.PAUSED}
    with pytest.raises(ConflictError):
        stage_step(StageState.SUCCESSFUL, StageEvent.RETRIED)


def test_cohorts_are_frozen_by_hash_whatever_the_order_of_the_devices():
    devices = fleet(200)
    once = cohort.freeze("r1", STAGES, devices)
    assert cohort.freeze("r1", STAGES, reversed(devices)) == once
    assert cohort.freeze("r2", STAGES, devices) != once
    assert set(once) == {one.device for one in devices}


def test_a_share_is_spread_over_profile_and_site():
    taken = cohort.freeze("r1", STAGES, fleet(404))
    tenth = [one for one in fleet(404) if taken[one.device] == "tenth"]
    assert len(tenth) == 40
    assert set(Counter((one.profile, one.site) for one in tenth).values()) == {10}
    assert {one.device for one in fleet(404)[:4]} == {d for d, s in taken.items() if s == "canary"}


@pytest.mark.parametrize(
    ("devices", "percent", "drawn"), [(3, 1, 1), (3, 50, 2), (0, 50, 0), (7, 100, 7), (9, 34, 3)]
)
def test_a_share_of_few_is_at_least_one_and_never_more_than_all(devices, percent, drawn):
    assert len(cohort.draw(fleet(devices), percent)) == drawn


@pytest.mark.parametrize(
    ("select", "count"),
    [
        (Selector(site="site-1"), 5),
        (Selector(profile="rpi4"), 10),
        (Selector(label="line=0"), 7),
        (Selector(label="line"), 20),
        (Selector(label="room=1"), 0),
    ],
)
def test_selectors_take_by_site_profile_and_label(select, count):
    assert len(cohort.freeze("r", [StagePlan(name="one", select=select)], fleet(20))) == count


def test_a_device_that_enrols_late_joins_the_last_stage_if_it_fits():
    late = Candidate("new", "site-9", "rpi4", "stable", {})
    assert cohort.late(STAGES, late) == "rest"
    assert cohort.late(STAGES[:1], late) is None


@pytest.mark.parametrize(
    ("old", "new", "may"),
    [
        ("ASSIGNED", "DOWNLOADING", True),
        ("SUCCEEDED", "OBSERVING", False),
        ("TIMED_OUT", "SUCCEEDED", True),
        ("FAILED", "DOWNLOADING", False),
    ],
)
def test_an_end_gives_way_only_to_another_end(old, new, may):
    assert device_states.follows(old, new) is may
