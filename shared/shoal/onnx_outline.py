"""An ONNX file without the bytes of its large tensors, and the data files that it names.

Read from the protobuf encoding over a memory map: 1.9 GB of weights cost a look at each tensor's
head. What is left out is named as external data of the file itself, so that onnxruntime maps it
from there. Nothing is trusted: lengths, nesting and the number of fields are bounded.
"""

import mmap
import re
from enum import Enum, auto
from functools import cache
from pathlib import Path
from typing import NamedTuple

from shoal.errors import ModelError

#: Bytes of a file from which on its weights are mapped, rather than read with it.
MAPPED_FROM = 16 << 20
#: Bytes of a file, protobuf's limit; of what is left of it once large tensors are left out; of a
#: tensor's data from which on it is; messages in messages; fields that are looked at.
FILE_LIMIT, LIMIT, LARGE, DEPTH, FIELDS = (1 << 31) - 1, 512 << 20, 1_024, 100, 4_000_000
_LOCATION = b"location"
_FLOAT, _STRING, _DOUBLE = 1, 8, 11
_RUN = 4_096


class _Kind(Enum):
    MODEL, TRAINING, GRAPH, FUNCTION, NODE, ATTRIBUTE, SPARSE, TENSOR = (auto() for _ in range(8))


#: Message -> number of a field -> the message in it that may have tensors.
_PARTS: dict[_Kind, dict[int, _Kind]] = {
    _Kind.MODEL: {7: _Kind.GRAPH, 20: _Kind.TRAINING, 25: _Kind.FUNCTION},
    _Kind.TRAINING: {1: _Kind.GRAPH, 2: _Kind.GRAPH},
    _Kind.GRAPH: {1: _Kind.NODE, 5: _Kind.TENSOR, 15: _Kind.SPARSE},
    _Kind.FUNCTION: {7: _Kind.NODE, 11: _Kind.ATTRIBUTE},
    _Kind.NODE: {5: _Kind.ATTRIBUTE},
    _Kind.ATTRIBUTE: {
        5: _Kind.TENSOR, 6: _Kind.GRAPH, 10: _Kind.TENSOR, 11: _Kind.GRAPH,
        22: _Kind.SPARSE, 23: _Kind.SPARSE,
    },
    _Kind.SPARSE: {1: _Kind.TENSOR, 2: _Kind.TENSOR},
}  # fmt: skip
_TYPE, _FLOATS, _RAW, _DOUBLES, _EXTERNAL, _WHERE = 2, 4, 9, 10, 13, 14
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


class Outline(NamedTuple):
    """What is left of a file.

    content     a ModelProto, where large tensors are external data of the file itself
    left_out    bytes by which its tensors are shorter
    locations   of the author's external data, each once, as written
    """

    content: bytes
    left_out: int
    locations: list[str]


class _Field(NamedTuple):
    """One field of a message: where its tag begins, and its value, which is number for varints."""

    number: int
    wire: int
    start: int
    value: int
    stop: int
    varint: int


def outline(path: Path, name: str, *, limit: int = LIMIT, fields: int = FIELDS) -> Outline:
    """Read the file at `path`; ModelError, naming `name`, when it is no ONNX file or too large.

    limit, fields   bytes that may be left, and fields that are looked at
    """
    size = path.stat().st_size
    if size > FILE_LIMIT:
        raise ModelError(
            f"{name} is larger than 2 GiB, which no ONNX file can be",
            "keep its weights beside it: onnx.save(model, path, save_as_external_data=True)",
        )
    if not size:
        raise _no_onnx(name)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        walk = _Walk(data, name, path.name, fields)
        length = walk.message(_Kind.MODEL, 0, size, 0)
        if length > limit:
            raise ModelError(
                f"{name} has {length >> 20} MiB beside the weights of its tensors, "
                f"{limit >> 20} are allowed",
                "use a smaller model",
            )
        content = b"".join(
            part if isinstance(part, bytes) else data[part[0] : part[1]] for part in walk.parts
        )
    return Outline(content, walk.left_out, list(walk.locations))


def data_locations(path: Path, name: str) -> list[str]:
    """Names of the data files that the file at `path` keeps weights in; ModelError as `outline`."""
    if not path.stat().st_size:
        raise _no_onnx(name)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if data.find(_LOCATION) < 0:
            return []
    return outline(path, name).locations


