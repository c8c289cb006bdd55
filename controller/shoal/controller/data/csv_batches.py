"""CSV files in batches of rows whose columns have one type over the whole file."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from msgspec.structs import replace

from shoal.controller.data import csv_detection, csv_files
from shoal.controller.data.csv_files import Opener, Uneven
from shoal.controller.data.masking import Masker
from shoal.controller.data.records import CsvFormat

if TYPE_CHECKING:
    import pandas as pd

#: Cells, and rows, of a batch.
CELLS, ROWS = 1 << 21, 65_536
EMPTY, BOOL, SOME_BOOL, INT, UINT, FLOAT, TEXT = (
    "empty", "bool", "bool, some missing", "int64", "uint64", "float64", "str"
)  # fmt: skip
_NUMBERS = frozenset({INT, UINT, FLOAT})
#: What a column is whose batches are two things; by both, in either order.
_JOINED = {
    frozenset({EMPTY, BOOL}): SOME_BOOL,
    frozenset({EMPTY, SOME_BOOL}): SOME_BOOL,
    frozenset({BOOL, SOME_BOOL}): SOME_BOOL,
    frozenset({EMPTY, INT}): FLOAT,
    frozenset({EMPTY, UINT}): FLOAT,
    frozenset({EMPTY, FLOAT}): FLOAT,
}


class CsvScan:
    """What the columns of a CSV file are, found by reading all of it once, in batches.

    kinds    of each column, in order
    uneven   whether there may be rows that have not as many values as the header
    rows     that were read
    """

    def __init__(
        self,
        opened: Opener,
        how: CsvFormat,
        decimal: str,
        max_rows: int,
        masker: Masker | None = None,
    ) -> None:
        """
        decimal   as detected: "" where no value shows the mark; `how` then has "." for it
        masker    masks each batch; nothing but `uneven` is found in rows before that
        """
        self._masker = masker
        self._texts = dict.fromkeys(masker.texts, TEXT) if masker else {}
        self._opened, self._how, self._decimal, self._max_rows = opened, how, decimal, max_rows
        self.kinds: dict[str, str] = {}
        self._marks: dict[str, str | None] = {}
        self._examples: dict[str, str] = {}
        self.uneven, self.rows = False, 0

    def __iter__(self) -> Iterator["pd.DataFrame"]:
        """The batches as they are read: with the types of their own values."""
        for raw in read_batches(self._opened, self._how, self._max_rows, self._texts):
            self.uneven = self.uneven or _may_be_uneven(raw)
            self.rows += len(raw)
            frame = self._masker.mask(raw) if self._masker else raw
            for name in frame.columns:
                self._look(str(name), frame[name])
            yield frame

    def thousands(self) -> str:
        """The mark between groups of thousands; "" for none. FormatError as thousands_of."""
        marks = {name: mark for name, mark in self._marks.items() if mark}
        return csv_detection.one_mark(marks, self._examples, self._decimal)

    def settled(self, how: CsvFormat) -> dict[str, str]:
        """The kind of every column when the file is read as `how` says."""
        grouped = self._grouped(how)
        return {name: FLOAT if name in grouped else kind for name, kind in self.kinds.items()}

    def batches(self, how: CsvFormat) -> Iterator["pd.DataFrame"]:
        """The batches once more, with the types of `settled`."""
        types = {name: kind for name, kind in self.kinds.items() if kind in {TEXT, *_NUMBERS}}
        grouped = self._grouped(how)
        if self._masker:
            self._masker.restart()
            types = self._masker.as_spelled(types) | self._texts
        for raw in read_batches(self._opened, how, self._max_rows, types):
            frame = self._masker.mask(raw) if self._masker else raw
            for name in grouped:
                frame[name] = csv_files.ungrouped(frame[name], how.decimal, how.thousands)
            yield frame

    def _grouped(self, how: CsvFormat) -> list[str]:
        return [name for name, mark in self._marks.items() if mark and mark == how.thousands]

    def _look(self, name: str, values: "pd.Series") -> None:
        kind = kind_of(values)
        self.kinds[name] = joined(self.kinds.get(name, kind), kind)
        mark = self._marks.get(name, "")
        if self._masker and self._masker.is_masked(name):
            mark = None  # what it is now is no number with groups of thousands
        elif kind == TEXT and mark is not None:
            texts = values.dropna()
            mark = csv_files.group_mark(texts, self._how.decimal, mark)
            if mark:
                self._examples.setdefault(name, str(texts.iloc[0]))
        self._marks[name] = None if kind in (BOOL, SOME_BOOL) else mark


def read_batches(
    opened: Opener, how: CsvFormat, max_rows: int, types: dict[str, str] | None = None
) -> Iterator["pd.DataFrame"]:
    """Rows as pandas reads them, at most max_rows + 1, in batches.

    types   of columns; those of other columns are found for each batch
    """
    import pandas as pd

    with csv_files.open_text(opened, how.encoding, how.skip) as text:
        columns = csv_files.width_of(text, how.separator)
    with csv_files.open_even(opened, how) as content, pd.read_csv(
        content, sep=how.separator, decimal=how.decimal, dtype=types,
        nrows=max_rows + 1, chunksize=max(min(CELLS // columns, ROWS), 1), low_memory=False,
    ) as reader:  # fmt: skip
        yield from reader


def header_of(opened: Opener, how: CsvFormat) -> list[str]:
    """Names of the columns as the file spells them, with those that are there twice; as pandas
    names those without a name."""
    with csv_files.open_even(opened, how) as text:
        found = csv_files.records_of(iter(text), how.separator, how.skip, 1)
    return [cell or f"Unnamed: {i}" for i, cell in enumerate(found[0].cells)] if found else []


def find_uneven(opened: Opener, how: CsvFormat) -> tuple[CsvFormat, Uneven]:
    """`how`, that says of rows which have not as many values as the header; and those."""
    uneven = csv_files.find_uneven(opened, how)
    return (replace(how, uneven=uneven.rows) if uneven.rows else how), uneven


def kind_of(values: "pd.Series") -> str:
    """What a batch of a column is, as pandas read it."""
    import pandas as pd

    dtype = str(values.dtype)
    if dtype == FLOAT:
        return EMPTY if values.isna().all() else FLOAT
    if dtype in (BOOL, INT, UINT):
        return dtype
    if dtype != "object":
        return TEXT
    return SOME_BOOL if pd.api.types.infer_dtype(values, skipna=True) == "boolean" else TEXT


def joined(one: str, other: str) -> str:
    """What a column is of which parts are `one` and `other`.

    >>> joined("int64", "float64"), joined("int64", "empty"), joined("bool", "str")
    ('float64', 'float64', 'str')
    """
    both = frozenset({one, other})
    if len(both) == 1:
        return one
    if found := _JOINED.get(both):
        return found
    return FLOAT if both <= _NUMBERS else TEXT


def _may_be_uneven(frame: "pd.DataFrame") -> bool:
    """Whether a row may be shorter than the header, or every row longer by one."""
    import pandas as pd

    return (
        not isinstance(frame.index, pd.RangeIndex)
        or not len(frame.columns)
        or bool(frame.iloc[:, -1].isna().any())
    )
