"""The step of tables: each column is sent under its own name, and they become one row of float32.

Encodings as in scikit-learn's SimpleImputer, StandardScaler, OneHotEncoder(handle_unknown="ignore")
and OrdinalEncoder(handle_unknown="use_encoded_value").
"""

import math
from typing import Annotated, Literal

import msgspec

from shoal.controller.training.steps.graph import Graph, Value
from shoal.controller.training.steps.step import Source

Finite = Annotated[float, msgspec.Meta(ge=-1e30, le=1e30)]
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
#: Seconds of a cycle, and Unix time of its beginning: midnight UTC, Monday, 1 January 1970.
CYCLES = {"day": (86_400, 0), "week": (604_800, 345_600), "year": (31_556_952, 0)}


class Number(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True,
    tag_field="kind", tag="number",
):  # fmt: skip
    """A number, sent as float32 (N, 1): (value - mean) / std.

    missing   in place of NaN, before that; None keeps NaN
    """

    name: Name
    missing: Finite | None = None
    mean: Finite = 0.0
    std: Annotated[float, msgspec.Meta(gt=0, le=1e30)] = 1.0

    def encode(self, g: Graph) -> tuple[str, int]:
        """Impute and standardise: tensor (N, columns), and their number."""
        name = g.take(self.name, "FP32", (f"{self.name}_N", 1)).name
        if self.missing is not None:
            name = g.op("Where", g.op("IsNaN", name), g.scalar(self.missing, "FP32"), name)
        if self.mean:
            name = g.op("Sub", name, g.scalar(self.mean, "FP32"))
        return (name if self.std == 1 else g.op("Div", name, g.scalar(self.std, "FP32"))), 1


class Category(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True,
    tag_field="kind", tag="category",
):  # fmt: skip
    """A category, sent as BYTES (N, 1), or as int64 where the categories are whole numbers.

    encoding   "one-hot": a column for each category; "ordinal": one column with its place
    unknown    of a category that is not listed. one-hot: "zeros" in all columns, or a column
               "other" more, the last; ordinal: -1
    """

    name: Name
    categories: Annotated[list[str | int], msgspec.Meta(min_length=1, max_length=10_000)]
    encoding: Literal["one-hot", "ordinal"] = "one-hot"
    unknown: Literal["zeros", "other"] = "zeros"

    def __post_init__(self) -> None:
        if len({type(one) for one in self.categories}) > 1:
            raise ValueError(f"{self.name}: categories are texts or whole numbers, not both")
        if len(set(self.categories)) != len(self.categories):
            raise ValueError(f"{self.name}: a category is there twice")

    def encode(self, g: Graph) -> tuple[str, int]:
        """Look up, then compare with each place."""
        count = len(self.categories)
        texts = isinstance(self.categories[0], str)
        raw = g.take(self.name, "BYTES" if texts else "INT64", (f"{self.name}_N", 1))
        places = list(range(count))
        if texts:
            unknown = -1 if self.encoding == "ordinal" else count
            found = g.ml("LabelEncoder", raw.name, keys_strings=self.categories,
                         values_int64s=places, default_int64=unknown)  # fmt: skip
            place = Value(found, "INT64", None)
        else:
            place = self._place_of_number(g, raw.name)
        if self.encoding == "ordinal":
            return g.cast(place, "FP32").name, 1
        columns = count + (self.unknown == "other")
        same = g.op("Equal", place.name, g.ints(range(columns)))
        return g.cast(Value(same, "BOOL", None), "FP32").name, columns

    def _place_of_number(self, g: Graph, name: str) -> Value:
        """Place of an int64 among the categories; LabelEncoder has no int64 to int64."""
        same = g.op("Equal", name, g.ints([int(one) for one in self.categories]))
        wide = g.op("Cast", same, to=7)
        known = g.op("ReduceMax", wide, g.ints(1), keepdims=1)
        first = g.op("ArgMax", wide, axis=1, keepdims=1)
        other = g.scalar(-1 if self.encoding == "ordinal" else len(self.categories), "INT64")
        return Value(g.op("Where", g.op("Cast", known, to=9), first, other), "INT64", None)


class Time(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True,
    tag_field="kind", tag="time",
):  # fmt: skip
    """A time, sent as int64 (N, 1) of Unix seconds: for each cycle, sine and cosine of the share of
    it that has passed.

    cycles     "day" from midnight, "week" from Monday, "year" of 31 556 952 s from 1970
    offset_s   of the local time from UTC, added first
    """

    name: Name
    cycles: Annotated[list[Literal["day", "week", "year"]], msgspec.Meta(min_length=1)]
    offset_s: Annotated[int, msgspec.Meta(ge=-86_400, le=86_400)] = 0

    def encode(self, g: Graph) -> tuple[str, int]:
        """Remainders in whole seconds, then sine and cosine in float32."""
        raw = g.take(self.name, "INT64", (f"{self.name}_N", 1)).name
        columns = []
        for cycle in self.cycles:
            length, begin = CYCLES[cycle]
            since = g.op("Add", raw, g.scalar(self.offset_s - begin, "INT64"))
            passed = g.op("Mod", since, g.scalar(length, "INT64"))
            angle = g.op("Mul", g.cast(Value(passed, "INT64", None), "FP32").name,
                         g.scalar(2 * math.pi / length, "FP32"))  # fmt: skip
            columns += [g.op("Sin", angle), g.op("Cos", angle)]
        return g.op("Concat", *columns, axis=1), len(columns)


class Table(Source, frozen=True, kw_only=True, tag="table"):
    """Columns that are sent each under its own name, and joined in this order: float32
    (N, columns). `from` is not used."""

    columns: Annotated[list[Number | Category | Time], msgspec.Meta(min_length=1, max_length=200)]

    def begin(self, g: Graph, name: str) -> Value:
        """Encode and join."""
        encoded = [column.encode(g) for column in self.columns]
        parts, counts = zip(*encoded, strict=True)
        joined = g.op("Concat", *parts, axis=1) if len(parts) > 1 else parts[0]
        return Value(joined, "FP32", (f"{self.columns[0].name}_N", sum(counts)))
