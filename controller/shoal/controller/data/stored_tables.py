"""Tables as they are stored: typed Parquet, written in batches and read a column at a time."""

import hashlib
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

#: Rows that are hashed at a time.
_PART = 65_536
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
#: Up to here a whole number is the same as float64.
_EXACT = 1 << 53


class TableWriter:
    """A Parquet file in the making. What is written is typed by the first batch, or by `kinds`.

    kinds   what columns are (csv_batches), by name, where the batches themselves do not say it
    """

    def __init__(self, path: Path, kinds: dict[str, str] | None = None) -> None:
        self._path, self._kinds = path, kinds
        self._writer: Any = None
        self._schema: pa.Schema | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._writer is not None:
            self._writer.close()

    def write(self, frame: "pd.DataFrame") -> bool:
        """Append rows; False, and nothing written, for types other than those before."""
        import pyarrow as pa

        names = [str(name).strip() for name in frame.columns]
        try:
            arrays = [
                _array(frame[column], (self._kinds or {}).get(str(column), ""))
                for column in frame.columns
            ]
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):  # whole numbers beyond 64 bits
            return False
        return self.write_batch(pa.table(arrays, names=names))

    def write_batch(self, table: "pa.Table") -> bool:
        """As `write`."""
        if self._writer is None:
            self._open(table.schema)
        if not table.schema.equals(self._schema):
            return False
        self._writer.write_table(table)
        return True

    def _open(self, schema: "pa.Schema") -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._schema = schema
        texts = [f.name for f in schema if not pa.types.is_primitive(f.type)]
        self._writer = pq.ParquetWriter(
            self._path, schema, compression="zstd", use_dictionary=texts or False,
            store_schema=False,
        )  # fmt: skip


class StoredTable:
    """A table in a Parquet file. A column is read when it is asked for, and not kept.

    columns   names, in order
    """

    def __init__(self, path: Path) -> None:
        import pyarrow.parquet as pq

        self._file = pq.ParquetFile(path)
        self._schema = self._file.schema_arrow
        self.columns: list[str] = list(self._schema.names)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def __len__(self) -> int:
        return int(self._file.metadata.num_rows)

    def __getitem__(self, name: str) -> "pd.Series":
        """A column as pandas reads it."""
        return self._file.read(columns=[name], use_threads=False).column(0).to_pandas()

    def is_text(self, name: str) -> bool:
        import pyarrow as pa

        kind = self._schema.field(name).type
        return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))

    def type_of(self, name: str) -> str:
        return str(self._schema.field(name).type)

    def parts(self, name: str) -> Iterator["pa.Array"]:
        """A column in parts of at most 65 536 rows."""
        for batch in self._file.iter_batches(_PART, columns=[name], use_threads=False):
            yield batch.column(0)

    def parts_without(self, rows: npt.NDArray[np.bool_]) -> Iterator["pa.Table"]:
        """The table in parts of at most 65 536 rows, without those of a mask (n,)."""
        import pyarrow as pa

        start = 0
        for batch in self._file.iter_batches(_PART, use_threads=False):
            kept = pa.array(~rows[start : start + batch.num_rows])
            start += batch.num_rows
            yield pa.Table.from_batches([batch.filter(kept)]).replace_schema_metadata(None)

    def missing(self, name: str) -> int:
        """Null values of a column."""
        return sum(part.null_count for part in self.parts(name))

    def rows(self, numbers: Sequence[int]) -> list[dict[str, Any]]:
        """Rows by their numbers from 0, in that order."""
        return self._file.read(use_threads=False).take(list(numbers)).to_pylist()


class Hashes(NamedTuple):
    """Hashes of a table.

    content   SHA-256 of names, types and values, whatever wrote the file, and in whatever parts
    rows      64-bit hash of each row, shape (n,): 1 and 1.0 are the same, and so are missing and
              NaN; the order of the columns does not count
    some      the same of some of the columns alone

    Two of 5 million different rows have the same hash with a probability of 1 in a million; it is
    no protection against rows that are made to.
    """

    content: str
    rows: npt.NDArray[np.uint64]
    some: npt.NDArray[np.uint64]


