"""CSV files: their text in any encoding, their records by line, and the table that they are."""

import codecs
import csv
import io
import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from msgspec.structs import replace

from shoal.controller.data.records import CsvFormat
from shoal.errors import DatasetError

if TYPE_CHECKING:
    import pandas as pd

#: Opens the unpacked bytes from their beginning.
Opener = Callable[[], BinaryIO]

SEPARATORS = ",;\t|"
#: Share of rows with too many or too few values above which the format is taken for wrong.
_MOST_UNEVEN = 0.1
#: A line is read in parts of at most so many characters.
_LINE = 1 << 18
#: What groups of thousands are written with: 1.234,5 1,234.5 1'234.5 1 234,5
_GROUPED = re.compile(
    r"[+-]?\d{1,3}(?:(?P<mark>[.,'’ \u00a0\u202f])\d{3})(?:(?P=mark)\d{3})*(?P<rest>[.,]\d*)?"
)
_PLAIN = re.compile(r"[+-]?\d+(?P<rest>[.,]\d*)?([eE][+-]?\d+)?")


class FormatError(DatasetError):
    """A line of a file is not what its format says; the hint has the option that works.

    quoted      what the message ends with from the file, "" for nothing
    unquoted    the message without it
    """

    def __init__(self, message: str, hint: str = "", quoted: str = "") -> None:
        super().__init__(message + quoted, hint)
        self.quoted, self.unquoted = quoted, message


class Record(NamedTuple):
    """A row of the file: number of its first line, from 1, and its cells."""

    line: int
    cells: list[str]


class Uneven(NamedTuple):
    """Rows that have not as many values as the header: how many, and the first one's line."""

    rows: int
    line: int


def open_text(opened: Opener, encoding: str, skip: int) -> io.TextIOWrapper:
    """Text after `skip` lines; line ends as in the file. A BOM is not part of the text."""
    file = opened()
    if encoding == "utf-8":  # Python's own "utf-8-sig" takes half as long again
        mark = len(codecs.BOM_UTF8)
        if file.peek(mark)[:mark] == codecs.BOM_UTF8:  # type: ignore[attr-defined]
            file.read(mark)
    text = io.TextIOWrapper(file, encoding, newline="")
    for _ in range(skip):
        while (part := text.readline(_LINE)) and not part.endswith(("\n", "\r")):
            pass
    return text


def records_of(lines: Iterator[str], separator: str, skipped: int, most: int = 0) -> list[Record]:
    """Records that are not blank, at most `most` (0: all), until one that cannot be read."""
    found: list[Record] = []
    reader = csv.reader(lines, delimiter=separator)
    while not most or len(found) < most:
        start = skipped + reader.line_num + 1
        try:
            cells = next(reader)
        except (StopIteration, csv.Error):  # csv.Error: a value without an end, or with a NUL
            break
        if not _is_blank(cells):
            found.append(Record(start, cells))
    return found


def read(opened: Opener, how: CsvFormat, max_rows: int) -> "pd.DataFrame":
    """The table; without a separator the most frequent one in its first line is taken.

    Rows that have not as many values as the header are left out if `how` says that there are any.
    """
    import pandas as pd

    separator = how.separator
    with open_text(opened, how.encoding, how.skip) as text:
        if not separator:
            start = text.readline(_LINE)
            separator = max(SEPARATORS, key=start.count)
    with open_even(opened, replace(how, separator=separator)) as content:
        frame = pd.read_csv(content, sep=separator, decimal=how.decimal, nrows=max_rows + 1)
    if how.thousands:
        for name in _grouped_columns(frame, how.decimal, how.thousands):
            frame[name] = ungrouped(frame[name], how.decimal, how.thousands)
    return frame


@contextmanager
def open_even(opened: Opener, how: CsvFormat) -> Iterator[Any]:
    """Text from the header on, without the rows that `how` leaves out."""
    with open_text(opened, how.encoding, how.skip) as text:
        yield _EvenText(text, how.separator, how.skip) if how.uneven else text


def width_of(text: io.TextIOWrapper, separator: str) -> int:
    """About how many columns there are: by the separators of the first line."""
    return text.readline(_LINE).count(separator) + 1


def find_uneven(opened: Opener, how: CsvFormat) -> Uneven:
    """Rows that have more or fewer values than the header has columns.

    FormatError names the first one where they are so many that the format is likely wrong.
    """
    with open_text(opened, how.encoding, how.skip) as text:
        if _are_even(text, how.separator):
            return Uneven(0, 0)
    with open_text(opened, how.encoding, how.skip) as text:
        checked = _EvenText(text, how.separator, how.skip)
        for _ in checked:
            pass
    first = checked.first
    if first is None:
        return Uneven(0, 0)
    if checked.uneven > _MOST_UNEVEN * checked.rows:
        raise FormatError(
            f"{checked.uneven} of {checked.rows} rows have not as many values as the header "
            f"(line {checked.header.line}) has columns; line {first.line} has "
            f"{counted(len(first.cells), 'value')}, the header "
            f"{counted(len(checked.header.cells), 'column')}",
            f"a value with {named(how.separator)} in it is written in double quotes; for another "
            "separator: --separator",
            f": {shown(first.cells)}",
        )
    return Uneven(checked.uneven, first.line)


