"""Lineage of checkpoints: those derived from a poisoned round, and the newest clean one.

A round starts from a checkpoint, its parent, and makes the next. A checkpoint derived from a
poisoned one is poisoned too, however honest its own devices were; the task resumes from the newest
clean one.

    >>> line = [LineageNode(number=number, parent=parent)
    ...         for number, parent in ((1, 0), (2, 1), (3, 2), (4, 1))]
    >>> sorted(tainted(line, {2}))
    [2, 3]
    >>> newest_clean(line, {2})
    4
"""

from collections.abc import Iterable, Mapping, Set

import msgspec

#: The checkpoint before the first round: the initial model.
START = 0


class LineageNode(msgspec.Struct, frozen=True, kw_only=True):
    """A round that made a checkpoint.

    number    from 1
    parent    the round whose checkpoint it started from; 0: the initial model
    older     further parents of late updates, in an asynchronous task
    """

    number: int
    parent: int = START
    older: tuple[int, ...] = ()


def roots(line: Iterable[LineageNode], poisoned: Set[int]) -> dict[int, int]:
    """Every poisoned or tainted round -> the newest poisoned round that it is derived from, or is.

    >>> roots([LineageNode(number=n, parent=n - 1) for n in (1, 2, 3)], {1, 2})
    {1: 1, 2: 2, 3: 2}
    """
    found: dict[int, int] = {}
    for made in sorted(line, key=lambda one: one.number):
        bad = [found[one] for one in (made.parent, *made.older) if one in found]
        if made.number in poisoned:
            found[made.number] = made.number
        elif bad:
            found[made.number] = max(bad)
    return found


def reason(parents: Iterable[int], found: Mapping[int, int], charges: Mapping[int, str]) -> str:
    """Why a round with these parents is poisoned; "" if it is not.

    found     of `roots`
    charges   poisoned round -> reason
    """
    bad = [found[one] for one in parents if one in found]
    return f"it came of round {max(bad)}: {charges[max(bad)]}" if bad else ""


def tainted(line: Iterable[LineageNode], poisoned: Set[int]) -> frozenset[int]:
    """The poisoned rounds and every round derived from one."""
    return frozenset(poisoned | roots(line, poisoned).keys())


def newest_clean(
    line: Iterable[LineageNode], poisoned: Set[int], pruned: Set[int] = frozenset()
) -> int:
    """The newest round that is neither tainted nor pruned; 0 without one."""
    line = list(line)
    bad = tainted(line, poisoned) | pruned
    return max((one.number for one in line if one.number not in bad), default=START)
