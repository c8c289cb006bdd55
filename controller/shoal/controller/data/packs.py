"""Stored datasets of images and sounds: the files as they were, and an index, in one .zip.

The members are not compressed, so that one is read by its place; the index is the last member, and
the archive's comment says where it begins. Anything that opens a .zip opens it. The same files with
the same labels are the same bytes.
"""

import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import IO, BinaryIO, Literal, Self

import msgspec
import numpy as np

from shoal.controller.data import decoding
from shoal.controller.data.array_files import no_labels
from shoal.controller.data.items import AUDIO, IMAGE, RATE, Boxes, Items, LabelKind
from shoal.errors import DatasetError
from shoal.tensors import Array

INDEX = "shoal-items.msgpack"
_MARK = b"shoal-items/1 "
_TAIL = 64  # bytes of the comment, at most
_DATE = (1980, 1, 1, 0, 0, 0)  # the first that a .zip can say: the same files, the same bytes


class Index(msgspec.Struct, frozen=True, kw_only=True):
    """Of n items, in order.

    names, starts, sizes   path, first byte and bytes of each file
    labels        index into `classes` of each item; empty without class labels
    numbers       label of each item, where it is a number
    box_counts    boxes of each item; box_classes, corners: of all boxes one after the other,
                  corners float32 xyxy in pixels, little-endian
    site, group   index of each item into `sites` and `groups`; empty where there are none
    """

    kind: Literal["images", "audio"]
    names: list[str]
    starts: list[int]
    sizes: list[int]
    label_kind: LabelKind = ""
    classes: list[str] = []
    labels: list[int] = []
    numbers: list[float] = []
    box_counts: list[int] = []
    box_classes: list[int] = []
    corners: bytes = b""
    sites: list[str] = []
    site: list[int] = []
    groups: list[str] = []
    group: list[int] = []


class PackWriter:
    """Writes files, then the index. Use it in `with`."""

    def __init__(self, path: Path) -> None:
        self._archive = zipfile.ZipFile(path, "w", zipfile.ZIP_STORED)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._archive.close()

    def add(self, name: str, data: bytes) -> int:
        """Write a file; the place of its first byte."""
        self._archive.writestr(zipfile.ZipInfo(name, _DATE), data)
        file = self._archive.fp
        assert file is not None
        return file.tell() - len(data)

    @contextmanager
    def open(self, name: str) -> Iterator[IO[bytes]]:
        """A file to write to, of any size."""
        with self._archive.open(zipfile.ZipInfo(name, _DATE), "w", force_zip64=True) as file:
            yield file

    def finish(self, index: Index) -> None:
        """Write the index, after which nothing more is added."""
        data = msgspec.msgpack.encode(index)
        start = self.add(INDEX, data)
        self._archive.comment = _MARK + f"{start} {len(data)}".encode()


class PackedItems(Items):
    """Items of a pack; a file is read when it is asked for."""

    def __init__(self, path: Path, source: str, index: Index) -> None:
        self._path, self._source, self.index = path, source, index
        self.kind = index.kind
        self.inputs = (IMAGE,) if index.kind == "images" else (AUDIO, RATE)
        self.label_kind, self.classes = index.label_kind, index.classes
        self._ends = np.cumsum([0, *index.box_counts])

    def __len__(self) -> int:
        return len(self.index.names)

    def name(self, index: int) -> str:
        return f"{self.index.names[index]} of {self._source}"

    def bytes_of(self, index: int) -> bytes:
        """The item's file as it was added."""
        try:
            with self._path.open("rb") as file:
                file.seek(self.index.starts[index])
                return file.read(self.index.sizes[index])
        except OSError as error:
            raise DatasetError(f"{self.name(index)} cannot be read: {error.strerror}") from error

    def read(self, index: int) -> dict[str, Array]:
        data = self.bytes_of(index)
        try:
            if self.kind == "images":
                return {IMAGE: decoding.decode_image(data)}
            samples, rate = decoding.decode_sound(data)
        except DatasetError as error:
            raise DatasetError(f"{self.name(index)}: {error.message}") from error
        return {AUDIO: samples, RATE: np.array(rate, np.int64)}

    def labels(self) -> Array:
        if self.label_kind == "classes":
            return np.array(self.classes)[self.index.labels]
        if self.label_kind == "numbers":
            return np.array(self.index.numbers)
        if self.label_kind == "boxes":
            raise DatasetError(f"{self._source} has boxes for labels", "read them with boxes()")
        raise no_labels(self._source)

    def boxes(self, index: int) -> Boxes:
        if self.label_kind != "boxes":
            return super().boxes(index)
        start, end = self._ends[index], self._ends[index + 1]
        corners = np.frombuffer(self.index.corners, "<f4").reshape(-1, 4)[start:end]
        names = [self.classes[one] for one in self.index.box_classes[start:end]]
        return Boxes(corners.astype(np.float32), names)

    def sites(self) -> Array:
        return _names(self.index.sites, self.index.site, len(self))

    def groups(self) -> Array | None:
        return _names(self.index.groups, self.index.group, len(self)) if self.index.group else None


def _names(names: list[str], numbers: Iterable[int], count: int) -> Array:
    return np.array(names)[list(numbers)] if names else np.full(count, "")


def is_pack(path: Path) -> bool:
    """Whether the file at `path` was written by PackWriter."""
    try:
        with path.open("rb") as file:
            return _place(file) is not None
    except OSError:
        return False


def open_pack(path: Path, source: str) -> PackedItems:
    """The items of a pack; DatasetError, naming `source`, when it is none."""
    try:
        index = _index(path, path.stat().st_mtime_ns)
    except (OSError, ValueError, msgspec.MsgspecError) as error:
        raise DatasetError(f"{source} cannot be read: {error!s:.200}") from error
    return PackedItems(path, source, index)


@lru_cache(maxsize=4)
def _index(path: Path, _written: int) -> Index:
    with path.open("rb") as file:
        place = _place(file)
        if place is None:
            raise ValueError("no index of items")
        file.seek(place[0])
        return msgspec.msgpack.decode(file.read(place[1]), type=Index)


def _place(file: BinaryIO) -> tuple[int, int] | None:
    """First byte and bytes of the index, from the archive's comment."""
    file.seek(0, 2)
    file.seek(-min(_TAIL, file.tell()), 2)
    _, mark, numbers = file.read().rpartition(_MARK)
    if not mark:
        return None
    try:
        start, size = map(int, numbers.split())
    except ValueError:
        return None
    return start, size
