"""Files that people upload as tables: CSV, gzipped CSV and Parquet, read whole or in batches."""

import gzip
import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

from msgspec.structs import replace

from shoal.controller.data import csv_batches, csv_detection, csv_files
from shoal.controller.data.csv_batches import CsvScan
from shoal.controller.data.frames import MAX_COLUMNS
from shoal.controller.data.masking import Masker
from shoal.controller.data.records import CsvFormat, LeftOut
from shoal.controller.data.stored_tables import TableWriter
from shoal.errors import DatasetError

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

MAX_BYTES = 2 << 30  # after decompression: a small gzip may expand to a very large table
MAX_ROWS = 5_000_000
#: Rows of a Parquet file that are read at a time.
_BATCH = 65_536
_GZIP, _PARQUET = b"\x1f\x8b", b"PAR1"


class Reading(NamedTuple):
    """How an uploaded table was read.

    how       the format of its CSV file; None for Parquet
    left_out  rows of the file that are not in the table
    """

    how: CsvFormat | None
    left_out: list[LeftOut]


def store_table(
    path: Path, name: str, asked: CsvFormat, target: Path, masker: Masker | None = None
) -> Reading:
    """Write an uploaded CSV, gzipped CSV or Parquet file, detected from its content, to `target`.

    asked   format of a CSV file, with "" in it for what is to be detected
    masker  masks each batch before it is written; no error quotes the file then

    Memory does not grow with the file. DatasetError, naming `name`, when it cannot be read, is
    empty or too large, with the line and the option that works.
    """
    with _naming(name, quoting=masker is None):
        if _is_parquet(path):
            _store_parquet(path, name, target, masker)
            return Reading(None, [])
        opened = partial(_unpacked, path)
        try:
            how, uneven = _store_csv(opened, asked, name, target, masker)
        except UnicodeDecodeError:
            csv_files.check_encoding(opened, asked.encoding or "utf-8")
            raise
    left_out = [
        LeftOut(reason="not as many values as columns", count=uneven.rows, names=[f"line {line}"])
        for line in (uneven.line,) if uneven.rows
    ]  # fmt: skip
    return Reading(how, left_out)


def read_frame(path: Path, name: str = "", how: CsvFormat | None = None) -> "pd.DataFrame":
    """Read a registered CSV, gzipped CSV or Parquet file as `how` says; errors as `store_table`."""
    import pandas as pd

    name = name or path.name
    with _naming(name):
        if _is_parquet(path):
            frame = pd.read_parquet(path)
        else:
            frame = csv_files.read(partial(_unpacked, path), how or CsvFormat(), MAX_ROWS)
    frame.columns = check_columns([str(c) for c in frame.columns], name)
    check_rows(len(frame), name)
    return frame


def check_columns(found: Sequence[str], name: str) -> list[str]:
    """Names of columns without the spaces around them; DatasetError for too many, or one twice."""
    names = [column.strip() for column in found]
    if len(names) > MAX_COLUMNS:
        raise _too_large(name)
    if twice := [column for i, column in enumerate(names) if column in names[:i]][:1]:
        raise DatasetError(f"{name} has two columns {twice[0]!r}", "rename one")
    return names


def check_rows(count: int, name: str) -> None:
    """DatasetError for none, or too many."""
    if not count:
        raise DatasetError(f"{name} has a header and no rows", "add rows")
    if count > MAX_ROWS:
        raise _too_large(name)


def _too_large(name: str) -> DatasetError:
    return DatasetError(
        f"{name} is larger than {MAX_ROWS} rows of {MAX_COLUMNS} columns", "upload a part of it"
    )


def _store_csv(
    opened: csv_files.Opener, asked: CsvFormat, name: str, target: Path, masker: Masker | None
) -> tuple[CsvFormat, csv_files.Uneven]:
    """Read the file once where the first batch has the types of all others, else twice."""
    import pandas as pd

    found = csv_detection.detect(opened, asked)
    how, uneven = replace(found, decimal=found.decimal or "."), csv_files.Uneven(0, 0)
    if masker:
        masker.begin(csv_batches.header_of(opened, how), found.decimal)
        if masker.counted:
            how, uneven = csv_batches.find_uneven(opened, how)
            texts = dict.fromkeys(masker.texts, csv_batches.TEXT)
            for frame in csv_batches.read_batches(opened, how, MAX_ROWS, texts):
                masker.count(frame)
    try:
        scan, written = _scan(opened, how, found.decimal, name, target, masker)
        if scan.uneven:
            how, uneven = csv_batches.find_uneven(opened, how)
    except pd.errors.ParserError:
        how, uneven = csv_batches.find_uneven(opened, how)
        if not uneven.rows:
            raise
    if uneven.rows:
        scan, written = _scan(opened, how, found.decimal, name, target, masker)
    check_rows(scan.rows, name)
    if thousands := scan.thousands():
        how = replace(how, thousands=thousands)
    if thousands or not written:
        with TableWriter(target, scan.settled(how)) as writer:
            for frame in scan.batches(how):
                _write(writer, frame)
    return how, uneven


