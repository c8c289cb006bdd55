"""Items in .npz and .npy files: arrays by name, with the items along their first axis.

Arrays `label`, `site` and `split` of a .npz are what their names say, one value for each item.
An array that is stored uncompressed is mapped, not read; a compressed one is read when it is
first needed.
Source of the format: numpy.org, NEP 1; numpy.lib.format. Pickled objects are refused.
"""

import lzma
import math
import struct
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from shoal.controller.data.items import Items
from shoal.errors import DatasetError
from shoal.tensors import Array

LABEL, SITE, SPLIT = ROLES = "label", "site", "split"
LAYOUT = "an array for each input, named as the input is, with the items along its first axis"
#: Name of the only input of a .npy file, which has none.
INPUT = "input"
#: Bytes of all arrays once unpacked, and arrays in a file, at most.
LIMIT, MOST_ARRAYS = 4 << 30, 1_000
#: Distinct labels up to which they are the names of classes.
MOST_CLASSES = 1_000
#: RuntimeError: encrypted, or compressed in a way that Python does not know.
UNREADABLE = (
    ValueError, OSError, EOFError, RuntimeError, NotImplementedError, struct.error,
    zipfile.BadZipFile, zlib.error, lzma.LZMAError,
)  # fmt: skip
_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
_LOCAL_HEADER = 30  # bytes of a zip member's header before its name and extra field
_NPY = b"\x93NUMPY"


class StoredArray(NamedTuple):
    """An array in a file. member: of a .npz, "" for a .npy. start: byte of its first element in
    `path`, -1 when it is compressed; skip: bytes of its header within the member."""

    path: Path
    member: str
    shape: tuple[int, ...]
    dtype: np.dtype
    fortran: bool
    start: int
    skip: int

    def load(self) -> Array:
        """The whole array: mapped where it can be. One of UNREADABLE for a damaged member."""
        order: Literal["F", "C"] = "F" if self.fortran else "C"
        if not math.prod(self.shape):
            return np.zeros(self.shape, self.dtype)
        if self.start >= 0:
            return np.memmap(self.path, self.dtype, "r", self.start, self.shape, order)
        with zipfile.ZipFile(self.path) as archive, archive.open(self.member) as file:
            data = file.read()[self.skip :]
        return np.frombuffer(data, self.dtype).reshape(self.shape, order=order)


class ArrayItems(Items):
    """Items of arrays by input; `label`, `site` and `split` as of the module."""

    kind = "tensors"

    def __init__(
        self, source: str, inputs: Mapping[str, StoredArray], roles: Mapping[str, StoredArray]
    ) -> None:
        """DatasetError, naming `source`, for arrays that have no items in common."""
        self._source, self._stored = source, inputs
        self.inputs = tuple(inputs)
        self._loaded: dict[str, Array] = {}
        self._count = _count_of(source, inputs, roles)
        self._kept = np.arange(self._count)
        self._labels = _load(source, LABEL, roles[LABEL]) if LABEL in roles else None
        self._sites = _names(source, SITE, roles)
        self._groups = _names(source, SPLIT, roles)
        if self._labels is not None:
            self.classes = classes_of(self._labels)
            self.label_kind = "classes" if self.classes else "numbers"
            if self.classes:
                self._labels = names_of(self._labels)
            self._kept = np.flatnonzero(_are_given(self._labels))

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def has_sites(self) -> bool:
        """Whether it has an array of sites."""
        return self._sites is not None

    @property
    def unlabelled(self) -> int:
        """Items in the file that are left out because their label is missing, "" or NaN."""
        return self._count - len(self._kept)

    def name(self, index: int) -> str:
        return f"item {self._kept[index]} of {self._source}"

    def read(self, index: int) -> dict[str, Array]:
        at = self._kept[index]
        return {name: _item(self.array(name), at) for name in self.inputs}

    def array(self, name: str) -> Array:
        """An input's whole array, read once; DatasetError when it is damaged."""
        if name not in self._loaded:
            self._loaded[name] = _load(self._source, name, self._stored[name])
        return self._loaded[name]

    def labels(self) -> Array:
        if self._labels is None:
            raise no_labels(self._source)
        return self._labels[self._kept]

    def sites(self) -> Array:
        return np.full(len(self), "") if self._sites is None else self._sites[self._kept]

    def groups(self) -> Array | None:
        return None if self._groups is None else self._groups[self._kept]


def no_labels(source: str) -> DatasetError:
    """The error of items that have no labels where they are needed."""
    return DatasetError(f"{source} has no labels", "add a version of it with labels")


def open_arrays(
    path: Path, source: str, wanted: Sequence[str] = (), limit: int = LIMIT
) -> ArrayItems:
    """Items of a .npz or .npy file.

    source   what messages call the file
    wanted   inputs to take; empty for every array that is no label, site or split

    DatasetError, naming `source`, for a file or an array that cannot be read.
    """
    stored = read_headers(path, source, limit)
    if list(stored) == [""]:
        if len(wanted) > 1:
            names = ", ".join(wanted)
            raise DatasetError(f"a .npy has one array, the inputs are {names}", "give a .npz")
        return ArrayItems(source, {(*wanted, INPUT)[0]: stored[""]}, {})
    if missing := [name for name in wanted if name not in stored]:
        has = ", ".join(list(stored)[:20]) or "none"
        raise DatasetError(f"{source} has no array {missing[0]!r}; it has: {has}", f"give {LAYOUT}")
    roles = {name: stored[name] for name in ROLES if name in stored and name not in wanted}
    taken = wanted or [name for name in stored if name not in roles]
    return ArrayItems(source, {name: stored[name] for name in taken}, roles)


