"""Texts and charts of the console: every cause has a name and a hint, every state a badge."""

from collections.abc import Iterator

import pytest

from shoal.agent.update.machine import WORK
from shoal.controller.monitoring.records import DriftCell, DriftMap, Histograms
from shoal.controller.rollouts import device_states
from shoal.controller.rollouts.machine import StageState, State
from shoal.controller.rollouts.records import Stage
from shoal.controller.rollouts.rollouts import AffectedDevices
from shoal.controller.web import causes, charts, wording
from shoal.errors import ShoalError

AGENTS = (
    "golden-mismatch", "too-slow", "too-big", "bad-signature", "stale", "misdirected", "download",
    "provenance-mismatch",
    "disk-full", "unusable-model", "unsupported-profile", "unhealthy", "crash-loop", "deadline",
    "canceled", "clock",
)  # fmt: skip


def family(kind: type[ShoalError]) -> Iterator[type[ShoalError]]:
    if kind.__module__ == ShoalError.__module__:  # the CLI's own errors never reach the console
        yield kind
    for child in kind.__subclasses__():
        yield from family(child)


@pytest.mark.parametrize("slug", sorted({*AGENTS, *(kind.code for kind in family(ShoalError))}))
def test_every_cause_that_can_be_reported_has_a_name_and_a_hint(slug: str) -> None:
    assert causes.cause_name(slug) != slug
    assert causes.hint(slug).endswith(".")


def test_a_cause_from_a_newer_agent_is_still_readable() -> None:
    assert causes.cause_name("sensor-on-fire") == "Sensor on fire"
    assert causes.hint("sensor-on-fire") == ""


@pytest.mark.parametrize(
    "state",
    sorted({*State, *StageState, *device_states.ENDED, device_states.WAITING, *WORK}),
)
def test_every_state_has_a_badge(state: str) -> None:
    assert state in wording.BADGES


def test_an_action_shows_how_many_devices_it_affects() -> None:
    affected = AffectedDevices(
        waiting=11, updating=3, swapping=1, serving=4, failed=2, out=5, states={"any": 26}
    )
    assert affected.all == 26
    assert affected.count("pause") == 11
    assert affected.count("resume") == 13
    assert affected.count("abort") == 14
    assert affected.count("abort", rollback=True) == 19


def stage(**counts: int) -> Stage:
    zero = {"devices": 0, "succeeded": 0, "failed": 0, "skipped": 0, "unseen": 0}
    return Stage(name="s", state="RUNNING", started_at=0, finished_at=0, **(zero | counts))


def test_a_stages_bar_is_full_and_in_order() -> None:
    pieces = charts.stage_parts(stage(devices=10, succeeded=4, failed=1, skipped=2, unseen=1))
    assert [(p.name, p.devices) for p in pieces] == [
        ("succeeded", 4), ("failed", 1), ("skipped", 2), ("in progress", 2), ("never seen", 1)
    ]  # fmt: skip
    assert pieces[-1].x + pieces[-1].width == pytest.approx(100)
    assert charts.stage_parts(stage()) == []


def test_every_bin_of_a_histogram_has_a_name_and_the_last_is_what_was_missing() -> None:
    h = Histograms(
        model="m", subject="s", feature="f", edges=[0.0, 1.0, 2.0], training=[0, 0.5, 0.4, 0.1, 0],
        baseline=[0] * 5, current=[0.2] * 5, rows=9, psi=0, hellinger=0,
    )  # fmt: skip
    names = charts.bin_names(h)
    assert names == ["below 0", "0 to 1", "1 to 2", "2 and above", "missing"]
    drawn = charts.outline(h)
    assert drawn.training.count("Z") == len(names)
    assert [label for _, label in drawn.ticks] == ["0", "1", "2"]


def cell(feature: str, at: float, alarmed: bool = False) -> DriftCell:
    return DriftCell(
        feature=feature, at=at, log10_p=-9 if alarmed else -1, moved=0.1, alarmed=alarmed
    )


def test_the_map_leaves_room_where_there_is_no_data_and_lists_what_drifts_first() -> None:
    found = DriftMap(
        model="m", scope="site", subject="s", release="m@1", ready=True, baseline_windows=8,
        baseline_needed=8, covered=24, features=["a", "b"],
        cells=[cell("a", 1), cell("a", 2), cell("b", 2, alarmed=True)],
    )  # fmt: skip
    grid = charts.grid(found)
    assert grid["times"] == [1, 2]
    assert grid["log10_p"] == [[-1, -1], [None, -9]]
    first = charts.feature_rows(found)[0]
    assert (first.name, first.now, first.alarms, first.first_alarm_at) == ("b", True, 1, 2)
