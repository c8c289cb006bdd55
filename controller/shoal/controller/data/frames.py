"""Uploaded tables: parsed from CSV or Parquet, with typed columns and roles, and validated."""

import gzip
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from shoal.controller.data.records import Column, DatasetVersion
from shoal.errors import DatasetError

if TYPE_CHECKING:
    import pandas as pd

MAX_BYTES = 2 << 30  # after decompression: a small gzip may expand to a very large table
MAX_ROWS, MAX_COLUMNS = 5_000_000, 4_096
#: Distinct values that a column's description lists.
MAX_VALUES = 100
_GZIP, _PARQUET = b"\x1f\x8b", b"PAR1"
_DELIMITERS = ",;\t|"


def read_frame(path: Path, name: str = "") -> "pd.DataFrame":
    """Read a CSV, gzipped CSV or Parquet file; the format is detected from the content.

    DatasetError, naming `name`, when it cannot be read, is empty or too large.
    """
    import pandas as pd

    name = name or path.name
    try:
        with path.open("rb") as file:
            head = file.read(4)
            file.seek(0)
            if head == _PARQUET:
                frame = pd.read_parquet(file)
            else:
                frame = _read_csv(_unpacked(file, head))
    except ImportError as error:
        raise DatasetError(f"{name} is Parquet", "pip install pyarrow, or upload CSV") from error
    except pd.errors.EmptyDataError as error:
        raise DatasetError(f"{name} is empty", "upload a CSV with a header line") from error
    except (ValueError, OSError, EOFError) as error:  # ParserError, UnicodeDecodeError, BadGzipFile
        raise DatasetError(
            f"{name} cannot be read as a table: {_first_line(error)}",
            "upload UTF-8 CSV with one header line, CSV.gz or Parquet",
        ) from error
    return _validated(frame, name)


def describe(
    frame: "pd.DataFrame",
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
    columns = [_column(c, frame[c], roles.get(c, "feature")) for c in known]
    _check_features(columns)
    if label:
        _check_label(frame, label)
    return columns


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


class _Bounded(io.RawIOBase):
    """Stream that raises an error after MAX_BYTES, instead of filling the memory."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream, self._left = stream, MAX_BYTES

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        data = self._stream.read(len(buffer))
        self._left -= len(data)
        if self._left < 0:
            raise ValueError(f"more than {MAX_BYTES >> 20} MiB when unpacked")
        buffer[: len(data)] = data
        return len(data)


def _unpacked(file: BinaryIO, head: bytes) -> io.BufferedReader:
    stream = gzip.GzipFile(fileobj=file) if head.startswith(_GZIP) else file
    return io.BufferedReader(_Bounded(stream), 1 << 16)  # type: ignore[arg-type]


def _read_csv(stream: io.BufferedReader) -> "pd.DataFrame":
    import pandas as pd

    first = stream.peek(1 << 16).partition(b"\n")[0]
    if b"\0" in first:
        raise ValueError("it is binary, not text")
    delimiter = max(_DELIMITERS, key=lambda c: first.count(c.encode()))
    return pd.read_csv(stream, sep=delimiter, nrows=MAX_ROWS + 1, encoding="utf-8-sig")


def _validated(frame: "pd.DataFrame", name: str) -> "pd.DataFrame":
    frame.columns = [str(c).strip() for c in frame.columns]
    if not len(frame):
        raise DatasetError(f"{name} has a header and no rows", "add rows")
    if len(frame) > MAX_ROWS or len(frame.columns) > MAX_COLUMNS:
        raise DatasetError(
            f"{name} is larger than {MAX_ROWS} rows of {MAX_COLUMNS} columns",
            "upload a part of it",
        )
    if not frame.columns.is_unique:
        twice = frame.columns[frame.columns.duplicated()][0]
        raise DatasetError(f"{name} has two columns {twice!r}", "rename one")
    return frame


def _column(name: str, values: "pd.Series", role: str) -> Column:
    import pandas as pd

    numeric = pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values)
    finite = values[np.isfinite(values)] if numeric else values.dropna()
    named = in_order(names_of(finite)) if role in ("label", "site") else []
    return Column(
        name=name,
        dtype=str(values.dtype),
        role=role,
        missing=len(values) - len(finite),
        low=float(finite.min()) if numeric and len(finite) else None,
        high=float(finite.max()) if numeric and len(finite) else None,
        values=named if len(named) <= MAX_VALUES else [],
    )


def _check_features(columns: list[Column]) -> None:
    features = [c for c in columns if c.role == "feature"]
    text = [c.name for c in features if c.low is None and "bool" not in c.dtype]
    if text:
        raise DatasetError(
            f"not numbers: {_listed(text)}", "drop these columns, or encode them as numbers"
        )
    if not features:
        raise DatasetError("no feature columns are left", "drop fewer columns")


def _check_label(frame: "pd.DataFrame", label: str) -> None:
    distinct = in_order(frame[label].dropna().unique().astype(str))
    if len(distinct) < 2:
        raise DatasetError(
            f"label {label!r} has {len(distinct)} distinct value: {_listed(distinct)}",
            "nothing can be learned from it; choose another column or add rows",
        )


def _listed(names: Sequence[str], most: int = 20) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