def read_headers(path: Path, source: str, limit: int = LIMIT) -> dict[str, StoredArray]:
    """The arrays of a .npz by name; of a .npy its only one by the name ""."""
    try:
        if zipfile.is_zipfile(path):
            return _members(path, source, limit)
        with path.open("rb") as file:
            return {"": _header(file, path, "", path.stat().st_size, limit)}
    except UNREADABLE as error:
        raise DatasetError(
            f"{source} cannot be read: {error!s:.200}",
            f"write it with numpy.savez: {LAYOUT}; texts as an array of str, not of object",
        ) from error


def _are_given(labels: Array) -> npt.NDArray[np.bool_]:
    """Mask (n,) of labels that are neither "" nor NaN."""
    if labels.dtype.kind == "U":
        return labels != "" if labels.ndim == 1 else np.full(len(labels), True)
    if labels.dtype.kind != "f":
        return np.full(len(labels), True)
    missing = np.isnan(labels).reshape(len(labels), -1)
    return np.logical_not(missing.any(axis=1))


def classes_of(labels: Array) -> list[str]:
    """Names of the classes in labels of shape (n,): of texts, booleans and whole numbers, of which
    there are few. Empty for other labels, which are numbers."""
    if labels.ndim != 1 or labels.dtype.kind not in "USObiu":
        return []
    distinct = np.unique(labels)
    distinct = distinct[distinct != ""] if distinct.dtype.kind == "U" else distinct
    if len(distinct) > MOST_CLASSES and labels.dtype.kind in "biu":
        return []
    return [str(name) for name in names_of(distinct)]


def names_of(values: Array) -> npt.NDArray[np.str_]:
    """Values of any dtype as str, shape (n,); bytes are UTF-8."""
    return np.char.decode(values, "utf-8") if values.dtype.kind == "S" else values.astype(str)


def _members(path: Path, source: str, limit: int) -> dict[str, StoredArray]:
    with zipfile.ZipFile(path) as archive, path.open("rb") as raw:
        members = [one for one in archive.infolist() if one.filename.endswith(".npy")]
        unpacked = sum(one.file_size for one in members)
        if unpacked > limit or len(members) > MOST_ARRAYS:
            raise DatasetError(
                f"{source} has {unpacked >> 20} MiB in {len(members)} arrays, {limit >> 20} MiB in "
                f"{MOST_ARRAYS} at most are read",
                "give fewer items",
            )
        found = {}
        for one in members:
            start = -1
            if one.compress_type == zipfile.ZIP_STORED:
                raw.seek(one.header_offset + _LOCAL_HEADER - 4)
                start = one.header_offset + _LOCAL_HEADER + sum(struct.unpack("<2H", raw.read(4)))
            with archive.open(one) as file:
                header = _header(file, path, one.filename, one.file_size, limit)
            start = start + header.skip if start >= 0 else -1
            found[one.filename.removesuffix(".npy")] = header._replace(start=start)
        return found


def _header(file: IO[bytes], path: Path, member: str, size: int, limit: int) -> StoredArray:
    """The header of a .npy of `size` bytes; ValueError when it is not followed by its elements."""
    version = np.lib.format.read_magic(file)
    if version not in _HEADERS:
        raise ValueError(f"version {version} of the format is not known")
    shape, fortran, dtype = _HEADERS[version](file)
    name = member.removesuffix(".npy") or path.name
    if dtype.hasobject:
        raise ValueError(f"array {name!r} holds objects")
    skip = file.tell()
    if skip + math.prod(shape) * dtype.itemsize != size or size > limit:
        raise ValueError(f"array {name!r} has {size} bytes, other than {list(shape)} says")
    return StoredArray(path, member, shape, dtype, fortran, skip, skip)


def _load(source: str, name: str, stored: StoredArray) -> Array:
    try:
        return stored.load()
    except UNREADABLE as error:
        raise DatasetError(
            f"{source}: array {name!r} cannot be read: {error!s:.200}",
            "write the file again with numpy.savez",
        ) from error


def _count_of(
    source: str, inputs: Mapping[str, StoredArray], roles: Mapping[str, StoredArray]
) -> int:
    every = {**inputs, **roles}
    if not inputs:
        raise DatasetError(f"{source} has no arrays", f"give {LAYOUT}")
    for name, array in every.items():
        if not array.shape:
            raise DatasetError(f"{source}: array {name!r} has no axis", f"give {LAYOUT}")
    counts = {array.shape[0] for array in every.values()}
    if len(counts) != 1 or not all(counts):
        found = ", ".join(f"{name} {list(array.shape)}" for name, array in every.items())
        raise DatasetError(f"{source}: arrays have no items in common: {found}", f"give {LAYOUT}")
    return counts.pop()


def _names(source: str, role: str, roles: Mapping[str, StoredArray]) -> Array | None:
    if role not in roles:
        return None
    values = _load(source, role, roles[role])
    if values.ndim != 1 or values.dtype.kind not in "USbiu":
        raise DatasetError(
            f"{source}: array {role!r} is {values.dtype} {list(values.shape)}",
            f"give the name of each item's {role}, one axis",
        )
    return names_of(values)


def _item(array: Array, index: int) -> Array:
    return np.array(array[index], array.dtype)
