"""CSV tables of text cells, without any rounding."""

import csv
import gzip
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from shoal.errors import DatasetError

Row = tuple[str, ...]


class Table(NamedTuple):
    """columns (C,), rows each (C,)."""

    columns: Row
    rows: list[Row]

    def column(self, name: str) -> list[str]:
        """Cells of one column; DatasetError if there is none."""
        if name not in self.columns:
            known = ", ".join(self.columns[:40])
            raise DatasetError(f"no column {name!r}", f"there are: {known}")
        at = self.columns.index(name)
        return [row[at] for row in self.rows]

    def take(self, which: Sequence[int]) -> "Table":
        return Table(self.columns, [self.rows[i] for i in which])

    def where(self, name: str, keep: Callable[[str], bool]) -> "Table":
        """Rows whose cell in column `name` is kept."""
        return self.take([i for i, cell in enumerate(self.column(name)) if keep(cell)])

    def only(self, names: Sequence[str]) -> "Table":
        at = [self.columns.index(name) for name in names]
        return Table(tuple(names), [tuple(row[i] for i in at) for row in self.rows])

    def and_(self, other: "Table") -> "Table":
        """The rows of both; they must have the same columns."""
        if self.columns != other.columns:
            raise DatasetError("tables of different columns cannot be joined")
        return Table(self.columns, self.rows + other.rows)

    def to_bytes(self) -> bytes:
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(self.columns)
        writer.writerows(self.rows)
        return out.getvalue().encode()


def read(path: Path) -> Table:
    """A CSV file, also gzipped; DatasetError if it is invalid."""
    try:
        data = path.read_bytes()
        text = (gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data).decode()
        lines = [tuple(row) for row in csv.reader(io.StringIO(text)) if row]
    except (OSError, UnicodeDecodeError, csv.Error, gzip.BadGzipFile) as error:
        raise DatasetError(f"{path}: {error}", "give a CSV file with a header line") from error
    if len(lines) < 2 or any(len(row) != len(lines[0]) for row in lines):
        raise DatasetError(f"{path}: not a table", "give a CSV file with a header line")
    return Table(lines[0], lines[1:])


def write(table: Table, path: Path) -> None:
    """Write a table atomically: readers see the old file or the new."""
    fresh = path.with_suffix(".new")
    fresh.write_bytes(table.to_bytes())
    fresh.replace(path)
