"""Steps of bytes: what a model of file contents reads of a file's head and tail.

Source of the rule: Magika's feature extraction, version 2 (bytes.lstrip, bytes.rstrip, padding).
"""

from typing import Annotated

import msgspec
import numpy as np

from shoal.controller.training.steps.graph import Graph, Value
from shoal.controller.training.steps.step import InputStep, Source

Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 20)]


class Bytes(Source, frozen=True, kw_only=True, tag="bytes"):
    """Bytes of a file, or of its beginning and end: uint8 (N, length), N of one length."""

    def begin(self, g: Graph, name: str) -> Value:
        """uint8 as it is sent."""
        return g.take(name, "UINT8", (f"{name}_N", f"{name}_length"))

    def kinds(self, name: str) -> dict[str, str]:
        """Bytes are tokens of 256 kinds."""
        return {name: "tokens"}


class HeadTail(InputStep, frozen=True, kw_only=True, tag="head-tail"):
    """The first `head` and the last `tail` bytes, int32; `pad` behind a short head and before a
    short tail.

    strip   leave out ASCII whitespace before the head and behind the tail, as bytes.strip does
    block   only so many bytes at either end are looked at, before stripping; 0 for all
    """

    head: Count
    tail: Count = 0
    pad: Annotated[int, msgspec.Meta(ge=-(1 << 31), lt=1 << 31)] = 0
    strip: bool = False
    block: Count = 0

    def __post_init__(self) -> None:
        if not self.head + self.tail:
            raise ValueError("head and tail are both 0")

    def apply(self, g: Graph, value: Value) -> Value:
        """Gather both ends of each row."""
        if value.datatype != "UINT8" or value.shape is None or len(value.shape) != 2:
            raise self.refused(value, "put it behind bytes")
        parts = []
        if self.head:
            block = self._block(g, value, 0, self.block)
            parts.append(self._end(g, value, block, first=True))
        if self.tail:
            block = self._block(g, value, -self.block, np.iinfo(np.int64).max)
            parts.append(self._end(g, value, block, first=False))
        name = g.op("Concat", *parts, axis=1) if len(parts) > 1 else parts[0]
        return Value(name, "INT32", (value.shape[0], self.head + self.tail))

    def _block(self, g: Graph, value: Value, start: int, stop: int) -> str:
        if not self.block:
            return value.name
        return g.op("Slice", value.name, g.ints(start), g.ints(stop), g.ints(1))

    def _end(self, g: Graph, value: Value, block: str, *, first: bool) -> str:
        """int32 (N, head or tail). A column of `pad` stands behind (before) the bytes, and every
        place beyond them reads it."""
        rows = g.length(value, 0)
        column = g.op("Concat", rows, g.ints(1), axis=0)
        pad = g.op("Expand", g.constant(np.array([[self.pad]], np.int32)), column)
        wide = g.cast(Value(block, "UINT8", None), "INT32").name
        padded = g.op("Concat", *((wide, pad) if first else (pad, wide)), axis=1)
        last = g.op("Sub", g.op("Shape", padded, start=1, end=2), g.ints(1))
        edge = self._edge(g, wide, column, last, first=first)
        if first:
            places = g.op("Add", edge, g.constant(np.arange(self.head)[None]))
            return g.op("GatherElements", padded, g.op("Min", places, last), axis=1)
        places = g.op("Add", edge, g.constant(np.arange(1 - self.tail, 1)[None]))
        return g.op("GatherElements", padded, g.op("Max", places, g.ints(0)), axis=1)

    def _edge(self, g: Graph, wide: str, column: str, last: str, *, first: bool) -> str:
        """Place of the first (last) byte that counts: int64 (N, 1)."""
        if not self.strip:
            return g.op("Expand", g.ints(0) if first else last, column)
        control = g.op(
            "And",
            g.op("GreaterOrEqual", wide, g.scalar(9, "INT32")),
            g.op("LessOrEqual", wide, g.scalar(13, "INT32")),
        )
        space = g.op("Or", control, g.op("Equal", wide, g.scalar(32, "INT32")))
        counts = g.op("Cast", g.op("Not", space), to=6)
        always = g.op("Expand", g.constant(np.array([[1]], np.int32)), column)
        marks = g.op("Concat", *((counts, always) if first else (always, counts)), axis=1)
        return g.op("ArgMax", marks, axis=1, keepdims=1, select_last_index=int(not first))