def check_encoding(opened: Opener, encoding: str) -> None:
    """FormatError names the first line that is not text in `encoding`, and one that fits it."""
    if encoding.startswith("utf-16"):
        return
    with opened() as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode(encoding)
            except UnicodeDecodeError as error:
                fits = next(e for e in ("cp1252", "latin-1") if _decodes(line, e))
                raise FormatError(
                    f"line {number} is not {encoding.upper()}",
                    f"say how it is encoded: --encoding {fits}"
                    + (" (or latin-1)" if fits == "cp1252" else ""),
                    f": byte 0x{line[error.start]:02x} "
                    f"after {line[: error.start].decode(encoding, 'replace')[-20:]!r}",
                ) from error


def named(separator: str) -> str:
    """A separator for a person."""
    return "tab" if separator == "\t" else f'"{separator}"'


def counted(count: int, what: str) -> str:
    """
    >>> counted(1, "value"), counted(2, "value")
    ('1 value', '2 values')
    """
    return f"{count} {what}" + ("" if count == 1 else "s")


def shown(cells: list[str]) -> str:
    """The beginning of a row for a person."""
    return repr(", ".join(cells)[:60])


class _EvenText:
    """A file's text without the rows that have not as many values as its header.

    rows, uneven   rows below the header so far, and those left out; first: the first of these
    """

    def __init__(self, lines: Iterator[str], separator: str, skipped: int) -> None:
        self._lines, self._skipped = lines, skipped
        self._raw: list[str] = []  # lines of the current record
        self._reader = csv.reader(self._noting(), delimiter=separator)
        self.header = Record(0, [])
        self.rows = self.uneven = 0
        self.first: Record | None = None

    def _noting(self) -> Iterator[str]:
        for line in self._lines:
            self._raw.append(line)
            yield line

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        while True:
            self._raw.clear()
            start = self._skipped + self._reader.line_num + 1
            try:
                cells = next(self._reader)
            except csv.Error as error:
                raise FormatError(f"line {start}: {error}", f"correct line {start}") from error
            if _is_blank(cells):
                continue
            if not self.header.cells:
                self.header = Record(start, cells)
            elif len(cells) == len(self.header.cells):
                self.rows += 1
            if len(cells) == len(self.header.cells):
                return "".join(self._raw)
            # A value without a closing quote takes in the rows that follow.
            self.rows += len(self._raw)
            self.uneven += len(self._raw)
            self.first = self.first or Record(start, cells)

    def read(self, size: int | None = -1) -> str:
        """At least `size` characters, where there are as many; "" at the end."""
        parts, length = [], 0
        for text in self:
            parts.append(text)
            length += len(text)
            if size is not None and 0 <= size <= length:
                break
        return "".join(parts)


def _is_blank(cells: list[str]) -> bool:
    return not cells or (len(cells) == 1 and not cells[0].strip())


def _are_even(text: io.TextIOWrapper, separator: str) -> bool:
    """Whether all lines have as many values; a quick look, False where values are quoted."""
    separators = -1
    for line in text:
        if '"' in line:
            return False
        if line.strip(" \r\n"):
            count = line.count(separator)
            separators = count if separators < 0 else separators
            if count != separators:
                return False
    return True


def _grouped_columns(frame: "pd.DataFrame", decimal: str, mark: str) -> list[str]:
    """Columns of numbers with `mark` between groups of thousands."""
    return [
        str(name)
        for name, dtype in frame.dtypes.items()
        if str(dtype) in ("object", "str") and group_mark(frame[name].dropna(), decimal) == mark
    ]


def group_mark(values: "pd.Series", decimal: str, between: str = "") -> str | None:
    """The mark between groups of thousands; "" for numbers without one, None for other text.

    between   the mark in earlier values of the column
    """
    for value in values:
        if not isinstance(value, str):  # pandas read a part of the column as numbers
            continue
        number = _PLAIN.fullmatch(value.strip())
        if number is None or (number["rest"] or decimal)[0] != decimal:
            number = _GROUPED.fullmatch(value.strip())
            between = between or (number["mark"] if number else "")
            if number is None or number["mark"] != between:
                return None
            if number["mark"] == decimal or (number["rest"] or decimal)[0] != decimal:
                return None
    return between


def ungrouped(values: "pd.Series", decimal: str, mark: str) -> "pd.Series":
    """Numbers of texts in which `mark` is between groups of thousands."""

    def number(value: object) -> object:
        return value.replace(mark, "").replace(decimal, ".") if isinstance(value, str) else value

    return values.map(number).astype(float)


def number_of(text: str, decimal: str) -> float | None:
    """A number as a person writes it, with groups of thousands or without; None for other text.

    >>> number_of("1.234,5", ","), number_of("1234.5", "."), number_of("1,234", ".")
    (1234.5, 1234.5, 1234.0)
    >>> number_of("1.5", ","), number_of("n/a", ".")
    (None, None)
    """
    found = _PLAIN.fullmatch(text)
    if found is None or (found["rest"] or decimal)[0] != decimal:
        found = _GROUPED.fullmatch(text)
        if found is None or found["mark"] == decimal or (found["rest"] or decimal)[0] != decimal:
            return None
        text = text.replace(found["mark"], "")
    number = float(text.replace(decimal, "."))
    return number if math.isfinite(number) else None


def _decodes(data: bytes, encoding: str) -> bool:
    try:
        data.decode(encoding)
    except UnicodeDecodeError:
        return False
    return True
