"""Splits of rows: non-IID between stations, and by whole groups between training and stream."""

from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np


def dirichlet_split(
    labels: Sequence[str], parts: int, random: np.random.Generator, *, alpha: float = 2.0
) -> list[list[int]]:
    """Row numbers of `parts` shares, each with its own mix of labels (Dirichlet, `alpha`).

    Source: Hsu, Qi & Brown 2019.
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


def hold_out(
    keys: Sequence[str], groups: Sequence[str], share: float, random: np.random.Generator
) -> set[int]:
    """Row numbers to hold out: about `share` of each key's rows, by whole groups.

    keys    strata to keep balanced (site and label of each row); a group counts for its mode
    groups  rows of one group stay together; rows on their own have a group each
    """
    rows_of: dict[str, list[int]] = defaultdict(list)
    for row, group in enumerate(groups):
        rows_of[group].append(row)
    groups_of: dict[str, list[str]] = defaultdict(list)
    for group, rows in rows_of.items():
        mode = Counter(keys[row] for row in rows).most_common(1)[0][0]
        groups_of[mode].append(group)
    kept: set[int] = set()
    for key in sorted(groups_of):
        names = sorted(groups_of[key])
        random.shuffle(names)
        wanted, taken = share * sum(len(rows_of[name]) for name in names), 0
        for name in names[:-1]:  # at least one group stays for training
            if taken < wanted:
                kept.update(rows_of[name])
                taken += len(rows_of[name])
    return kept
