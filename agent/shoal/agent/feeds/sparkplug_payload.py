"""Sparkplug B payloads: encoder and decoder of the protobuf fields that Shoal uses.

A protobuf runtime would be 2 to 3 MB more of memory and a compiled wheel on the device, for a dozen
fields of plain wire format (docs/adr/0006-sparkplug.md). Unknown fields are skipped, as
protobuf's own readers do. Source: Eclipse Sparkplug 3.0.0, chapter 6, and Tahu's sparkplug_b.proto.

    >>> data = encode(Payload(1_000, [Metric("t", datatype=DOUBLE, value=21.5)], 0))
    >>> decode(data).metrics[0].value
    21.5
"""

import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

from shoal.errors import OversizeError, WireError

INT8, INT16, INT32, INT64, UINT8, UINT16, UINT32, UINT64 = range(1, 9)
FLOAT, DOUBLE, BOOLEAN, STRING, DATETIME, TEXT = range(9, 15)
#: Bits of the signed kinds, which travel as two's complement.
_SIGNED = {INT8: 8, INT16: 16, INT32: 32, INT64: 64}
_WIDE = frozenset({INT64, UINT32, UINT64, DATETIME})
#: Values of the property "Quality".
GOOD, STALE = 192, 500
#: Largest payload, and most metrics in one.
LIMIT, METRICS = 4 << 20, 65_536
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


class Metric(NamedTuple):
    """One metric.

    name, alias   an alias stands for the name after the birth that declares both
    time_ms       since 1970, None where only the payload has one
    datatype      0 where only the birth has it
    value         None for null; int, float, bool or str
    quality       property "Quality": 192 good, 0 bad, 500 stale; None without it
    """

    name: str = ""
    alias: int | None = None
    time_ms: int | None = None
    datatype: int = 0
    value: Any = None
    historical: bool = False
    quality: int | None = None


class Payload(NamedTuple):
    """time_ms: since 1970; seq: 0 to 255, None in an NDEATH."""

    time_ms: int | None
    metrics: list[Metric]
    seq: int | None = None


# ---------------------------------------------------------------------------------- writing


def encode(payload: Payload) -> bytes:
    """Bytes of a payload; every metric that has a value has a datatype too."""
    out = b"" if payload.time_ms is None else _number(1, payload.time_ms)
    out += b"".join(_block(2, _metric(metric)) for metric in payload.metrics)
    return out if payload.seq is None else out + _number(3, payload.seq)


def _metric(metric: Metric) -> bytes:
    out = _block(1, metric.name.encode()) if metric.name else b""
    out += b"" if metric.alias is None else _number(2, metric.alias)
    out += b"" if metric.time_ms is None else _number(3, metric.time_ms)
    out += _number(4, metric.datatype) if metric.datatype else b""
    out += _number(5, 1) if metric.historical else b""
    out += _number(7, 1) if metric.value is None else b""
    out += b"" if metric.quality is None else _block(9, _quality(metric.quality))
    return out if metric.value is None else out + _value(metric.datatype, metric.value)


def _value(datatype: int, value: Any) -> bytes:
    if datatype in _SIGNED:
        value = int(value) & (1 << max(32, _SIGNED[datatype])) - 1
    if datatype == BOOLEAN:
        return _number(14, int(bool(value)))
    if datatype == FLOAT:
        return _key(12, _FIXED32) + struct.pack("<f", value)
    if datatype == DOUBLE:
        return _key(13, _FIXED64) + struct.pack("<d", value)
    if datatype in (STRING, TEXT):
        return _block(15, str(value).encode())
    return _number(11 if datatype in _WIDE else 10, int(value))


def _quality(quality: int) -> bytes:
    return _block(1, b"Quality") + _block(2, _number(1, INT32) + _number(3, quality))


def _key(field: int, kind: int) -> bytes:
    return _varint(field << 3 | kind)


def _number(field: int, value: int) -> bytes:
    return _key(field, _VARINT) + _varint(value)


