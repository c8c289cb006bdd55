"""Sharing rows out: unequally between stations, and by whole groups between training and stream."""

from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np


def unequal(
    labels: Sequence[str], parts: int, random: np.random.Generator, *, alpha: float = 2.0
) -> list[list[int]]:
    """Row numbers of `parts` shares, each with its own mix of labels (Dirichlet, `alpha`).

    The usual way to make data non-identical in federated learning: Hsu, Qi & Brown 2019.
    No share is empty as long as there are as many rows as parts.
    """
    by_label: dict[str, list[int]] = defaultdict(list)
    for row, label in enumerate(labels):
        by_label[label].append(row)
    shares: list[list[int]] = [[] for _ in range(parts)]
    for label in sorted(by_label):
        rows = random.permutation(by_label[label])
        cuts = np.cumsum(random.dirichlet([alpha] * parts))[:-1] * len(rows)
        for share, piece in zip(shares, np.split(rows, cuts.astype(int)), strict=True):
            share.extend(int(row) for row in piece)
    for share in shares:
        if not share:
            largest = max(shares, key=len)
            share.append(largest.pop())
    return [sorted(share) for share in shares]


def held_back(
    keys: Sequence[str], groups: Sequence[str], share: float, random: np.random.Generator
) -> set[int]:
    """Row numbers to hold back: about `share` of each key's rows, by whole groups.

    keys    what must stay balanced (site and label of each row); a group counts for its usual one
    groups  rows of one group stay together; rows on their own have a group each
    """
    rows_of: dict[str, list[int]] = defaultdict(list)
    for row, group in enumerate(groups):
        rows_of[group].append(row)
    groups_of: dict[str, list[str]] = defaultdict(list)
    for group, rows in rows_of.items():
        usual = Counter(keys[row] for row in rows).most_common(1)[0][0]
        groups_of[usual].append(group)
    kept: set[int] = set()
    for key in sorted(groups_of):
        names = sorted(groups_of[key])
        random.shuffle(names)
        wanted, taken = share * sum(len(rows_of[name]) for name in names), 0
        for name in names[:-1]:  # one group at least is left to learn from
            if taken < wanted:
                kept.update(rows_of[name])
                taken += len(rows_of[name])
    return kept
