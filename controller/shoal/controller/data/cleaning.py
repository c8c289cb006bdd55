"""Cleaning report: what in a table is likely to mislead training, with counts and example rows."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from shoal.controller.data import (
    label_leaks,
    number_checks,
    personal_columns,
    splits,
    text_checks,
)
from shoal.controller.data.frames import names_of
from shoal.controller.data.records import (
    CleaningReport,
    Column,
    LeftOut,
    Masking,
    TableFinding,
)
from shoal.controller.data.stored_tables import Hashes, StoredTable

if TYPE_CHECKING:
    import pandas as pd

Mask = npt.NDArray[np.bool_]
#: Example rows of a finding; findings of a report.
EXAMPLES, MOST = 5, 200
#: A class below this share of the rows, or with fewer rows, is rare.
_RARE, _FEW = 0.05, 10
#: Distinct values of a label up to which it is looked at as classes.
_CLASSES = 50
#: Checks in the order of a report: those that warn first.
WARNINGS = (
    "personal", "leak", "overlap", "contradiction", "sentinel", "unit", "range", "encoding",
    "spelling",
)  # fmt: skip
NOTES = ("left out", "missing", "duplicates", "constant", "skew")
CHECKS = (*WARNINGS, *NOTES)


def duplicates_of(hashes: npt.NDArray[np.uint64]) -> Mask:
    """Rows, shape (n,), that are the same as one before them."""
    again = np.ones(len(hashes), bool)
    again[np.unique(hashes, return_index=True)[1]] = False
    return again


def examine(
    table: StoredTable,
    columns: Sequence[Column],
    hashes: Hashes,
    left_out: Sequence[LeftOut],
    unused: Mapping[str, Mask],
    masking: Masking | None = None,
) -> CleaningReport:
    """Look for everything of CHECKS.

    hashes     `some` of them are of the features
    left_out   rows of the file that are not in the table, and others that are not used
    unused     of the latter, by reason, which rows they are: shape (n,)
    masking    how the table was masked
    """
    label = next((c for c in columns if c.role == "label"), None)
    found = [*_left_out(left_out, unused), *_same_rows(table, columns, hashes, label)]
    ruled = {one.name for one in masking.columns} if masking else set()
    found += personal_columns.personal_findings(table, columns, ruled, finding)
    step, samples = label_leaks.step_of(len(table)), {}
    for column in columns:
        values = _numbers(table, column)
        found += _column(table, column, values)
        if values is not None:
            samples[column.name] = values[::step].copy()
    if label is not None:
        found += _classes(table, label)
        found += label_leaks.findings_of(samples, table[label.name].iloc[::step], label.name)
    found.sort(key=lambda one: (CHECKS.index(one.check), -one.count))
    return CleaningReport(
        rows=len(table), checks=list(CHECKS), findings=found[:MOST], more=len(found[MOST:])
    )


def finding(
    check: str, columns: Sequence[str], rows: Mask, what: str, hint: str = ""
) -> TableFinding:
    """A finding about the rows of a mask (n,), with the first of them as examples."""
    return TableFinding(
        check=check, warns=check in WARNINGS, columns=list(columns), count=int(rows.sum()),
        rows=[int(i) + 1 for i in np.flatnonzero(rows)[:EXAMPLES]], what=what, hint=hint,
    )  # fmt: skip


def _left_out(left_out: Sequence[LeftOut], unused: Mapping[str, Mask]) -> Iterator[TableFinding]:
    for one in left_out:
        if one.reason in unused:
            yield finding("left out", [], unused[one.reason], f"not used: {one.reason}")
        else:
            where = f", the first: {one.names[0]} of the file" if one.names else ""
            yield TableFinding(
                check="left out", warns=False, columns=[], count=one.count, rows=[],
                what=f"not in the dataset: {one.reason}{where}", hint="correct them, and add again",
            )  # fmt: skip


def _same_rows(
    table: StoredTable, columns: Sequence[Column], hashes: Hashes, label: Column | None
) -> Iterator[TableFinding]:
    again = duplicates_of(hashes.rows)
    split = next((c.name for c in columns if c.role == "split"), "")
    if again.any():
        hint = "" if split else "--split COLUMN keeps what belongs together on one side"
        yield finding("duplicates", [], again, "rows are the same as one before them", hint)
    if label is not None:
        names = _codes(table[label.name])
        if (other := _several(hashes.some, names)).any():
            what = f"the same features with another {label.name}"
            yield finding("contradiction", [label.name], other, what, "find out which is right")
    if split:
        group = names_of(table[split])
        parts = splits.parts_of(group)
        sides = _codes_of(group) if parts is None else parts.astype(np.int64)
        if (both := _several(hashes.some, sides)).any():
            word = "groups" if parts is None else "training and test"
            what = f"the same features in several {word}, so metrics are too good"
            yield finding("overlap", [split], both, what, "remove them from one side")


def _several(keys: npt.NDArray[np.uint64], codes: npt.NDArray[np.int64]) -> Mask:
    """Rows, shape (n,), whose key is found with several codes; a code of -1 does not count."""
    order = np.lexsort((codes, keys))
    k, c = keys[order], codes[order]
    known = c >= 0
    changes = np.zeros(len(k), bool)
    changes[1:] = (k[1:] == k[:-1]) & (c[1:] != c[:-1]) & known[1:] & known[:-1]
    if not changes.any():
        return changes
    return np.isin(keys, np.unique(k[changes])) & (codes >= 0)


def _codes(values: "pd.Series") -> npt.NDArray[np.int64]:
    import pandas as pd

    return pd.factorize(values)[0].astype(np.int64)


def _codes_of(names: npt.NDArray) -> npt.NDArray[np.int64]:
    return np.unique(names, return_inverse=True)[1].astype(np.int64)


def _numbers(table: StoredTable, column: Column) -> npt.NDArray[np.float64] | None:
    """The values of a feature, shape (n,), with NaN where one is missing; None for others."""
    if column.low is None or column.role != "feature":
        return None
    return table[column.name].to_numpy(np.float64, na_value=np.nan)


def _column(
    table: StoredTable, column: Column, values: npt.NDArray[np.float64] | None
) -> Iterator[TableFinding]:
    name = column.name
    if column.role == "dropped" and not table.is_text(name):
        return
    if table.is_text(name):
        yield from text_checks.text_findings(table, column, finding)
    if column.missing and column.role != "dropped":
        share = 100 * column.missing / len(table)
        what = f"{share:.2g} % of its values are missing"
        yield finding("missing", [name], _missing(table, name), what, _HINTS["missing"])
    if values is None:
        return
    if column.low == column.high:
        what = f"the same value, {column.low:g}, in every row that has one"
        yield finding("constant", [name], ~_missing(table, name), what, f"--drop {name}")
        return
    yield from number_checks.number_findings(name, values, finding)


def _missing(table: StoredTable, name: str) -> Mask:
    parts = [part.is_null().to_numpy(zero_copy_only=False) for part in table.parts(name)]
    return np.concatenate(parts)


def _classes(table: StoredTable, label: Column) -> Iterator[TableFinding]:
    """Classes with few rows."""
    values = table[label.name]
    if not 2 <= len(label.values) <= _CLASSES or (
        values.dtype == np.float64 and not _is_whole(values.dropna().to_numpy())
    ):
        return
    counts = values.value_counts()
    known = int(counts.sum())
    rare = [
        (value, n) for value, n in counts.items()
        if n < max(_FEW, _RARE * known / max(math.log2(len(counts)), 1))
    ]  # fmt: skip
    for value, n in rare[:EXAMPLES]:
        what = f"{value} is {100 * n / known:.2g} % of the labels"
        rows = (values == value).fillna(False).to_numpy(bool)
        yield finding("skew", [label.name], rows, what, "compare classes, not the accuracy alone")


def _is_whole(values: npt.NDArray) -> bool:
    return bool((values == np.round(values)).all())


_HINTS = {"missing": "rows without it are not used: drop the column where many are"}
