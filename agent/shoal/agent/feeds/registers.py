"""Modbus registers: tags, and their values in the registers of a response. Pure.

Source: MODBUS Application Protocol 1.1b3, section 4: data model, and numbers of one register. It
says nothing of numbers of several registers; their four orders are those that devices use.
"""

import math
import struct
from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec

from shoal.agent.serving.labels import number

Table = Literal["holding", "input", "coil", "discrete"]
#: Registers of each type, and how struct reads their bytes; binary-coded decimals are read as hex.
TYPES = {
    "bool": (1, ">H"),
    "int16": (1, ">h"),
    "uint16": (1, ">H"),
    "float16": (1, ">e"),
    "int32": (2, ">i"),
    "uint32": (2, ">I"),
    "float32": (2, ">f"),
    "int64": (4, ">q"),
    "uint64": (4, ">Q"),
    "float64": (4, ">d"),
    "bcd16": (1, ""),
    "bcd32": (2, ""),
}
#: Types whose bits can be taken apart.
_WHOLE = ("bool", "int16", "uint16", "int32", "uint32", "int64", "uint64")
#: Most registers of a text; registers and bits of a table.
TEXT, TABLE = 120, 65_536


class Tag(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One value.

    table    "holding", "input" (registers), "coil" or "discrete" (bits)
    address  of its first register or its bit, from 0
    type     of registers; bits are bits
    length   registers of a "string"
    words    whether the first register of several is the high one ("big") or the low ("little")
    bytes    whether the first byte of a register is the high one ("big") or the low ("little")
    bit      first bit of the number that is the value, 0 the lowest; -1 for the whole number
    bits     how many, from `bit` up: an unsigned number
    scale, offset   the value is number · scale + offset
    missing  the number that stands for no value, before scale; None for none
    """

    name: str
    address: Annotated[int, msgspec.Meta(ge=0, lt=TABLE)]
    table: Table = "holding"
    type: Literal[
        "bool", "int16", "uint16", "int32", "uint32", "int64", "uint64",
        "float16", "float32", "float64", "bcd16", "bcd32", "string",
    ] = "int16"  # fmt: skip
    length: Annotated[int, msgspec.Meta(ge=0, le=TEXT)] = 0
    words: Literal["big", "little"] = "big"
    bytes: Literal["big", "little"] = "big"
    bit: Annotated[int, msgspec.Meta(ge=-1, le=63)] = -1
    bits: Annotated[int, msgspec.Meta(ge=1, le=32)] = 1
    scale: float = 1.0
    offset: float = 0.0
    missing: float | None = None

    def __post_init__(self) -> None:
        """ValueError, which names the tag, for settings that do not go together."""
        if self.type == "string" and not self.length:
            raise ValueError(f"{self.name}: a string needs its length in registers")
        if self.type != "string" and self.length:
            raise ValueError(f"{self.name}: only a string has a length")
        if self.address + self.size > TABLE:
            raise ValueError(
                f"{self.name}: {self.size} registers from {self.address} end the table"
            )
        if not (math.isfinite(self.scale) and math.isfinite(self.offset)):
            raise ValueError(f"{self.name}: scale and offset must be finite")
        if self.bit < 0:
            return
        if self.is_bit or self.type not in _WHOLE:
            raise ValueError(f"{self.name}: only whole numbers in registers have bits")
        if self.bit + self.bits > 16 * self.size:
            raise ValueError(f"{self.name}: a {self.type} has {16 * self.size} bits")

    @property
    def is_bit(self) -> bool:
        return self.table in ("coil", "discrete")

    @property
    def size(self) -> int:
        """Registers, or bits."""
        return 1 if self.is_bit else self.length or TYPES[self.type][0]


def value(tag: Tag, registers: Sequence[int]) -> float:
    """A tag's value; NaN where there is none: `missing`, no decimal digits, or text of no number.

    registers   its own, 0 to 65535 each; for a coil or discrete input, its bit

    >>> value(Tag(name="t", address=7, type="int32", scale=0.1), [65535, 65516])
    -2.0
    >>> value(Tag(name="t", address=7, type="uint16", bit=4, bits=3), [0x0050])
    5.0
    """
    if tag.is_bit:
        return float(bool(registers[0]))
    if tag.type == "string":
        found = number(text(tag, registers))
    elif tag.bit >= 0:
        raw = int.from_bytes(_bytes(tag, registers), "big")
        found = float(raw >> tag.bit & (1 << tag.bits) - 1)
    else:
        found = _number(tag, _bytes(tag, registers))
    return math.nan if found == tag.missing else found * tag.scale + tag.offset


def text(tag: Tag, registers: Sequence[int]) -> str:
    """A tag's registers as text, up to the first zero, without spaces around it.

    >>> text(Tag(name="t", address=0, type="string", length=3), [0x4142, 0x2043, 0])
    'AB C'
    """
    if tag.type != "string":
        return f"{value(tag, registers):.15g}"
    return _bytes(tag, registers).partition(b"\0")[0].decode("latin-1").strip()


def _bytes(tag: Tag, registers: Sequence[int]) -> bytes:
    """The registers' bytes, the highest first."""
    ordered = reversed(registers) if tag.words == "little" else registers
    return b"".join(register.to_bytes(2, tag.bytes) for register in ordered)


def _number(tag: Tag, raw: bytes) -> float:
    if tag.type.startswith("bcd"):
        return float(raw.hex()) if raw.hex().isdecimal() else math.nan
    found = float(struct.unpack(TYPES[tag.type][1], raw)[0])
    return float(bool(found)) if tag.type == "bool" else found
