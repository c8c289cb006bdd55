"""Steps of text for models with a fixed vocabulary of words: split, look up, pad.

Operators: StringNormalizer, StringSplit (opset 20), LabelEncoder of ai.onnx.ml.
"""

from typing import Annotated, ClassVar

import msgspec

from shoal.controller.training.steps.graph import Graph, Value
from shoal.controller.training.steps.step import InputStep, Source

Word = Annotated[str, msgspec.Meta(min_length=1, max_length=1_000)]
Id = Annotated[int, msgspec.Meta(ge=-(1 << 31), lt=1 << 31)]
MOST_WORDS = 1_000_000


class Text(Source, frozen=True, kw_only=True, tag="text"):
    """Texts in UTF-8: BYTES (N,)."""

    def begin(self, g: Graph, name: str) -> Value:
        """Texts as they are sent."""
        return g.take(name, "BYTES", (f"{name}_N",))

    def kinds(self, name: str) -> dict[str, str]:
        """Texts."""
        return {name: "text"}


class Lower(InputStep, frozen=True, kw_only=True, tag="lower"):
    """A to Z in lower case; other letters stay as they are, whatever the device's language."""

    def apply(self, g: Graph, value: Value) -> Value:
        """StringNormalizer in the C locale."""
        _texts(self, value, 1)
        name = g.op("StringNormalizer", value.name, case_change_action="LOWER", locale="C")
        return value._replace(name=name)


class Split(InputStep, frozen=True, kw_only=True, tag="split"):
    """Words of a text: at `delimiter`, or at spaces where it is "", several of which are one
    (onnxruntime does not split at tabs and ends of lines). (N, most words of a text), "" where one
    has fewer."""

    opset: ClassVar[int] = 20
    delimiter: Annotated[str, msgspec.Meta(max_length=100)] = ""

    def apply(self, g: Graph, value: Value) -> Value:
        """StringSplit."""
        _texts(self, value, 1)
        assert value.shape is not None
        by = {"delimiter": self.delimiter} if self.delimiter else {}
        words, _ = g.ops("StringSplit", value.name, outputs=2, **by)
        return Value(words, "BYTES", (value.shape[0], f"{words}_words"))


class Vocabulary(InputStep, frozen=True, kw_only=True, tag="vocabulary"):
    """Ids of words, int64: their place in `words`, plus `first`.

    unknown   id of any other word; pad: of the "" that split puts where a text has fewer words
    """

    words: Annotated[list[Word], msgspec.Meta(min_length=1, max_length=MOST_WORDS)]
    unknown: Id
    pad: Id
    first: Id = 0

    def __post_init__(self) -> None:
        if len(set(self.words)) != len(self.words):
            seen: set[str] = set()
            twice = next(w for w in self.words if w in seen or seen.add(w))  # type: ignore[func-returns-value]
            raise ValueError(f"the word {twice!r:.80} is there twice")

    def apply(self, g: Graph, value: Value) -> Value:
        """LabelEncoder of ai.onnx.ml."""
        if value.datatype != "BYTES":
            raise self.refused(value, "put it behind text and split")
        numbers = range(self.first, self.first + len(self.words))
        ids = g.ml(
            "LabelEncoder",
            value.name,
            keys_strings=["", *self.words],
            values_int64s=[self.pad, *numbers],
            default_int64=self.unknown,
        )
        return Value(ids, "INT64", value.shape)


class Length(InputStep, frozen=True, kw_only=True, tag="length"):
    """Exactly `to` ids of a text: the first ones, or `pad` behind fewer."""

    to: Annotated[int, msgspec.Meta(ge=1, le=1 << 20)]
    pad: Id

    def apply(self, g: Graph, value: Value) -> Value:
        """Pad by `to`, then cut."""
        if value.datatype != "INT64" or value.shape is None or len(value.shape) != 2:
            raise self.refused(value, "put it behind vocabulary")
        fill = g.scalar(self.pad, "INT64")
        padded = g.op("Pad", value.name, g.ints([0, self.to]), fill, g.ints(1))
        cut = g.op("Slice", padded, g.ints(0), g.ints(self.to), g.ints(1))
        return Value(cut, "INT64", (value.shape[0], self.to))


class Mask(InputStep, frozen=True, kw_only=True, tag="mask"):
    """1 where an id is not `pad`, else 0: int64; the attention mask that many models of text read
    beside the ids. Begin with the same `from`, and the same steps."""

    pad: Id

    def apply(self, g: Graph, value: Value) -> Value:
        """Compare with pad."""
        if value.datatype != "INT64":
            raise self.refused(value, "put it behind vocabulary")
        padding = g.op("Equal", value.name, g.scalar(self.pad, "INT64"))
        return g.cast(Value(g.op("Not", padding), "BOOL", value.shape), "INT64")


def _texts(step: InputStep, value: Value, rank: int) -> None:
    if value.datatype != "BYTES" or value.shape is None or len(value.shape) != rank:
        raise step.refused(value, "put it behind text")
