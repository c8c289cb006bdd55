"""How a CSV file is to be read: separator, decimal mark, encoding and header, as a person says or
as its first records show."""

import codecs
import io
import re
from collections import Counter
from collections.abc import Mapping

from shoal.controller.data.csv_files import (
    SEPARATORS,
    FormatError,
    Opener,
    Record,
    counted,
    named,
    open_text,
    records_of,
    shown,
)
from shoal.controller.data.records import CsvFormat
from shoal.errors import SettingError

MAX_SKIP = 10_000
_SPELLED = {"tab": "\t", "\\t": "\t", "comma": ",", "semicolon": ";", "pipe": "|"}
#: Records, and characters, that a format is detected from.
_SAMPLE_RECORDS, _SAMPLE_CHARACTERS = 500, 1 << 18
_ENCODINGS = re.compile(
    r"utf-8|utf-16(-[lb]e)?|cp(125\d|437|85\d|932|949)|iso8859-\d+|mac-roman|koi8-[ru]"
    r"|shift_jis|euc_(jp|kr)|gb(k|2312|18030)|big5"
)
_COMMA = re.compile(r"[+-]?(\d{1,3}(\.\d{3})+|\d*),\d+([eE][+-]?\d+)?")
#: "1,234" is a number with a decimal comma, or a thousand and more: it proves neither.
_EITHER = re.compile(r"[+-]?[1-9]\d{0,2}[.,]\d{3}")
_POINT = re.compile(r"[+-]?(\d{1,3}(,\d{3})+|\d*)\.\d+([eE][+-]?\d+)?")
_NUMBER = re.compile(r"[+-]?(\d+([.,]\d*)?|[.,]\d+)([eE][+-]?\d+)?")
#: What files begin with that are often taken for tables.
_NO_TEXT = {
    b"PK\x03\x04": ("an Excel workbook or a zip archive", "save the sheet as CSV UTF-8, or unpack"),
    b"\xd0\xcf\x11\xe0": ("an Excel workbook of before 2007", "save the sheet as CSV UTF-8"),
    b"SQLite format": ("an SQLite database", "export its table as CSV"),
}


def wanted(separator: str = "", decimal: str = "", encoding: str = "", skip: int = 0) -> CsvFormat:
    """A format as it was asked for; "" is to be detected. SettingError names what cannot be."""
    separator = _SPELLED.get(separator, separator)
    if separator and (len(separator) > 1 or separator.isalnum() or separator in "\"'\r\n.-+\0 "):
        raise SettingError(
            f"separator {separator!r:.20}", 'one of , ; | tab, such as: --separator ";"'
        )
    if decimal not in ("", ".", ","):
        raise SettingError(f"decimal mark {decimal!r:.20}", "--decimal . or --decimal ,")
    if not 0 <= skip <= MAX_SKIP:
        raise SettingError(f"skip {skip}", f"a number of lines, 0 to {MAX_SKIP}")
    return CsvFormat(separator=separator, decimal=decimal, encoding=_encoding(encoding), skip=skip)


def detect(opened: Opener, asked: CsvFormat) -> CsvFormat:
    """`asked`, with what is "" in it found from the first records.

    A decimal mark stays "" where none is seen. FormatError, with the option that works, for text
    in another encoding, two separators that fit alike, and lines that are not the header.
    """
    encoding = asked.encoding or _detect_encoding(opened)
    with open_text(opened, encoding, asked.skip) as text:
        lines = _sample(text)
    tables = {
        separator: records_of(iter(lines), separator, asked.skip, _SAMPLE_RECORDS)
        for separator in (asked.separator or SEPARATORS)
    }
    separator = _detect_separator(tables)
    records = tables[separator]
    _check_header(records)
    return CsvFormat(
        separator=separator,
        decimal=asked.decimal or _detect_decimal(records),
        encoding=encoding,
        skip=asked.skip,
    )


def one_mark(marks: Mapping[str, str], examples: Mapping[str, str], decimal: str) -> str:
    """The mark between groups of thousands in a table's columns of numbers; "" for none.

    marks      by column, of those that have any; examples: a value of each
    decimal    "" where no value of the file shows the decimal mark

    FormatError where 1,234 may be a fraction or a thousand and more.
    """
    asked = [name for name, mark in marks.items() if mark == "," and not decimal]
    if asked:
        raise FormatError(
            f"column {asked[0]!r}: {examples[asked[0]]} may be a fraction, or a thousand and more",
            "say which mark is the decimal one: --decimal , for a fraction, --decimal . for "
            "thousands",
        )
    return next(iter(marks.values()), "")


