"""Modbus registers: grouped into requests, and decoded into values. Pure.

Source: MODBUS Application Protocol 1.1b3: at most 125 registers, or 2 000 bits, in one response.
"""

import struct
from collections.abc import Sequence
from typing import Annotated, Literal, NamedTuple

import msgspec

Table = Literal["holding", "input", "coil", "discrete"]
#: Registers of each type, and how struct reads their bytes.
TYPES = {
    "bool": (1, ">H"),
    "int16": (1, ">h"),
    "uint16": (1, ">H"),
    "int32": (2, ">i"),
    "uint32": (2, ">I"),
    "float32": (2, ">f"),
    "int64": (4, ">q"),
    "uint64": (4, ">Q"),
    "float64": (4, ">d"),
}
#: Most registers, and bits, in one request; longest gap of unused registers inside one.
REGISTERS, BITS, GAP = 125, 2_000, 8


class Tag(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One value.

    table    "holding", "input" (registers), "coil" or "discrete" (bits)
    address  of its first register or its bit, from 0
    type     of registers; bits are bits
    words    whether the first register of several is the high one ("big") or the low ("little")
    bit      of the register that is the value, 0 the lowest; -1 for the whole
    """

    name: str
    address: Annotated[int, msgspec.Meta(ge=0, le=65_535)]
    table: Table = "holding"
    type: Literal[
        "bool", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float32", "float64"
    ] = "int16"
    words: Literal["big", "little"] = "big"
    bit: Annotated[int, msgspec.Meta(ge=-1, le=15)] = -1

    @property
    def is_bit(self) -> bool:
        return self.table in ("coil", "discrete")

    @property
    def size(self) -> int:
        """Registers, or bits."""
        return 1 if self.is_bit else TYPES[self.type][0]


class Block(NamedTuple):
    """Adjacent tags read by one request. length: registers, or bits."""

    table: Table
    address: int
    length: int
    tags: tuple[Tag, ...]


def blocks(tags: Sequence[Tag]) -> list[Block]:
    """Requests that read all tags: few, with gaps of at most GAP and the protocol's limits."""
    found: list[Block] = []
    for tag in sorted(tags, key=lambda tag: (tag.table, tag.address, tag.size)):
        last = found[-1] if found else None
        joined = extended(last, tag) if last else None
        if joined is None:
            found.append(Block(tag.table, tag.address, tag.size, (tag,)))
        else:
            found[-1] = joined
    return found


def extended(block: Block, tag: Tag) -> Block | None:
    """The block with one tag more; None when one request cannot read both."""
    end = block.address + block.length
    count = max(end, tag.address + tag.size) - block.address
    limit, gap = (BITS, BITS) if tag.is_bit else (REGISTERS, GAP)
    if tag.table != block.table or tag.address - end > gap or count > limit:
        return None
    return Block(block.table, block.address, count, (*block.tags, tag))


def split(block: Block) -> list[Block]:
    """A block for each tag: one address that the device refuses then costs no other tag."""
    return [Block(tag.table, tag.address, tag.size, (tag,)) for tag in block.tags]


def value(tag: Tag, block: Block, response: Sequence[int]) -> float:
    """A tag's value in the response to its block: registers 0 to 65535, or bits.

    >>> tag = Tag(name="t", address=7, type="int32")
    >>> value(tag, Block("holding", 6, 3, (tag,)), [1, 65535, 65534])
    -2.0
    """
    at = tag.address - block.address
    words = list(response[at : at + tag.size])
    if tag.is_bit:
        return float(bool(words[0]))
    if tag.bit >= 0:
        return float(words[0] >> tag.bit & 1)
    if tag.words == "little":
        words.reverse()
    raw = b"".join(word.to_bytes(2, "big") for word in words)
    number = float(struct.unpack(TYPES[tag.type][1], raw)[0])
    return float(bool(number)) if tag.type == "bool" else number
