"""What changed from one table to another: columns, rows, and how values are distributed."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from shoal.controller.data.records import Column, ColumnChange, ColumnShift, TableDiff
from shoal.controller.data.stored_tables import StoredTable, hash_table

#: Values of a column that are compared: evenly from all rows. Example rows.
_SAMPLE, _EXAMPLES = 65_536, 5
#: Distinct values of text up to which shares are compared.
_NAMES = 1_000
#: Distance from which a column is said to differ, where chance does not explain it.
_DIFFERS, _CRITICAL = 0.05, 1.63


def diff_tables(
    before: StoredTable,
    after: StoredTable,
    columns_before: Sequence[Column],
    columns_after: Sequence[Column],
) -> TableDiff:
    """Compare two tables. Rows are the same when their values in the common columns are."""
    old, new = ({c.name: c for c in columns} for columns in (columns_before, columns_after))
    common = [name for name in new if name in old]
    keys = hash_table(before, common).some, hash_table(after, common).some
    same = _in_both(*keys) if common else 0
    shifts = [_shift(name, before, after) for name in common]
    return TableDiff(
        rows_before=len(before), rows_after=len(after), rows_same=same,
        rows_added=len(after) - same, rows_removed=len(before) - same,
        added=_only(keys[1], keys[0]), removed=_only(keys[0], keys[1]),
        columns=[*_changes(old, new)],
        shifts=sorted(filter(None, shifts), key=lambda one: -one.distance),
    )  # fmt: skip


def _changes(old: Mapping[str, Column], new: Mapping[str, Column]) -> Iterator[ColumnChange]:
    for name in dict.fromkeys([*old, *new]):
        was, now = old.get(name), new.get(name)
        pairs = [
            ("type", was.dtype if was else "", now.dtype if now else ""),
            ("role", was.role if was else "", now.role if now else ""),
        ]
        for what, one, other in pairs:
            if one != other:
                yield ColumnChange(column=name, what=what, before=one, after=other)


def _in_both(before: npt.NDArray[np.uint64], after: npt.NDArray[np.uint64]) -> int:
    """Rows that are in both; one that is twice in one and three times in the other counts twice."""
    one, counts = np.unique(before, return_counts=True)
    other, more = np.unique(after, return_counts=True)
    _, i, j = np.intersect1d(one, other, assume_unique=True, return_indices=True)
    return int(np.minimum(counts[i], more[j]).sum())


def _only(keys: npt.NDArray[np.uint64], others: npt.NDArray[np.uint64]) -> list[int]:
    """Numbers, from 1, of the first rows that the other table has not."""
    return [int(i) + 1 for i in np.flatnonzero(~np.isin(keys, others))[:_EXAMPLES]]


def _shift(name: str, before: StoredTable, after: StoredTable) -> ColumnShift | None:
    """How far the distributions of a column are apart; None where they cannot be compared."""
    if before.is_text(name) != after.is_text(name):
        return None
    missing = tuple(100 * table.missing(name) / len(table) for table in (before, after))
    found = (
        _of_names(name, before, after) if before.is_text(name) else _of_numbers(name, before, after)
    )
    if found is None:
        return None
    distance, critical, words = found
    apart = max(distance, abs(missing[0] - missing[1]) / 100)
    return ColumnShift(
        column=name, distance=round(apart, 4), differs=apart > max(_DIFFERS, critical),
        missing_before=missing[0], missing_after=missing[1],
        before=words[0], after=words[1],
    )  # fmt: skip


def _of_numbers(
    name: str, before: StoredTable, after: StoredTable
) -> tuple[float, float, tuple[str, str]] | None:
    """Kolmogorov-Smirnov's distance: the largest of the two distribution functions."""
    import pandas as pd

    samples = []
    for table in (before, after):
        values = table[name].iloc[:: max(len(table) // _SAMPLE, 1)]
        if not (pd.api.types.is_numeric_dtype(values) or values.isna().all()):
            return None
        numbers = values.to_numpy(np.float64, na_value=np.nan)
        samples.append(np.sort(numbers[np.isfinite(numbers)]))
    one, other = samples
    if not len(one) or not len(other):
        return None
    at = np.concatenate(samples)
    ranks = [np.searchsorted(s, at, "right") / len(s) for s in samples]
    words = [f"{s[0]:.4g} to {s[-1]:.4g}, median {np.median(s):.4g}" for s in samples]
    distance = float(np.abs(ranks[0] - ranks[1]).max())
    return distance, _chance(len(one), len(other)), (words[0], words[1])


def _of_names(
    name: str, before: StoredTable, after: StoredTable
) -> tuple[float, float, tuple[str, str]] | None:
    """Total variation: half of the sum over all values of how far their shares are apart."""
    counts = [table[name].value_counts(normalize=True) for table in (before, after)]
    if max(map(len, counts)) > _NAMES or not min(map(len, counts)):
        return None
    one, other = ({str(v): float(share) for v, share in c.items()} for c in counts)
    apart = {v: abs(one.get(v, 0.0) - other.get(v, 0.0)) for v in {**one, **other}}
    largest = sorted(apart, key=lambda value: -apart[value])[:3]
    words = [", ".join(f"{v} {100 * s.get(v, 0.0):.3g} %" for v in largest) for s in (one, other)]
    chance = _chance(len(before), len(after))
    return sum(apart.values()) / 2, chance, (words[0], words[1])


def _chance(n: int, m: int) -> float:
    """The distance of Kolmogorov and Smirnov that chance exceeds in 1 of 100 comparisons."""
    return float(_CRITICAL * np.sqrt((n + m) / (n * m)))