def hash_table(table: StoredTable, some: Collection[str] = ()) -> Hashes:
    """Hash the columns, each read once. some: names of columns that are hashed apart, too."""
    whole = hashlib.sha256()
    chosen, others = np.zeros((2, len(table)), np.uint64)
    for name in table.columns:
        salt = np.frombuffer(hashlib.sha256(name.encode()).digest()[:8], "<u8")[0]
        missing, values, lengths = hashlib.sha256(), hashlib.sha256(), hashlib.sha256()
        sums, start = chosen if name in some else others, 0
        for part in table.parts(name):
            missing.update(part.is_null().to_numpy(zero_copy_only=False).tobytes())
            _hash_values(part, values, lengths)
            sums[start : start + len(part)] += _mixed(_bits(part) ^ salt)
            start += len(part)
        whole.update(f"{len(name)}:{name}:{table.type_of(name)}:".encode())
        for one in (missing, values, lengths):
            whole.update(one.digest())
    return Hashes(whole.hexdigest(), chosen + others, chosen)


def _array(values: "pd.Series", kind: str) -> "pa.Array":
    import pyarrow as pa

    wanted = {"bool, some missing": pa.bool_(), "str": pa.string()}.get(kind)
    if wanted is not None and values.isna().all():
        return pa.nulls(len(values), wanted)
    array = pa.Array.from_pandas(values, type=wanted)
    if isinstance(array, pa.ChunkedArray):
        array = array.combine_chunks()
    if pa.types.is_large_string(array.type) or pa.types.is_null(array.type):
        array = array.cast(pa.string())
    return array


def _bits(part: "pa.Array") -> npt.NDArray[np.uint64]:
    """64 bits of each value of a column; missing values have those of NaN."""
    import pyarrow as pa
    import pyarrow.compute as pc

    missing = part.is_null().to_numpy(zero_copy_only=False)
    if pa.types.is_integer(part.type) or pa.types.is_boolean(part.type):
        whole = part.fill_null(0)
        whole = whole.cast(pa.int8()) if pa.types.is_boolean(part.type) else whole
        exact = whole.to_numpy(zero_copy_only=False)
        numbers = exact.astype(np.float64)
        bits = (numbers + 0.0).view(np.uint64)
        large = np.abs(numbers) >= _EXACT
        bits = np.where(large, exact.astype(np.uint64), bits) if large.any() else bits
    elif pa.types.is_floating(part.type):
        numbers = part.to_numpy(zero_copy_only=False).astype(np.float64) + 0.0
        missing = missing | np.isnan(numbers)
        bits = numbers.view(np.uint64)
    else:
        bits = _text_bits(pc.fill_null(_as_text(part), ""))
    return np.where(missing, np.uint64(0x7FF8000000000000), bits)


def _text_bits(part: "pa.Array") -> npt.NDArray[np.uint64]:
    import pandas as pd

    coded = part.dictionary_encode()
    distinct = np.array(coded.dictionary.to_pylist(), dtype=object)
    hashed = pd.util.hash_array(distinct, categorize=False)
    return hashed[coded.indices.to_numpy(zero_copy_only=False)]


def _as_text(part: "pa.Array") -> "pa.Array":
    import pyarrow as pa

    if pa.types.is_string(part.type):
        return part
    try:
        return part.cast(pa.string())
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid):
        return pa.array([None if v is None else repr(v) for v in part.to_pylist()], pa.string())


def _hash_values(part: "pa.Array", values: Any, lengths: Any) -> None:
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_integer(part.type) or pa.types.is_floating(part.type):
        values.update(np.ascontiguousarray(pc.fill_null(part, 0).to_numpy(zero_copy_only=False)))
    elif pa.types.is_boolean(part.type):
        values.update(pc.fill_null(part, False).to_numpy(zero_copy_only=False).tobytes())
    else:
        texts = pc.fill_null(_as_text(part), "")
        lengths.update(pc.binary_length(texts).to_numpy(zero_copy_only=False).astype("<i8"))
        values.update("".join(texts.to_pylist()).encode("utf-8", "surrogatepass"))


def _mixed(bits: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """SplitMix64's output function (Steele, Lea, Flood, 2014), of each element."""
    z = bits + _GOLDEN
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
