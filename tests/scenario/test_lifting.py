"""A quarantine is lifted while rounds of its task run, by the real engine."""

from collections.abc import Iterator

import pytest

from pupils import School
from shoal.controller.service.federated import poison, rounds
from shoal.federated import speech
from stand_ins import memory_folder

pytestmark = pytest.mark.scenario


@pytest.fixture
def school() -> Iterator[School]:
    with memory_folder() as folder:
        yield School(folder, count=4)


def learn(school: School, count: int) -> None:
    """Until so many rounds are done."""
    ctx = school.fleet.ctx
    begun = rounds.get_task(ctx, "walk").rounds
    rounds.start(ctx, actor="ana", task="walk", rounds=count - begun)
    school.run(200, until=lambda: rounds.get_task(ctx, "walk").rounds == count)


def test_a_task_that_runs_goes_on_from_what_is_clean_again_and_loses_one_try(
    school: School,
) -> None:
    school.task()
    ctx, asked = school.fleet.ctx, {"task": "walk", "number": 2}
    learn(school, 3)
    poison.quarantine_round(ctx, actor="ana", why="d03 lied", **asked)
    for one in school.pupils.values():
        one.quiet = {speech.Piece}
    rounds.start(ctx, actor="ana", task="walk", rounds=1)
    school.run(5)
    assert rounds.get_round(ctx, "walk.4").parent == 1

    poison.lift(ctx, actor="root", why="it did not", **asked)
    for one in school.pupils.values():
        one.quiet = set()
    school.run(200, until=lambda: rounds.get_task(ctx, "walk").rounds == 4)

    assert rounds.get_round(ctx, "walk.4").reason == "superseded"
    assert rounds.checkpoint(ctx, "walk").lineage == [1, 2, 3, 5]
    assert rounds.get_round(ctx, "walk.5").poisoned == ""


def test_what_a_quarantine_has_broken_off_is_not_in_quarantine_after_it_is_lifted(
    school: School,
) -> None:
    school.task()
    ctx, asked = school.fleet.ctx, {"task": "walk", "number": 2}
    learn(school, 2)
    for one in school.pupils.values():
        one.quiet = {speech.Piece}
    rounds.start(ctx, actor="ana", task="walk", rounds=1)
    school.run(5)
    poison.quarantine_round(ctx, actor="ana", why="d03 lied", **asked)
    school.run(2)
    broken = rounds.get_round(ctx, "walk.3")
    assert (broken.reason, broken.poisoned) == ("quarantined", "it came of round 2: d03 lied")

    poison.lift(ctx, actor="root", why="it did not", **asked)

    broken = rounds.get_round(ctx, "walk.3")
    assert (broken.state, broken.reason, broken.poisoned) == ("FAILED", "quarantined", "")
