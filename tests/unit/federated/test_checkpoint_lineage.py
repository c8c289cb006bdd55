"""What a poisoned round spoils, and what it does not."""

import pytest

from shoal.controller.federated.checkpoints.lineage import LineageNode, newest_clean, tainted

#: 1 ─ 2 ─ 3 ─ 4, and 5 ─ 6 from 2 after a quarantine of 3.
LINE = [
    LineageNode(number=1),
    LineageNode(number=2, parent=1),
    LineageNode(number=3, parent=2),
    LineageNode(number=4, parent=3),
    LineageNode(number=5, parent=2),
    LineageNode(number=6, parent=5),
]


@pytest.mark.parametrize(
    ("poisoned", "bad", "newest"),
    [
        (set(), set(), 6),
        ({6}, {6}, 5),
        ({3}, {3, 4}, 6),
        ({2}, {2, 3, 4, 5, 6}, 1),
        ({1}, {1, 2, 3, 4, 5, 6}, 0),
        ({4, 5}, {4, 5, 6}, 3),
    ],
)
def test_what_grew_from_a_poisoned_round_is_spoiled_and_nothing_else_is(
    poisoned: set[int], bad: set[int], newest: int
) -> None:
    for line in (LINE, LINE[::-1]):
        assert tainted(line, poisoned) == bad
        assert newest_clean(line, poisoned) == newest


def test_one_late_update_that_started_from_a_poisoned_checkpoint_spoils_its_round() -> None:
    line = [
        LineageNode(number=1),
        LineageNode(number=2, parent=1),
        LineageNode(number=3, parent=1, older=(2,)),
    ]

    assert tainted(line, {2}) == {2, 3}


def test_a_task_without_rounds_goes_on_from_its_beginning() -> None:
    assert newest_clean([], {1}) == 0
