"""Uploaded tables: parsed from CSV or Parquet, with typed columns and roles, and validated."""

import gzip
import io
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt
from msgspec.structs import replace

from shoal.controller.data import csv_detection, csv_files
from shoal.controller.data.records import Column, CsvFormat, DatasetVersion, LeftOut
from shoal.errors import DatasetError

if TYPE_CHECKING:
    import pandas as pd

MAX_BYTES = 2 << 30  # after decompression: a small gzip may expand to a very large table
MAX_ROWS, MAX_COLUMNS = 5_000_000, 4_096
#: Distinct values that a column's description lists.
MAX_VALUES = 100
#: Rows that are hashed at a time: they fit the processor's cache.
_PART = 65_536
_GZIP, _PARQUET = b"\x1f\x8b", b"PAR1"


class Table(NamedTuple):
    """An uploaded table.

    how       the format that reads its CSV file again; None for Parquet
    left_out  rows of the file that are not in the frame
    """

    frame: "pd.DataFrame"
    how: CsvFormat | None
    left_out: list[LeftOut]


def read_table(path: Path, name: str, asked: CsvFormat) -> Table:
    """Read an uploaded CSV, gzipped CSV or Parquet file, detected from the content.

    asked   format of a CSV file, with "" in it for what is to be detected

    DatasetError, naming `name`, when it cannot be read, is empty or too large, with the line and
    the option that works.
    """
    with _naming(name):
        if _is_parquet(path):
            return Table(read_frame(path, name), None, [])
        opened = partial(_unpacked, path)
        try:
            frame, how, uneven = _read_csv(opened, asked)
        except UnicodeDecodeError:
            csv_files.check_encoding(opened, asked.encoding or "utf-8")
            raise
    left_out = [
        LeftOut(reason="not as many values as columns", count=uneven.rows, names=[f"line {line}"])
        for line in (uneven.line,) if uneven.rows
    ]  # fmt: skip
    return Table(_validated(frame, name), how, left_out)


def read_frame(path: Path, name: str = "", how: CsvFormat | None = None) -> "pd.DataFrame":
    """Read a registered CSV, gzipped CSV or Parquet file as `how` says; errors as `read_table`."""
    import pandas as pd

    name = name or path.name
    with _naming(name):
        if _is_parquet(path):
            frame = pd.read_parquet(path)
        else:
            frame = csv_files.read(partial(_unpacked, path), how or CsvFormat(), MAX_ROWS)
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
    _check_features(frame, columns)
    if label:
        _check_label(frame, label)
    return columns


def left_out(frame: "pd.DataFrame", columns: Sequence[Column]) -> dict[str, npt.NDArray[np.bool_]]:
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


def duplicates(frame: "pd.DataFrame") -> int:
    """Number of rows that are the same as one before them: their 64-bit hashes are."""
    import pandas as pd

    parts = [
        pd.util.hash_pandas_object(frame.iloc[start : start + _PART], index=False).to_numpy()
        for start in range(0, len(frame), _PART)
    ]
    return len(frame) - len(pd.unique(np.concatenate(parts)))


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

    def close(self) -> None:
        self._stream.close()
        super().close()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        data = self._stream.read(len(buffer))
        self._left -= len(data)
        if self._left < 0:
            raise ValueError(f"more than {MAX_BYTES >> 20} MiB when unpacked")
        buffer[: len(data)] = data
        return len(data)


@contextmanager
def _naming(name: str) -> Iterator[None]:
    """Every error of reading as a DatasetError that names the file."""
    import pandas as pd

    try:
        yield
    except ImportError as error:
        raise DatasetError(f"{name} is Parquet", "pip install pyarrow, or upload CSV") from error
    except pd.errors.EmptyDataError as error:
        raise DatasetError(f"{name} is empty", "upload a CSV with a header line") from error
    except csv_files.FormatError as error:
        raise DatasetError(
            f"{name} cannot be read as a table: {error.message}", error.hint
        ) from error
    except (ValueError, OSError, EOFError) as error:  # ParserError, UnicodeDecodeError, BadGzipFile
        raise DatasetError(
            f"{name} cannot be read as a table: {_first_line(error)}",
            "upload UTF-8 CSV with one header line, CSV.gz or Parquet",
        ) from error


def _read_csv(
    opened: csv_files.Opener, asked: CsvFormat
) -> tuple["pd.DataFrame", CsvFormat, csv_files.Uneven]:
    import pandas as pd

    found = csv_detection.detect(opened, asked)
    how = replace(found, decimal=found.decimal or ".")
    uneven = csv_files.Uneven(0, 0)
    try:
        frame = csv_files.read(opened, how, MAX_ROWS)
        if _may_be_uneven(frame):
            uneven = csv_files.find_uneven(opened, how)
    except pd.errors.ParserError:
        uneven = csv_files.find_uneven(opened, how)
        if not uneven.rows:
            raise
    if uneven.rows:
        how = replace(how, uneven=uneven.rows)
        frame = csv_files.read(opened, how, MAX_ROWS)
    if thousands := csv_detection.thousands_of(frame, found.decimal):
        how = replace(how, thousands=thousands)
        csv_files.ungroup(frame, how)
    return frame, how, uneven


def _is_parquet(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(_PARQUET)) == _PARQUET


def _unpacked(path: Path) -> io.BufferedReader:
    with path.open("rb") as file:
        zipped = file.read(len(_GZIP)) == _GZIP
    stream = gzip.GzipFile(path) if zipped else path.open("rb")
    return io.BufferedReader(_Bounded(stream), 1 << 16)  # type: ignore[arg-type]


def _may_be_uneven(frame: "pd.DataFrame") -> bool:
    """Whether a row may be shorter than the header, or every row longer by one."""
    import pandas as pd

    return (
        not isinstance(frame.index, pd.RangeIndex)
        or not len(frame.columns)
        or bool(frame.iloc[:, -1].isna().any())
    )


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


def _check_features(frame: "pd.DataFrame", columns: list[Column]) -> None:
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
            else "drop these columns, or encode them as numbers",
        )  # fmt: skip
    if not features:
        raise DatasetError("no feature columns are left", "drop fewer columns")


def _may_be_left_out(column: Column) -> bool:
    largest = max(abs(column.low or 0.0), abs(column.high or 0.0))
    return column.missing > 0 or largest > float(np.finfo(np.float32).max)


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