class _Walk:
    """A walk over the messages that may have tensors.

    parts       of the result, in order: bytes, or (start, stop) of the file
    left_out, locations   as Outline's
    """

    def __init__(self, data: mmap.mmap, name: str, itself: str, fields: int) -> None:
        self._data, self._name, self._itself = data, name, itself
        self._most = self._left = fields
        self.left_out = 0
        self.parts: list[bytes | tuple[int, int]] = []
        self.locations: dict[str, None] = {}

    def message(self, kind: _Kind, start: int, stop: int, depth: int) -> int:
        """Add the message in start..stop; the length of what was added."""
        if kind is _Kind.TENSOR:
            return self._tensor(start, stop)
        if depth > DEPTH:
            raise ModelError(
                f"{self._name} has graphs more than {DEPTH} messages deep", "export it again"
            )
        parts, inside = self.parts, _PARTS[kind]
        at = copied = start
        length = 0
        while at < stop:
            field = self._field(at, stop)
            at = field.stop
            within = inside.get(field.number)
            if within is None or field.wire != _BYTES or self._is_plain(field):
                continue
            mark = len(parts)
            parts += [b"", b""]
            body = self.message(within, field.value, field.stop, depth + 1)
            if body == field.stop - field.value:
                del parts[mark:]  # nothing is left out: it is copied with its neighbours
                continue
            parts[mark] = (copied, field.start)
            parts[mark + 1] = head = _bytes_head(field.number, body)
            length += field.start - copied + len(head) + body
            copied = field.stop
        parts.append((copied, stop))
        return length + stop - copied

    def _is_plain(self, field: _Field) -> bool:
        """Whether it is short and names no data file."""
        return (
            field.stop - field.value < LARGE
            and self._data.find(_LOCATION, field.value, field.stop) < 0
        )

    def _tensor(self, start: int, stop: int) -> int:
        at = start
        datatype, large, is_external = 0, list[_Field](), False
        while at < stop:
            field = self._field(at, stop)
            at = field.stop
            if field.number == _TYPE and field.wire == _VARINT:
                datatype = field.varint
            elif field.number == _EXTERNAL and field.wire == _BYTES:
                is_external = True
                self._location(field)
            elif field.number == _WHERE:
                is_external = is_external or field.varint == 1
            elif field.number in (_RAW, _FLOATS, _DOUBLES) and field.wire == _BYTES:
                large.append(field)
        fitting = {_FLOAT: (_RAW, _FLOATS), _DOUBLE: (_RAW, _DOUBLES), _STRING: ()}
        whole = stop - start
        if (
            is_external
            or len(large) != 1
            or large[0].number not in fitting.get(datatype, (_RAW,))
            or (size := large[0].stop - large[0].value) < LARGE
        ):
            self.parts.append((start, stop))
            return whole
        where = _external(self._itself, large[0].value, size)
        self.parts += [(start, large[0].start), (large[0].stop, stop), where]
        less = large[0].stop - large[0].start - len(where)
        self.left_out += less
        return whole - less

    def _location(self, entry: _Field) -> None:
        """Note the location, if the entry of a tensor's external data is that."""
        at, key, value = entry.value, b"", b""
        while at < entry.stop:
            field = self._field(at, entry.stop)
            at = field.stop
            if field.wire == _BYTES and field.stop - field.value <= _RUN:
                text = self._data[field.value : field.stop]
                key, value = (text, value) if field.number == 1 else (key, text)
        if key == _LOCATION:
            self.locations[value.decode(errors="replace")] = None

    def _field(self, start: int, stop: int) -> _Field:
        """The field at `start`: of numbers that are repeated, all of a run together."""
        self._left -= 1
        if self._left < 0:
            raise ModelError(
                f"{self._name} is made of more than {self._most} fields", "export it again"
            )
        tag, at = self._varint(start, stop)
        number, wire = tag >> 3, tag & 7
        if wire == _BYTES:
            length, at = self._varint(at, stop)
            end = at + length
        elif wire == _VARINT:
            value, end = self._varint(at, stop)
            if end < stop and self._data[end] == tag:  # more of them: skipped at once
                end = self._run(tag, rb"[\x80-\xff]{0,9}[\x00-\x7f]", end, stop)
            return _Field(number, wire, start, at, end, value)
        elif wire in (_FIXED32, _FIXED64):
            end = at + (4 if wire == _FIXED32 else 8)
            if end < stop and self._data[end] == tag:
                end = self._run(tag, rb".{%d}" % (4 if wire == _FIXED32 else 8), end, stop)
        else:
            raise _no_onnx(self._name)
        if not number or end > stop:
            raise _no_onnx(self._name)
        return _Field(number, wire, start, at, end, 0)

    def _run(self, tag: int, value: bytes, at: int, stop: int) -> int:
        """The end of a run of fields of one tag, which is one byte."""
        run = _run_of(tag, value)
        while found := run.match(self._data, at, stop):
            at = found.end()
        return at

    def _varint(self, at: int, stop: int) -> tuple[int, int]:
        """The number at `at`, and where it ends."""
        value = shift = 0
        while at < stop and shift < 70:
            byte = self._data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value, at
            shift += 7
        raise _no_onnx(self._name)


@cache
def _run_of(tag: int, value: bytes) -> "re.Pattern[bytes]":
    one = re.escape(bytes([tag])) + value
    return re.compile(rb"(?:%s){1,%d}+" % (one, _RUN), re.DOTALL)


def _external(location: str, offset: int, length: int) -> bytes:
    """Fields of a tensor whose data is in a file."""
    entries = {"location": location, "offset": str(offset), "length": str(length)}
    encoded = b""
    for key, value in entries.items():
        body = _text(1, key) + _text(2, value)
        encoded += _bytes_head(_EXTERNAL, len(body)) + body
    return encoded + bytes([_WHERE << 3 | _VARINT, 1])


def _text(number: int, text: str) -> bytes:
    data = text.encode()
    return _bytes_head(number, len(data)) + data


def _bytes_head(number: int, length: int) -> bytes:
    return _encoded(number << 3 | _BYTES) + _encoded(length)


def _encoded(value: int) -> bytes:
    """A varint.

    >>> _encoded(300).hex()
    'ac02'
    """
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _no_onnx(name: str) -> ModelError:
    return ModelError(f"{name} is not an ONNX file", "export it with torch.onnx or similar")