def _scan(
    opened: csv_files.Opener,
    how: CsvFormat,
    decimal: str,
    name: str,
    target: Path,
    masker: Masker | None,
) -> tuple[CsvScan, bool]:
    """What is in the file, and whether it could be written while it was read."""
    scan, written = CsvScan(opened, how, decimal, MAX_ROWS, masker), True
    if masker:
        masker.restart()
    with TableWriter(target) as writer:
        for frame in scan:
            if scan.rows <= _BATCH:
                check_columns([str(c) for c in frame.columns], name)
            written = written and not scan.uneven and writer.write(frame)
    return scan, written


def _write(writer: TableWriter, frame: "pd.DataFrame") -> None:
    if not writer.write(frame):
        raise ValueError("its columns change their types from part to part")


def _store_parquet(path: Path, name: str, target: Path, masker: Masker | None) -> None:
    import pyarrow.parquet as pq

    with (
        pq.ParquetFile(path, read_dictionary=_texts_of(path)) as file,
        TableWriter(target) as writer,
    ):
        index = _index_columns(file.schema_arrow.metadata or {})
        wanted = [n for n in file.schema_arrow.names if n not in index]
        names, left = check_columns(wanted, name), MAX_BYTES
        check_rows(file.metadata.num_rows, name)
        if masker:
            masker.begin(names)
            if masker.counted:
                at = [wanted[names.index(one)] for one in masker.counted]
                for batch in file.iter_batches(_BATCH, columns=at, use_threads=False):
                    masker.count(batch.to_pandas())
        for batch in file.iter_batches(_batch_rows(len(wanted)), columns=wanted, use_threads=False):
            left -= sum(_text_bytes(column) for column in batch.columns)
            if left < 0:
                raise ValueError(f"more than {MAX_BYTES >> 20} MiB when unpacked")
            import pyarrow as pa

            arrays = [_plain(column) for column in batch.columns]
            table = pa.table(arrays, names=names)
            writer.write_batch(masker.mask_table(table) if masker else table)


def _batch_rows(columns: int) -> int:
    return max(min(_BATCH, (1 << 21) // max(columns, 1)), 1)


def _texts_of(path: Path) -> list[str]:
    """Columns of text: read as codes, a value that repeats takes its room once."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pq.read_schema(path)
    return [f.name for f in schema if pa.types.is_string(f.type) or pa.types.is_binary(f.type)]


def _index_columns(metadata: Mapping[bytes, bytes]) -> set[str]:
    """Columns that pandas wrote as the index of a table."""
    import json

    known = json.loads(metadata.get(b"pandas", b"{}")).get("index_columns", [])
    return {one for one in known if isinstance(one, str)}


def _text_bytes(column: "pa.Array") -> int:
    """Bytes that a column of codes takes as text; 0 for another."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if not pa.types.is_dictionary(column.type):
        return 0
    lengths = pc.binary_length(column.dictionary).take(column.indices)
    return int(pc.sum(lengths).as_py() or 0)


def _plain(column: "pa.Array") -> "pa.Array":
    """Without codes; decimals as float64."""
    import pyarrow as pa

    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_decimal(column.type):
        return column.cast(pa.float64())
    return column.cast(pa.string()) if pa.types.is_large_string(column.type) else column


def _is_parquet(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(_PARQUET)) == _PARQUET


def _unpacked(path: Path) -> io.BufferedReader:
    with path.open("rb") as file:
        zipped = file.read(len(_GZIP)) == _GZIP
    stream = gzip.GzipFile(path) if zipped else path.open("rb")
    return io.BufferedReader(_Bounded(stream), 1 << 16)  # type: ignore[arg-type]


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
def _naming(name: str, *, quoting: bool = True) -> Iterator[None]:
    """Every error of reading as a DatasetError that names the file; not quoting: and has no value
    of it, whatever the libraries say, nor a cause that has.
    """
    if quoting:
        with _named(name):
            yield
        return
    try:
        yield
    except csv_files.FormatError as error:
        raise DatasetError(
            f"{name} cannot be read as a table: {error.unquoted}", error.hint
        ) from None
    except DatasetError:
        raise
    except Exception as error:  # noqa: BLE001  any message may quote a value
        raise DatasetError(
            f"{name} cannot be read as a table: {type(error).__name__}; a table that is masked is "
            "not quoted",
            "upload UTF-8 CSV with one header line, CSV.gz or Parquet; what is wrong with it is "
            "said of a table without values of people",
        ) from None


@contextmanager
def _named(name: str) -> Iterator[None]:
    import pandas as pd

    try:
        yield
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


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
