"""A quarantine is lifted while rounds of its task run, by the real engine."""

import pytest

from fake_clients import FakeFederation
from shoal.controller.federated.checkpoints import round_quarantine
from shoal.controller.federated.rounds import rounds
from shoal.federated import messages

pytestmark = pytest.mark.scenario


def test_a_task_that_runs_goes_on_from_what_is_clean_again_and_loses_one_try(
    federation: FakeFederation,
) -> None:
    ctx, asked = federation.fleet.ctx, {"task": "walk", "number": 2}
    federation.start(3)
    federation.run(200, until=lambda: federation.done(3))
    round_quarantine.quarantine_round(ctx, actor="ana", why="d03 lied", **asked)
    for one in federation.clients.values():
        one.quiet = {messages.Piece}
    federation.more()
    federation.run(5)
    assert rounds.get_round(ctx, "walk.4").parent == 1

    round_quarantine.lift(ctx, actor="root", why="it did not", **asked)
    for one in federation.clients.values():
        one.quiet = set()
    federation.run(200, until=lambda: federation.done(4))

    assert rounds.get_round(ctx, "walk.4").reason == "superseded"
    assert rounds.checkpoint(ctx, "walk").lineage == [1, 2, 3, 5]
    assert rounds.get_round(ctx, "walk.5").poisoned == ""


def test_what_a_quarantine_has_broken_off_is_not_in_quarantine_after_it_is_lifted(
    federation: FakeFederation,
) -> None:
    ctx, asked = federation.fleet.ctx, {"task": "walk", "number": 2}
    federation.start(2)
    federation.run(200, until=lambda: federation.done(2))
    for one in federation.clients.values():
        one.quiet = {messages.Piece}
    federation.more()
    federation.run(5)
    round_quarantine.quarantine_round(ctx, actor="ana", why="d03 lied", **asked)
    federation.run(2)
    broken = rounds.get_round(ctx, "walk.3")
    assert (broken.reason, broken.poisoned) == ("quarantined", "it came of round 2: d03 lied")

    round_quarantine.lift(ctx, actor="root", why="it did not", **asked)

    broken = rounds.get_round(ctx, "walk.3")
    assert (broken.state, broken.reason, broken.poisoned) == ("FAILED", "quarantined", "")
