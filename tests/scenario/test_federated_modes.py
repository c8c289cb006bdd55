"""Rounds that wait for nobody, and rounds after a poisoned one, by the real engine."""

import numpy as np
import pytest

from pupils import School
from shoal.controller.service.federated import poison, rounds
from shoal.errors import ConflictError
from shoal.federated import speech
from stand_ins import memory_folder

pytestmark = pytest.mark.scenario

BUFFERED = {
    "strategy": "fedbuff",
    "settings": {"behind": 5},
    "pace": {"goal": 4, "least": 2, "over": 1.5, "train_s": 3600},
}


@pytest.fixture
def school():
    with memory_folder() as folder:
        yield School(folder)


def start(school, count=1, **wishes):
    school.task(**wishes)
    rounds.start(school.fleet.ctx, actor="ana", task="walk", rounds=count)


def more(school, count=1):
    rounds.start(school.fleet.ctx, actor="ana", task="walk", rounds=count)


def task(school):
    return rounds.get_task(school.fleet.ctx, "walk")


def done(school, count):
    return lambda: task(school).rounds >= count


def parts(school, number):
    return {p.device: p for p in rounds.participations(school.fleet.ctx, f"walk.{number}")}


def test_a_slow_devices_update_counts_in_a_later_round_for_less(school):
    slow = school.pupils["d05"]
    slow.quiet = {speech.Piece}
    start(school, 2, **BUFFERED)
    school.run(200, until=done(school, 2))

    first = parts(school, 1)["d05"]
    assert (first.mark, first.reason, first.chosen) == ("LOST", "still-training", False)
    assert slow.log.count("Invite") == 1
    assert "Dismiss" not in slow.log

    deadline = slow.config.plan.deadline_s - school.fleet.clock()
    assert deadline > 5 * BUFFERED["pace"]["train_s"]  # it does not give up before it is too late

    slow.quiet = set()
    others = [one for name, one in school.pupils.items() if name != "d05"]
    for one in others[:3]:
        one.quiet = {speech.Join, speech.Refuse}
    more(school)
    school.run(200, until=done(school, 3))
    assert parts(school, 3)["d05"].chosen
    assert slow.log.count("Invite") == 1
    school.run(2)
    assert slow.dismissed == [""]


def test_buffered_rounds_bring_theta_to_where_the_devices_are(school):
    start(school, 12, **BUFFERED)
    school.run(600, until=done(school, 12))

    middle = np.mean([one.target for one in school.pupils.values()], axis=0)
    theta = school.theta(task(school).checkpoint)
    assert np.abs(theta - middle).max() < 0.4 * np.abs(middle).max()


def test_a_task_goes_on_from_its_last_clean_checkpoint_after_a_quarantine(school):
    start(school, 3)
    school.run(200, until=done(school, 3))
    clean = rounds.get_round(school.fleet.ctx, "walk.1").checkpoint

    poison.quarantine_round(school.fleet.ctx, actor="ana", task="walk", number=2, why="d03 lied")
    more(school)
    school.run(200, until=done(school, 4))

    after = rounds.get_round(school.fleet.ctx, "walk.4")
    assert (after.parent, after.theta, after.poisoned) == (1, clean, "")
    assert rounds.checkpoint(school.fleet.ctx, "walk").lineage == [1, 4]


def test_a_round_that_runs_on_a_poisoned_checkpoint_is_broken_off_and_tried_from_a_clean_one(
    school,
):
    start(school, 2)
    school.run(200, until=done(school, 2))
    more(school)
    for one in school.pupils.values():
        one.quiet = {speech.Piece}
    school.run(5)
    running = rounds.list_rounds(school.fleet.ctx, task="walk")[0]
    assert (running.number, running.state) == (3, "TRAINING")

    poison.quarantine_round(school.fleet.ctx, actor="ana", task="walk", number=2, why="d03 lied")
    for one in school.pupils.values():
        one.quiet = set()
    school.run(200, until=done(school, 3))

    broken = rounds.get_round(school.fleet.ctx, "walk.3")
    assert (broken.state, broken.reason) == ("FAILED", "quarantined")
    assert broken.poisoned == "it came of round 2: d03 lied"
    assert rounds.checkpoint(school.fleet.ctx, "walk").lineage == [1, 4]


def test_a_checkpoint_is_measured_by_everybody_who_fits_and_nothing_is_learned(school):
    start(school, 2, pace={"goal": 2, "least": 2, "over": 1.0})
    school.run(200, until=done(school, 2))
    before = task(school)

    asked = rounds.evaluate(school.fleet.ctx, actor="ana", task="walk", number=1)
    school.run(200, until=lambda: rounds.get_round(school.fleet.ctx, asked.id).ended_at > 0)

    found = rounds.get_round(school.fleet.ctx, asked.id)
    assert (found.state, found.purpose, found.marks) == ("DONE", "evaluate", {"MEASURED": 6})
    assert found.measured.devices == 6
    assert found.theta == rounds.get_round(school.fleet.ctx, "walk.1").checkpoint
    after = task(school)
    assert (after.checkpoint, after.parent, after.rounds) == (before.checkpoint, 2, 2)
    assert rounds.checkpoint(school.fleet.ctx, "walk").lineage == [1, 2]
    more(school)
    school.run(200, until=done(school, 3))
    assert rounds.checkpoint(school.fleet.ctx, "walk").lineage == [1, 2, 4]


def test_an_evaluation_that_nobody_answers_fails_and_the_task_stands(school):
    for one in school.pupils.values():
        one.quiet = {speech.Measured}
    start(school, 1, evaluate=0)
    school.run(200, until=done(school, 1))

    asked = rounds.evaluate(school.fleet.ctx, actor="ana", task="walk")
    school.run(400, until=lambda: rounds.get_round(school.fleet.ctx, asked.id).ended_at > 0)

    found = rounds.get_round(school.fleet.ctx, asked.id)
    assert (found.state, found.reason, task(school).state) == ("FAILED", "nobody-measured", "ready")


def test_no_evaluation_is_begun_while_rounds_run(school):
    start(school, 1)
    with pytest.raises(ConflictError, match="rounds of task walk run"):
        rounds.evaluate(school.fleet.ctx, actor="ana", task="walk", number=0)


def test_a_late_update_is_measured_under_the_round_that_it_counts_in(school):
    slow = school.pupils["d05"]
    slow.quiet = {speech.Piece}
    start(school, 1, **BUFFERED)
    school.run(200, until=done(school, 1))
    slow.quiet = set()
    for name in ("d00", "d01", "d02"):
        school.pupils[name].quiet = {speech.Join, speech.Refuse}
    more(school)
    school.run(200, until=done(school, 2))
    assert parts(school, 2)["d05"].mark == "MEASURED"
