"""Which facts do the affected devices share that the others lack?

Each value of each attribute is tested by itself: of N devices n are affected and K have the value;
k of those affected, or more, would have it by chance with the hypergeometric tail probability
(Fisher's exact test, one-sided). As many values are looked at, p is corrected by Holm (1979): with
no cause at all, a fact is named once in 1 / LEVEL searches at most.
"""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence

import msgspec
import numpy as np
import numpy.typing as npt

#: Chance of naming a fact where none is the cause; facts that are named, at most.
LEVEL, MOST = 0.01, 3
#: Devices that are named one by one, at most.
NAMED = 3


class SharedFact(msgspec.Struct, frozen=True, kw_only=True):
    """A fact that affected devices share.

    affected, devices   with the fact; others_affected, others: without it
    p                   by chance, corrected for all values that were looked at
    same_as             facts of exactly the same devices: data cannot tell them apart
    """

    attribute: str
    value: str
    affected: int
    devices: int
    others_affected: int
    others: int
    p: float
    same_as: list[str]

    @property
    def words(self) -> str:
        """The fact and its numbers, a clause."""
        also = f" (the same devices as {', '.join(self.same_as)})" if self.same_as else ""
        return (
            f"{self.affected} of {self.devices} with {self.attribute} {self.value}{also}, "
            f"{self.others_affected} of {self.others} others"
        )


def shared_facts(
    facts: Mapping[str, Mapping[str, str]], affected: Collection[str]
) -> list[SharedFact]:
    """Facts by device and attribute -> those that explain which are affected, the surest first.

    >>> fleet = {f"d{i}": {"profile": "pi" if i < 8 else "x86"} for i in range(40)}
    >>> [one.words for one in shared_facts(fleet, [f"d{i}" for i in range(8)])]
    ['8 of 8 with profile pi, 0 of 32 others']
    """
    hit = {name for name in affected if name in facts}
    having: dict[tuple[str, str], set[str]] = defaultdict(set)
    for device, known in facts.items():
        for attribute, value in known.items():
            if value:
                having[attribute, value].add(device)
    groups: dict[frozenset[str], list[tuple[str, str]]] = defaultdict(list)
    for fact, devices in having.items():
        if 1 < len(devices) < len(facts):
            groups[frozenset(devices)].append(fact)
    tables = _log_factorials(len(facts))
    tests = sorted(
        (_tail(tables, len(facts), len(devices), len(hit), len(devices & hit)), sorted(named))
        for devices, named in groups.items()
    )
    found: list[SharedFact] = []
    before = 0.0
    for i, (p, named) in enumerate(tests):
        before = max(before, min(1.0, p * (len(tests) - i)))
        if before > LEVEL or len(found) == MOST:
            break
        devices = having[named[0]]
        found.append(
            SharedFact(
                attribute=named[0][0], value=named[0][1], affected=len(devices & hit),
                devices=len(devices), others_affected=len(hit - devices),
                others=len(facts) - len(devices), p=before,
                same_as=[f"{attribute} {value}" for attribute, value in named[1:]],
            )
        )  # fmt: skip
    return found


def sentence(
    facts: Mapping[str, Mapping[str, str]], affected: Sequence[str], what: str = "affected"
) -> str:
    """Which devices are affected and what explains it, one sentence; "" where none is.

    >>> sentence({"a": {}, "b": {}, "c": {}}, ["b"], "drift")
    '1 of 3 devices drift (b): no fact that they share explains it.'
    """
    hit = sorted(name for name in affected if name in facts)
    if not hit:
        return ""
    number = f"{len(hit)} of {len(facts)} devices {what}"
    if len(hit) == len(facts):
        return f"{number}: what all share explains it, or nothing that is known."
    found = shared_facts(facts, hit)
    if found:
        return f"{number}: {found[0].words}."
    named = f" ({', '.join(hit)})" if len(hit) <= NAMED else ""
    return f"{number}{named}: no fact that they share explains it."


def _log_factorials(most: int) -> npt.NDArray[np.float64]:
    return np.concatenate([[0.0], np.cumsum(np.log(np.arange(1.0, most + 1)))])


def _tail(
    logs: npt.NDArray[np.float64], population: int, having: int, drawn: int, both: int
) -> float:
    """Chance that of `drawn` out of `population` at least `both` are among `having`."""
    x = np.arange(max(both, drawn + having - population), min(drawn, having) + 1)
    if not both:
        return 1.0
    rest = population - having
    terms = (
        logs[having] - logs[x] - logs[having - x]
        + logs[rest] - logs[drawn - x] - logs[rest - drawn + x]
    )  # fmt: skip
    total = logs[population] - logs[drawn] - logs[population - drawn]
    return float(min(1.0, np.exp(terms - total).sum()))
