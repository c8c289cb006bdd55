"""Which checkpoint came of which, and what a poisoned round has spoiled.

A round starts from a checkpoint, its parent, and makes the next. What was learned from a poisoned
checkpoint is poisoned as well, however honest its own devices were; the task goes on from the
newest checkpoint that is clean.

    >>> line = [Grown(number=1), Grown(number=2, parent=1), Grown(number=3, parent=2),
    ...         Grown(number=4, parent=1)]
    >>> sorted(spoiled(line, {2}))
    [2, 3]
    >>> newest_clean(line, {2})
    4
"""

from collections.abc import Iterable, Mapping, Set

import msgspec

#: The checkpoint before the first round: the model that the task began with.
START = 0


class Grown(msgspec.Struct, frozen=True, kw_only=True):
    """A round that made a checkpoint.

    number    from 1
    parent    the round whose checkpoint it started from; 0 for what the task began with
    older     further ones that single updates started from, in an asynchronous task
    """

    number: int
    parent: int = START
    older: tuple[int, ...] = ()


def roots(line: Iterable[Grown], poisoned: Set[int]) -> dict[int, int]:
    """Every poisoned or spoiled round of the line -> the newest poisoned one that is in it, which
    is itself where it is one.

        >>> roots([Grown(number=1), Grown(number=2, parent=1), Grown(number=3, parent=2)], {1, 2})
        {1: 1, 2: 2, 3: 2}
    """
    found: dict[int, int] = {}
    for grown in sorted(line, key=lambda one: one.number):
        bad = [found[one] for one in (grown.parent, *grown.older) if one in found]
        if grown.number in poisoned:
            found[grown.number] = grown.number
        elif bad:
            found[grown.number] = max(bad)
    return found


def reason(began: Iterable[int], found: Mapping[int, int], charges: Mapping[int, str]) -> str:
    """Why what began with the checkpoints of these rounds is poisoned; "" when it is not.

    found     of `roots`
    charges   poisoned round -> why
    """
    bad = [found[one] for one in began if one in found]
    return f"it came of round {max(bad)}: {charges[max(bad)]}" if bad else ""


def spoiled(line: Iterable[Grown], poisoned: Set[int]) -> frozenset[int]:
    """The poisoned rounds and every round whose checkpoint has something of theirs in it."""
    return frozenset(poisoned | roots(line, poisoned).keys())


def newest_clean(line: Iterable[Grown], poisoned: Set[int], pruned: Set[int] = frozenset()) -> int:
    """The last round that is not spoiled, and whose checkpoint is there; 0 when there is none."""
    line = list(line)
    bad = spoiled(line, poisoned) | pruned
    return max((one.number for one in line if one.number not in bad), default=START)
