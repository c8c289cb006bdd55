"""Reads a CSV or Parquet file of rows, labels and times into memory."""

import array
import csv
import datetime
import gzip
import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from shoal.agent.host.optional_libraries import needs
from shoal.agent.serving.labels import number
from shoal.errors import DatasetError
from shoal.sketch import F32

#: Largest file, in rows.
ROWS = 1_000_000


class Table(NamedTuple):
    """values float32 (n, columns), NaN for missing; labels as text; times Unix seconds (n,)."""

    columns: tuple[str, ...]
    values: F32
    labels: list[str] | None
    times: list[float] | None = None


def read_table(path: Path, label: str = "", time: str = "", *, hint: str = "") -> Table:
    """A table from .csv, .csv.gz or .parquet; DatasetError names file and line, with a hint.

    label, time   columns of the true class or value, and of the time; "" for none
    hint          of the error for a missing column; "" names the setting of the source
    """
    try:
        if path.suffix == ".parquet":
            return _parquet(path, label, time, hint)
        opened = gzip.open if path.suffix == ".gz" else open
        with opened(path, "rt", newline="", encoding="utf-8") as file:
            return _csv(path, csv.reader(file), label, time, hint)
    except OSError as error:
        raise DatasetError(f"{path}: {error.strerror or error}", "is the path right?") from error
    except (UnicodeDecodeError, csv.Error, EOFError) as error:
        raise DatasetError(f"{path} is no CSV file in UTF-8: {error}") from error


def seconds(cell: Any, where: str = "") -> float:
    """Unix seconds of a number, a date or ISO 8601 text (UTC without a zone).

    >>> seconds("1970-01-01T01:00:00+01:00"), seconds("1970-01-01 00:00:10"), seconds("12.5")
    (0.0, 10.0, 12.5)

    DatasetError for anything else.
    """
    value = number(cell)
    if math.isfinite(value):
        return value
    try:
        parsed = cell if isinstance(cell, datetime.datetime) else datetime.datetime.fromisoformat(
            str(cell).strip()
        )  # fmt: skip
    except ValueError:
        raise DatasetError(
            f"{where}{str(cell)[:40]!r} is no time", "write Unix seconds or ISO 8601"
        ) from None
    zone = parsed.tzinfo or datetime.UTC
    return parsed.replace(tzinfo=zone).timestamp()


def stamp(path: Path) -> tuple[int, int]:
    """Modification time and size of a file; (0, 0) when it does not exist."""
    try:
        found = path.stat()
    except OSError:
        return (0, 0)
    return found.st_mtime_ns, found.st_size


def _csv(path: Path, lines: Iterator[list[str]], label: str, time: str, hint: str) -> Table:
    head = [name.strip() for name in next(lines, [])]
    if not head:
        raise DatasetError(f"{path} is empty")
    _check_columns(path, head, label, time, hint)
    apart = {head.index(name) for name in (label, time) if name}
    values = array.array("f")  # a list of floats is eight times as large
    labels, times = list[str](), list[float]()
    for line_number, line in enumerate(lines, 2):
        if len(line) != len(head):
            raise DatasetError(
                f"{path}:{line_number} has {len(line)} fields, the header {len(head)}"
            )
        if line_number > ROWS + 1:
            raise DatasetError(f"{path} has more than {ROWS} rows", "split it")
        values.extend(number(cell) if i not in apart else 0.0 for i, cell in enumerate(line))
        if label:
            labels.append(line[head.index(label)])
        if time:
            times.append(seconds(line[head.index(time)], f"{path}:{line_number}: "))
    table = np.frombuffer(values, np.float32).reshape(-1, len(head))
    return _table(path, head, table, labels if label else None, times if time else None)


def _parquet(path: Path, label: str, time: str, hint: str) -> Table:
    pa, pq = needs("pyarrow"), needs("pyarrow.parquet")
    try:
        found = pq.ParquetFile(path)
        if found.metadata.num_rows > ROWS:
            raise DatasetError(f"{path} has more than {ROWS} rows", "split it")
        head = list(found.schema_arrow.names)
        _check_columns(path, head, label, time, hint)
        read = found.read()
    except pa.ArrowException as error:
        raise DatasetError(f"{path} is no Parquet file: {str(error)[:200]}") from error
    columns = [_floats(pa, read.column(name)) for name in head]
    labels = [str(cell) for cell in read.column(label).to_pylist()] if label else None
    times = [seconds(c, f"{path}: ") for c in read.column(time).to_pylist()] if time else None
    wide = np.stack(columns, axis=1) if columns else np.empty((0, 0), np.float32)
    return _table(path, head, wide, labels, times)


def _floats(pa: Any, column: Any) -> F32:
    """A column as float32; NaN for null and for text that is no number."""
    kind = column.type
    if pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        floats: F32 = column.cast(pa.float64()).to_numpy().astype(np.float32)
        return floats
    return np.array([number(cell) for cell in column.to_pylist()], np.float32)


def _check_columns(path: Path, head: list[str], label: str, time: str, hint: str) -> None:
    for what, name in (("label", label), ("time", time)):
        if name and name not in head:
            raise DatasetError(
                f"{path} has no {what} column {name!r}",
                f"it has: {', '.join(head[:10])}; "
                + (hint or f"set {what} of the source in agent.toml"),
            )


def _table(
    path: Path, head: list[str], values: F32, labels: list[str] | None, times: list[float] | None
) -> Table:
    if not len(values):
        raise DatasetError(f"{path} has a header and no rows")
    if times and any(b < a for a, b in itertools.pairwise(times)):
        raise DatasetError(f"{path}: its times are not in order", "sort it by time")
    return Table(tuple(head), values, labels, times)
