"""The participation matrix, training curves and outliers of the federated screens."""

import re
from pathlib import Path
from typing import Any

import pytest

from shoal.controller.federated.records import Measure, Participation, Round
from shoal.controller.federated.rounds.machine import Mark, State
from shoal.controller.web import dropouts, participation, wording


def part(device: str, number: int, mark: str = "MEASURED", **more: Any) -> Participation:
    """A participation with an update, unless a reason is given."""
    told = {"examples": 10, "chosen": True, "norm": 1.0, "cosine": 0.5, "bytes": 9}
    return Participation(
        round=f"t.{number}", device=device, site="north", task="t", number=number, mark=mark,
        **({} if "reason" in more else told) | more,
    )  # fmt: skip


def done(number: int, **more: Any) -> Round:
    return Round(
        id=f"t.{number}", task="t", number=number, attempt=1, state="DONE", reason="", secure=False,
        parent=number - 1, theta="", started_at=1.0, **more,
    )  # fmt: skip


def test_a_matrix_has_a_badge_for_each_device_and_round_and_outliers_come_first() -> None:
    found = participation.matrix(
        [
            part("a", 1), part("a", 2, "LOST", reason="no-answer"),
            part("b", 2, suspect="far-longer"),
            part("c", 1, "LOST", reason="still-training"), part("c", 2),
        ]
    )  # fmt: skip

    assert found.numbers == [1, 2]
    assert [line.device for line in found.rows] == ["b", "a", "c"]
    assert [[sign.icon for sign in line.badges] for line in found.rows] == [
        ["", "warn"], ["check", "off"], ["wait", "check"],
    ]  # fmt: skip
    assert [(line.rounds, line.suspects) for line in found.rows] == [(1, 1), (1, 0), (1, 0)]


@pytest.mark.parametrize(
    ("more", "label"),
    [
        ({}, "Update received, evaluated"),
        ({"chosen": False}, "Update not used"),
        ({"mark": "REFUSED"}, "Update received"),  # it refused to measure: its update counts
        ({"mark": "REFUSED", "chosen": False, "bytes": 0}, "Refused"),
        ({"chosen": False, "bytes": 0}, "Evaluated"),  # a round of nothing else
        ({"mark": "LOST", "reason": "still-training"}, "Still training: counts later"),
    ],
)
def test_a_participation_is_labelled_by_its_outcome(more: dict[str, Any], label: str) -> None:
    assert participation.badge_of(part("a", 1, **more)).label == label


def test_of_thousands_of_devices_the_matrix_counts_those_it_leaves_out() -> None:
    found = participation.matrix(part(f"d{i:04}", 1) for i in range(1_000))

    assert len(found.rows) == participation.MOST_DEVICES
    assert found.hidden == 1_000 - participation.MOST_DEVICES


def test_charts_begin_with_the_oldest_round_and_leave_out_what_is_hidden() -> None:
    measured = Measure(rows=9, loss=0.25, accuracy=0.75)
    rounds = [done(2, measured=measured, epsilon=2.0), done(1, loss=0.5)]

    first, second = participation.points(rounds, [part("a", 2, norm=3.0), part("b", 2)])

    assert (first.number, first.loss, first.accuracy, first.median_norm) == (1, 0.5, None, None)
    assert (second.loss, second.accuracy, second.median_norm, second.largest_norm) == (
        0.25, 0.75, 2.0, 3.0,
    )  # fmt: skip


def test_an_evaluation_is_no_step_of_the_learning_curve() -> None:
    measured = Measure(rows=9, loss=0.25, accuracy=0.75)
    rounds = [done(1, loss=0.5), done(2, measured=measured, purpose="evaluate")]

    assert [point.number for point in participation.points(rounds, [])] == [1]


def test_reasons_are_counted_most_first_and_only_of_devices_that_dropped_out() -> None:
    parts = [
        part("a", 1, "REFUSED", reason="busy"), part("b", 1, "LOST", reason="no-answer"),
        part("c", 1, "LOST", reason="no-answer"), part("d", 1),
    ]  # fmt: skip

    assert participation.reasons(parts) == [("no-answer", 2, "c"), ("busy", 1, "a")]


def test_deviations_are_of_the_length_and_only_of_updates_that_are_shown() -> None:
    parts = [part(f"d{i}", 1, norm=1.0 + i / 100) for i in range(6)]
    found = participation.deviations([*parts, part("far", 1, norm=50.0), part("x", 1, norm=None)])

    assert found["far"] > 3.5
    assert "x" not in found


@pytest.mark.parametrize("state", sorted({*State, *Mark}))
def test_every_state_and_mark_of_a_round_has_a_badge(state: str) -> None:
    assert str(state) in wording.BADGES


@pytest.mark.parametrize("slug", sorted(dropouts.DROPOUTS))
def test_every_reason_has_a_name_and_a_hint(slug: str) -> None:
    assert dropouts.name_of(slug) != slug
    assert dropouts.hint_of(slug).endswith(".")


def test_every_documented_refusal_reason_has_a_hint_in_the_console() -> None:
    said = []
    for page in ("agent.md", "federated/rounds.md", "federated/secure-aggregation.md"):
        text = (Path(__file__).parents[3] / "docs" / page).read_text()
        for table in text.split("\n| reason |")[1:]:
            rows = [line.split("|")[1] for line in table.split("\n\n")[0].splitlines()[1:]]
            said += [slug for row in rows for slug in re.findall("`([a-z-]+)`", row)]
    assert len(said) > 30
    assert {slug for slug in said if not dropouts.hint_of(slug).endswith(".")} == set()