def has_decimal_comma(text: str) -> bool:
    """Whether it is a number if its comma is a decimal mark."""
    return bool(_COMMA.fullmatch(text.strip()))


def _encoding(name: str) -> str:
    if not name:
        return ""
    try:
        found = codecs.lookup(name).name
    except (LookupError, ValueError):
        found = ""
    found = {"utf-8-sig": "utf-8"}.get(found, found)
    if not _ENCODINGS.fullmatch(found):
        raise SettingError(
            f"unknown encoding {name!r:.40}", "such as utf-8, utf-16, cp1252 or latin-1"
        )
    return found


def _detect_encoding(opened: Opener) -> str:
    with opened() as file:
        head = file.read(1 << 12)
    for start, (what, hint) in _NO_TEXT.items():
        if head.startswith(start):
            raise FormatError(f"it is {what}", hint)
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    if b"\0" in head:
        raise FormatError(
            "it is binary, not text", "if it is UTF-16 without a BOM: --encoding utf-16-le"
        )
    return "utf-8"


def _sample(text: io.TextIOWrapper) -> list[str]:
    """Whole lines of the beginning."""
    lines: list[str] = []
    left = _SAMPLE_CHARACTERS
    while left > 0 and len(lines) < 2 * _SAMPLE_RECORDS:
        line = text.readline(_SAMPLE_CHARACTERS * 8)
        if not line:
            break
        lines.append(line)
        left -= len(line)
    return lines


def _detect_separator(tables: dict[str, list[Record]]) -> str:
    likeness = {separator: _likeness(records) for separator, records in tables.items()}
    best = max(likeness, key=lambda separator: likeness[separator])
    alike = [s for s in likeness if likeness[s] == likeness[best]]
    if len(alike) > 1 and likeness[best][0]:
        options = [f"--separator {named(s)}" for s in alike]
        raise FormatError(
            f"its values may be separated by {' or '.join(map(named, alike))}: both make "
            f"{likeness[best][-1]} columns",
            f"say which: {', or '.join(options)}",
        )
    return best


def _usual_width(records: list[Record]) -> int:
    """The most frequent number of cells; of equally frequent ones the first in the file."""
    widths = Counter(len(record.cells) for record in records)
    return max(widths, key=lambda width: widths[width], default=0)


def _likeness(records: list[Record]) -> tuple[bool, bool, float, int]:
    """How much they are like a table: columns, a header of names, equal widths, width."""
    width = _usual_width(records)
    same = [record for record in records if len(record.cells) == width]
    if width < 2:
        return False, False, 0.0, width
    return True, _is_header(same[0]), len(same) / len(records), width


def _is_header(record: Record) -> bool:
    return not any(_NUMBER.fullmatch(cell.strip()) for cell in record.cells)


def _check_header(records: list[Record]) -> None:
    width = _usual_width(records)
    if width < 2 or len(records[0].cells) == width:
        return
    head = records[0]
    first = next(record for record in records if len(record.cells) == width)
    if _is_header(first):
        raise FormatError(
            f"line {head.line} is not the header: it has {counted(len(head.cells), 'value')}, "
            f"and the rows have {width}, as line {first.line} has",
            f"leave out the lines before it: --skip {first.line - 1}",
            f": {shown(first.cells)}",
        )
    raise FormatError(
        f"the header (line {head.line}) has {counted(len(head.cells), 'column')}, and line "
        f"{first.line} has {counted(width, 'value')}",
        f"name every column in line {head.line}; for another separator: --separator",
        f": {shown(first.cells)}",
    )


def _detect_decimal(records: list[Record]) -> str:
    """The mark that at least one value proves, "." before ","; "" where it is between the two."""
    cells = [cell.strip() for record in records[1:] for cell in record.cells]
    points = [cell for cell in cells if _POINT.fullmatch(cell)]
    commas = [cell for cell in cells if _COMMA.fullmatch(cell)]
    for mark, found in ((".", points), (",", commas)):
        if any(not _EITHER.fullmatch(cell) for cell in found):
            return mark
    return "" if commas else "."