def _block(field: int, data: bytes) -> bytes:
    return _key(field, _BYTES) + _varint(len(data)) + data


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


# ---------------------------------------------------------------------------------- reading


def decode(data: bytes) -> Payload:
    """Decode a payload; WireError for any other bytes. Values are converted by `typed`."""
    if len(data) > LIMIT:
        raise OversizeError("sparkplug", len(data), LIMIT)
    time_ms = seq = None
    metrics: list[Metric] = []
    for field, value in _fields(data):
        if field == 1 and isinstance(value, int):
            time_ms = value
        elif field == 2 and isinstance(value, bytes):
            metrics.append(_read_metric(value))
        elif field == 3 and isinstance(value, int):
            seq = value
        if len(metrics) > METRICS:
            raise WireError(f"Sparkplug payload of more than {METRICS} metrics")
    return Payload(time_ms, metrics, seq)


def typed(value: Any, datatype: int) -> Any:
    """An unsigned value from the wire converted to its datatype.

    >>> typed(2**32 - 1, INT32), typed(255, INT8), typed(7, UINT8)
    (-1, -1, 7)
    """
    bits = _SIGNED.get(datatype)
    if bits is None or type(value) is not int:
        return value
    value &= (1 << bits) - 1
    return value - (1 << bits) if value >> (bits - 1) else value


def _read_metric(data: bytes) -> Metric:
    fields: dict[str, Any] = {}
    value: Any = None
    for field, found in _fields(data):
        name, kind = _METRIC.get(field, ("", object))
        if not name or not isinstance(found, kind):
            continue
        if name == "value":
            value = _read_value(field, found)
        elif isinstance(found, bytes):
            fields[name] = _text(found) if field == 1 else _read_quality(found)
        else:
            fields[name] = found
    null = fields.pop("null", 0)
    fields["historical"] = bool(fields.get("historical", 0))
    return Metric(**fields, value=None if null else typed(value, fields.get("datatype", 0)))


_METRIC: dict[int, tuple[str, type]] = {
    1: ("name", bytes),
    2: ("alias", int),
    3: ("time_ms", int),
    4: ("datatype", int),
    5: ("historical", int),
    7: ("null", int),
    9: ("quality", bytes),
    10: ("value", int),
    11: ("value", int),
    12: ("value", float),
    13: ("value", float),
    14: ("value", int),
    15: ("value", bytes),
}


def _read_value(field: int, found: Any) -> Any:
    if field == 14:
        return bool(found)
    if field == 15:
        return _text(found)
    return found & 0xFFFFFFFF if field == 10 else found


def _read_quality(data: bytes) -> int | None:
    """The property "Quality" of a property set; None without it."""
    keys, values = list[bytes](), list[bytes]()
    for field, found in _fields(data):
        if isinstance(found, bytes):
            (keys if field == 1 else values).append(found)
    for key, value in zip(keys, values, strict=False):
        if key == b"Quality":
            return next((n for f, n in _fields(value) if f in (3, 4) and isinstance(n, int)), None)
    return None


def _text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise WireError("Sparkplug payload with text that is not UTF-8") from error


def _fields(data: bytes) -> Iterator[tuple[int, int | float | bytes]]:
    """(field number, value) in order; WireError for truncated or invalid bytes."""
    at = 0
    while at < len(data):
        key, at = _read_varint(data, at)
        field, kind = key >> 3, key & 7
        if kind == _VARINT:
            number, at = _read_varint(data, at)
            yield field, number
            continue
        if kind == _BYTES:
            size, at = _read_varint(data, at)
        else:
            size = {_FIXED64: 8, _FIXED32: 4}.get(kind, -1)
        if size < 0 or at + size > len(data):
            raise WireError("Sparkplug payload is cut off or no protobuf")
        part, at = data[at : at + size], at + size
        if kind == _BYTES:
            yield field, part
        else:
            yield field, struct.unpack("<d" if kind == _FIXED64 else "<f", part)[0]


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(data) and shift < 70:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, at
        shift += 7
    raise WireError("Sparkplug payload is cut off or no protobuf")
