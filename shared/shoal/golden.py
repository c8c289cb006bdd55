"""Golden vectors of a model of tensors: inputs, and what each variant must answer on any CPU.

MessagePack, so that strings and every datatype fit, and nothing unpacks to more than its bytes.
"""

from typing import Annotated

import msgspec

from shoal.tensors import Array, StoredTensor

#: Bytes of the file, at most; bytes that the controller fills with vectors (two at least).
LIMIT, AIM = 8 << 20, 4 << 20
#: Elements of an output that are kept: of a larger one these many, at equal distances.
MOST_ELEMENTS = 1_024


class Vector(msgspec.Struct, frozen=True, kw_only=True):
    """One request and its answers. outputs: variant -> tensor name -> what it gives."""

    inputs: dict[str, StoredTensor]
    outputs: dict[str, dict[str, StoredTensor]]

    def arrays(self) -> dict[str, Array]:
        """The inputs as arrays; InputError when they do not fit."""
        return {name: stored.array(name) for name, stored in self.inputs.items()}


class GoldenTensors(msgspec.Struct, frozen=True, kw_only=True):
    """The content of golden.msgpack."""

    vectors: Annotated[list[Vector], msgspec.Meta(min_length=1, max_length=64)]

    def to_bytes(self) -> bytes:
        return msgspec.msgpack.encode(self)
