"""Tensors in Parquet files: columns of lists of one length, fixed in the schema or in the data."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from shoal.controller.data.packs import PackWriter
from shoal.errors import DatasetError
from shoal.tensors import Array

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

_MAGIC = b"PAR1"
_ROWS = 4_096  # read at once
#: Values of an item, and rows, at most.
_MOST_VALUES, _MOST_ROWS = 64 << 20, 5_000_000


def is_parquet(path: Path) -> bool:
    """Whether the file at `path` begins as Parquet does."""
    with path.open("rb") as file:
        return file.read(4) == _MAGIC


def has_tensors(path: Path) -> bool:
    """Whether it is Parquet with a column of lists; False for what cannot be read."""
    if not is_parquet(path):
        return False
    try:
        import pyarrow.parquet as pq

        return any(_is_list(field.type) for field in pq.read_schema(path))
    except (ImportError, OSError, ValueError):
        return False


def write_parquet(
    path: Path,
    source: str,
    writer: PackWriter,
    names_of: Callable[[Sequence[str]], Mapping[str, str]],
) -> None:
    """Write the columns as arrays, a few rows at a time.

    names_of   name of the array by name of the column, for those that are taken, of the columns

    DatasetError for a column of lists of several lengths, of missing values, or of other types.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            if file.metadata.num_rows > _MOST_ROWS:
                raise DatasetError(f"{source} has more than {_MOST_ROWS} rows", "upload a part")
            for column, new in names_of(file.schema_arrow.names).items():
                _write(file, column, new, source, writer)
    except (pa.ArrowException, OSError) as error:
        raise DatasetError(
            f"{source} cannot be read as Parquet: {error!s:.200}", "write it again"
        ) from error


def _write(file: "pq.ParquetFile", column: str, new: str, source: str, writer: PackWriter) -> None:
    rows = file.metadata.num_rows
    kind = file.schema_arrow.field(column).type
    if not _is_list(kind):
        values = file.read([column]).column(0)
        array = _scalars(values, column, source)
        with writer.open(f"{new}.npy") as out:
            np.lib.format.write_array(out, array, allow_pickle=False)
        return
    shape: tuple[int, ...] | None = None
    with writer.open(f"{new}.npy") as out:
        for batch in file.iter_batches(_ROWS, columns=[column]):
            array = _tensors(batch.column(0), column, source, shape)
            if shape is None:
                shape = array.shape[1:]
                header = {"descr": np.lib.format.dtype_to_descr(array.dtype),
                          "fortran_order": False, "shape": (rows, *shape)}  # fmt: skip
                np.lib.format.write_array_header_1_0(out, header)
            out.write(array.tobytes())


def _is_list(kind: "pa.DataType") -> bool:
    import pyarrow.types as types

    kind = getattr(kind, "storage_type", kind)
    return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))


def _scalars(values: Any, column: str, source: str) -> Array:
    import pyarrow.types as types

    kind = values.type
    text = types.is_string(kind) or types.is_large_string(kind)
    if values.null_count and not text and not types.is_floating(kind):
        raise DatasetError(
            f"{source}: column {column!r} has missing values", "leave it out: --drop"
        )
    array: Array = values.to_numpy()
    if text:
        return np.array(["" if value is None else value for value in array.tolist()], str)
    if array.dtype == object:
        raise DatasetError(
            f"{source}: column {column!r} is {kind}, not numbers or text", "leave it out: --drop"
        )
    return array


def _tensors(values: Any, column: str, source: str, shape: tuple[int, ...] | None) -> Array:
    """A batch as one array (rows, ...); each level of lists is an axis."""
    import pyarrow.types as types

    sizes = [len(values)]
    if hasattr(values, "storage"):
        sizes += list(getattr(values.type, "shape", []))
        values = values.storage
    declared = len(sizes) > 1
    while _is_list(values.type):
        flat = values.flatten()
        width = len(flat) // max(len(values), 1)
        equal = types.is_fixed_size_list(values.type) or len(
            np.unique(np.diff(values.offsets.to_numpy()))
        ) <= 1  # fmt: skip
        if values.null_count or not equal or len(flat) != width * len(values):
            raise DatasetError(
                f"{source}: column {column!r} has lists of several lengths, or missing ones",
                "pad or cut them to one length, or leave the column out: --drop",
            )
        if not declared:
            sizes.append(width)
        values = flat
    array: Array = values.to_numpy(zero_copy_only=False)
    bad = values.null_count or array.dtype.kind not in "biuf"
    if (
        bad
        or array.size // max(sizes[0], 1) > _MOST_VALUES
        or (shape or tuple(sizes[1:])) != tuple(sizes[1:])
    ):
        raise DatasetError(
            f"{source}: column {column!r} has no tensors of one shape and a number type",
            "pad or cut them to one shape, or leave the column out: --drop",
        )
    return array.reshape(sizes)
