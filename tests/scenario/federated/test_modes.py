"""Rounds that wait for nobody, and rounds after a poisoned one, by the real engine."""

import numpy as np
import pytest

from shoal.controller.federated.checkpoints import round_quarantine
from shoal.controller.federated.rounds import rounds
from shoal.errors import ConflictError
from shoal.federated import messages

pytestmark = pytest.mark.scenario

BUFFERED = {
    "strategy": "fedbuff",
    "settings": {"behind": 5},
    "pace": {"goal": 4, "least": 2, "over": 1.5, "train_s": 3600},
}


def test_a_slow_devices_update_counts_in_a_later_round_for_less(federation):
    slow = federation.clients["d05"]
    slow.quiet = {messages.Piece}
    federation.start(2, **BUFFERED)
    federation.run(200, until=lambda: federation.done(2))

    first = federation.parts()["d05"]
    assert (first.mark, first.reason, first.chosen) == ("LOST", "still-training", False)
    assert slow.log.count("Invite") == 1
    assert "Dismiss" not in slow.log

    deadline = slow.config.plan.deadline_s - federation.fleet.clock()
    assert deadline > 5 * BUFFERED["pace"]["train_s"]  # it does not give up before it is too late

    slow.quiet = set()
    others = [one for name, one in federation.clients.items() if name != "d05"]
    for one in others[:3]:
        one.quiet = {messages.Join, messages.Refuse}
    federation.more()
    federation.run(200, until=lambda: federation.done(3))
    assert federation.parts(3)["d05"].chosen
    assert slow.log.count("Invite") == 1
    federation.run(2)
    assert slow.dismissed == [""]


def test_buffered_rounds_bring_theta_to_where_the_devices_are(federation):
    federation.start(12, **BUFFERED)
    federation.run(600, until=lambda: federation.done(12))

    middle = np.mean([one.target for one in federation.clients.values()], axis=0)
    theta = federation.theta(federation.walk.checkpoint)
    assert np.abs(theta - middle).max() < 0.4 * np.abs(middle).max()


def test_a_task_goes_on_from_its_last_clean_checkpoint_after_a_quarantine(federation):
    federation.start(3)
    federation.run(200, until=lambda: federation.done(3))
    clean = rounds.get_round(federation.fleet.ctx, "walk.1").checkpoint

    round_quarantine.quarantine_round(
        federation.fleet.ctx, actor="ana", task="walk", number=2, why="d03 lied"
    )
    federation.more()
    federation.run(200, until=lambda: federation.done(4))

    after = rounds.get_round(federation.fleet.ctx, "walk.4")
    assert (after.parent, after.theta, after.poisoned) == (1, clean, "")
    assert rounds.checkpoint(federation.fleet.ctx, "walk").lineage == [1, 4]


def test_a_round_that_runs_on_a_poisoned_checkpoint_is_broken_off_and_tried_from_a_clean_one(
    federation,
):
    federation.start(2)
    federation.run(200, until=lambda: federation.done(2))
    federation.more()
    for one in federation.clients.values():
        one.quiet = {messages.Piece}
    federation.run(5)
    running = rounds.list_rounds(federation.fleet.ctx, task="walk")[0]
    assert (running.number, running.state) == (3, "TRAINING")

    round_quarantine.quarantine_round(
        federation.fleet.ctx, actor="ana", task="walk", number=2, why="d03 lied"
    )
    for one in federation.clients.values():
        one.quiet = set()
    federation.run(200, until=lambda: federation.done(3))

    broken = rounds.get_round(federation.fleet.ctx, "walk.3")
    assert (broken.state, broken.reason) == ("FAILED", "quarantined")
    assert broken.poisoned == "it came of round 2: d03 lied"
    assert rounds.checkpoint(federation.fleet.ctx, "walk").lineage == [1, 4]


def test_every_eligible_device_evaluates_a_checkpoint_without_training(federation):
    federation.start(2, pace={"goal": 2, "least": 2, "over": 1.0})
    federation.run(200, until=lambda: federation.done(2))
    before = federation.walk

    asked = rounds.evaluate(federation.fleet.ctx, actor="ana", task="walk", number=1)
    federation.run(200, until=lambda: rounds.get_round(federation.fleet.ctx, asked.id).ended_at > 0)

    found = rounds.get_round(federation.fleet.ctx, asked.id)
    assert (found.state, found.purpose, found.marks) == ("DONE", "evaluate", {"MEASURED": 6})
    assert found.measured.devices == 6
    assert found.theta == rounds.get_round(federation.fleet.ctx, "walk.1").checkpoint
    after = federation.walk
    assert (after.checkpoint, after.parent, after.rounds) == (before.checkpoint, 2, 2)
    assert rounds.checkpoint(federation.fleet.ctx, "walk").lineage == [1, 2]
    federation.more()
    federation.run(200, until=lambda: federation.done(3))
    assert rounds.checkpoint(federation.fleet.ctx, "walk").lineage == [1, 2, 4]


def test_an_evaluation_without_answers_fails_and_the_task_is_unchanged(federation):
    for one in federation.clients.values():
        one.quiet = {messages.Measured}
    federation.start(evaluate=0)
    federation.run(200, until=federation.done)

    asked = rounds.evaluate(federation.fleet.ctx, actor="ana", task="walk")
    federation.run(400, until=lambda: rounds.get_round(federation.fleet.ctx, asked.id).ended_at > 0)

    found = rounds.get_round(federation.fleet.ctx, asked.id)
    assert (found.state, found.reason, federation.walk.state) == (
        "FAILED",
        "nobody-measured",
        "ready",
    )


def test_no_evaluation_is_begun_while_rounds_run(federation):
    federation.start()
    with pytest.raises(ConflictError, match="rounds of task walk run"):
        rounds.evaluate(federation.fleet.ctx, actor="ana", task="walk", number=0)


def test_a_late_update_is_measured_under_the_round_that_it_counts_in(federation):
    slow = federation.clients["d05"]
    slow.quiet = {messages.Piece}
    federation.start(**BUFFERED)
    federation.run(200, until=federation.done)
    slow.quiet = set()
    for name in ("d00", "d01", "d02"):
        federation.clients[name].quiet = {messages.Join, messages.Refuse}
    federation.more()
    federation.run(200, until=lambda: federation.done(2))
    assert federation.parts(2)["d05"].mark == "MEASURED"
