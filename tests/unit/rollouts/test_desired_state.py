"""What follows for a device that does not run what it is to run, case by case."""

from typing import Any

import pytest

from shoal.controller.rollouts import group_selection
from shoal.controller.rollouts.cohort import Candidate
from shoal.controller.rollouts.desired_state import (
    TRAILING,
    Act,
    Desired,
    Known,
    Place,
    State,
    decide,
)
from shoal.controller.rollouts.group_selection import Runs
from shoal.controller.rollouts.records import Selector, StagePlan
from shoal.orders import Order

NOW = 1000.0
GROUP = Desired(release="m@2", group="fleet", rollout="r-2")
ONLINE = Known(online=True, heard=False, fresh=False, decided=False, serves="m@1")


def order(version: int = 2, attempt: int = 1, rollout: str = "r-2", until: float = 0.0) -> Order:
    return Order(
        model="m", version=version, path=f"release/m/{version}/manifest.json", length=1,
        sha256="0", rollout=rollout, attempt=attempt, deadline_s=until,
    )  # fmt: skip


def place(state: str, stage: str = "all", tries: int = 0, **more: Any) -> Place:
    values = {"attempt": 1, "cause": "", "detail": "", "replaced": False, **more}
    return Place(stage=stage, state=state, tries=tries, **values)


@pytest.mark.parametrize(
    ("known", "desired", "state", "act"),
    [
        ({"serves": "m@2"}, {}, None, Act.NOTHING),
        ({}, {"release": ""}, None, Act.NOTHING),
        ({}, {}, State.CONVERGING, Act.QUEUE),
        ({"online": False}, {}, State.AWAY, Act.NOTHING),
        ({"online": False, "heard": True}, {}, State.CONVERGING, Act.QUEUE),
        ({}, {"held": "audit"}, State.HELD, Act.NOTHING),
        ({}, {"excluded": ""}, State.EXCLUDED, Act.NOTHING),
        ({}, {"pin": "m@1"}, State.PINNED, Act.NOTHING),
        ({"serves": "m@2"}, {"pin": "m@1"}, State.CONVERGING, Act.PIN),
        ({}, {"missing": "m@2 is retired"}, State.CANNOT, Act.NOTHING),
        ({}, {"moving": True}, State.ROLLOUT, Act.NOTHING),
        ({"keeps": "r-3 left it m@1"}, {}, State.KEPT, Act.NOTHING),
        ({"active": place("PROBING")}, {}, State.ROLLOUT, Act.NOTHING),
        ({"active": place("WAITING")}, {}, State.CONVERGING, Act.QUEUE),
        ({"active": place("SUCCEEDED", replaced=True)}, {}, State.ROLLOUT, Act.RESTART),
        ({"place": place("WAITING", TRAILING)}, {}, State.CONVERGING, Act.NOTHING),
        ({"place": place("ASSIGNED"), "order": order()}, {}, State.CONVERGING, Act.NOTHING),
        ({"place": place("ASSIGNED"), "order": order(until=999)}, {}, State.CONVERGING, Act.QUEUE),
        ({"place": place("SUCCEEDED"), "order": order()}, {}, State.CONVERGING, Act.NOTHING),
        ({"place": place("SUCCEEDED", replaced=True)}, {}, State.CONVERGING, Act.QUEUE),
        (
            {"place": place("SUCCEEDED"), "order": order(), "fresh": True}, {},
            State.CONVERGING, Act.QUEUE,
        ),
        ({"place": place("TIMED_OUT")}, {}, State.CONVERGING, Act.QUEUE),
        ({"place": place("FAILED")}, {}, State.FAILED, Act.NOTHING),
        ({"place": place("FAILED"), "fresh": True}, {}, State.CONVERGING, Act.QUEUE),
        ({"place": place("FAILED", tries=3), "fresh": True}, {}, State.FAILED, Act.NOTHING),
        ({"place": place("FAILED", tries=3), "decided": True}, {}, State.CONVERGING, Act.QUEUE),
        (
            {"place": place("SKIPPED", TRAILING, cause="unsupported-profile")}, {},
            State.CANNOT, Act.NOTHING,
        ),
        ({"paused": "2 failed"}, {}, State.PAUSED, Act.QUEUE),
    ],
)  # fmt: skip
def test_a_device_is_queued_unless_something_speaks_against_it_which_is_said(
    known: dict[str, Any], desired: dict[str, Any], state: State | None, act: Act
) -> None:
    decision = decide(ONLINE._replace(**known), GROUP._replace(**desired), NOW)
    assert (decision.state, decision.act) == (state, act)
    assert bool(decision.why) == (state is not None)


def runs(select: Selector, release: str, since: float) -> Runs:
    return Runs(group_selection.text_of(select), select, "m", release, "r", since)


def test_the_narrowest_of_nested_groups_decides_and_else_the_one_that_was_moved_last() -> None:
    fleet = runs(Selector(), "m@1", 1)
    north = runs(Selector(site="north"), "m@2", 1)
    pi = runs(Selector(profile="rpi4"), "m@3", 2)
    one = Candidate("d", "north", "x86", "stable", {})
    assert group_selection.deciding([fleet, north, pi], one)["m"].release == "m@2"
    both = one._replace(profile="rpi4")
    assert group_selection.deciding([pi, fleet, north], both)["m"].release == "m@3"


def test_a_stage_of_a_percentage_moves_no_group() -> None:
    stages = [
        StagePlan(name="some", select=Selector(percent=10)),
        StagePlan(name="canary", select=Selector(ring="canary")),
        StagePlan(name="rest"),
    ]
    assert group_selection.moved(stages, ["some", "canary"]) == [Selector(ring="canary")]
    assert group_selection.moved(stages, ["some", "canary", "rest"])[-1] == Selector()
