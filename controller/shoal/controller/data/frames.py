"""Columns of a table: their roles and ranges, and the rows that nothing is trained on."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt

from shoal.controller.data import csv_detection
from shoal.controller.data.records import Column, DatasetVersion
from shoal.controller.data.stored_tables import StoredTable
from shoal.errors import DatasetError

if TYPE_CHECKING:
    import pandas as pd

MAX_COLUMNS = 4_096
#: Distinct values that a column's description lists.
MAX_VALUES = 100


#: A whole table in memory, or one that is stored, of which a column is read at a time.
Frame: TypeAlias = "pd.DataFrame | StoredTable"


def describe(
    frame: Frame,
    *,
    label: str,
    site: str,
    split: str,
    drop: Sequence[str],
    unlabelled: bool = False,
) -> list[Column]:
    """Every column with its role and range; DatasetError if the roles do not fit the table."""
    if unlabelled and label:
        raise DatasetError(f"label {label!r} of an unlabelled table", "give one of the two")
    known = [str(c) for c in frame.columns]
    for role, wanted in (("label", [label]), ("site", [site]), ("split", [split]), ("drop", drop)):
        for column in wanted:
            if column and column not in known:
                raise DatasetError(
                    f"no column {column!r} for {role}", f"there are: {_listed(known)}"
                )
    if not label and not unlabelled:
        raise DatasetError(
            "which column is the label?",
            f"say --label or --unlabelled; there are: {_listed(known)}",
        )
    # A column with another role is never a feature, even when it is listed twice.
    roles = dict.fromkeys(drop, "dropped") | {split: "split", site: "site", label: "label"}
    columns = [_column(frame, c, roles.get(c, "feature")) for c in known]
    _check_features(frame, columns)
    if label:
        _check_label(frame, label)
    return columns


def left_out(frame: Frame, columns: Sequence[Column]) -> dict[str, npt.NDArray[np.bool_]]:
    """Rows that are not used, by reason, shape (n,) each; a row has one reason, the first.

    A value beyond float32 is infinite for a model.
    """
    unlabelled = np.zeros(len(frame), bool)
    infinite, missing = unlabelled.copy(), unlabelled.copy()
    for column in columns:
        if column.role == "label" and column.missing:
            unlabelled |= frame[column.name].isna().to_numpy()
        if column.role == "feature" and _may_be_left_out(column):
            with np.errstate(over="ignore"):
                values = frame[column.name].to_numpy(np.float32, na_value=np.nan)
            infinite |= np.isinf(values)
            missing |= np.isnan(values)
    infinite &= ~unlabelled
    missing &= ~(unlabelled | infinite)
    return {"label missing": unlabelled, "infinite value": infinite, "value missing": missing}


def names_of(values: "pd.Series") -> np.ndarray:
    """Values as names, shape (n,): 100, 100.0 and "100" are the same name; missing is ""."""
    import pandas as pd

    if pd.api.types.is_float_dtype(values):
        whole = values.dropna()
        if len(whole) and (whole == whole.round()).all():
            values = values.astype("Int64")
    text = values.astype("string").str.strip().fillna("")
    return text.to_numpy(dtype=object).astype(str)


def features_of(dataset: DatasetVersion) -> list[str]:
    """Names of the feature columns, in the model's order."""
    return [c.name for c in dataset.columns if c.role == "feature"]


def in_order(names: Iterable[str]) -> list[str]:
    """Distinct names, sorted as numbers if all are: "2" before "10"."""
    distinct = {str(name) for name in names}
    try:
        return sorted(distinct, key=float)
    except ValueError:
        return sorted(distinct)


def _column(frame: Frame, name: str, role: str) -> Column:
    import pandas as pd

    if isinstance(frame, StoredTable) and frame.is_text(name) and role not in ("label", "site"):
        return Column(name=name, dtype="str", role=role, missing=frame.missing(name))
    values = frame[name]
    numeric = pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values)
    known = _finite(values) if numeric else values.dropna()
    named: list[str] = []
    if role in ("label", "site"):
        named = in_order(names_of(pd.Series(pd.unique(known))))
    return Column(
        name=name,
        dtype=str(values.dtype),
        role=role,
        missing=len(values) - len(known),
        low=float(known.min()) if numeric and len(known) else None,
        high=float(known.max()) if numeric and len(known) else None,
        values=named if len(named) <= MAX_VALUES else [],
    )


def _finite(values: "pd.Series") -> np.ndarray:
    """The finite ones of a column of numbers, shape (n,)."""
    array = values.to_numpy(np.float64, na_value=np.nan) if values.hasnans else values.to_numpy()
    finite = np.isfinite(array)
    return array if finite.all() else array[finite]


def _check_features(frame: Frame, columns: list[Column]) -> None:
    features = [c for c in columns if c.role == "feature"]
    if empty := [c.name for c in features if c.missing == len(frame)]:
        each = "has" if len(empty) == 1 else "each have"
        raise DatasetError(
            f"{_listed(empty)} {each} no value in any row", f"--drop {','.join(empty[:20])}"
        )
    text = [c.name for c in features if c.low is None and "bool" not in c.dtype]
    if text:
        example = str(frame[text[0]].dropna().iloc[0])
        comma = csv_detection.has_decimal_comma(example)
        raise DatasetError(
            f"not numbers: {_listed(text)}",
            f"if {example} has a decimal comma: --decimal ," if comma
            else f"--drop {','.join(text[:20])}, or encode them as numbers",
        )  # fmt: skip
    if not features:
        raise DatasetError("no feature columns are left", "drop fewer columns")


def _may_be_left_out(column: Column) -> bool:
    largest = max(abs(column.low or 0.0), abs(column.high or 0.0))
    return column.missing > 0 or largest > float(np.finfo(np.float32).max)


def _check_label(frame: Frame, label: str) -> None:
    distinct = in_order(frame[label].dropna().unique().astype(str))
    if len(distinct) < 2:
        raise DatasetError(
            f"label {label!r} has {len(distinct)} distinct value: {_listed(distinct)}",
            "nothing can be learned from it; choose another column or add rows",
        )


def _listed(names: Sequence[str], most: int = 20) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
