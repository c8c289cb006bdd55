"""Hierarchical aggregation: the sum of a site's updates, made by its gateway before the WAN.

Sums on fixed grids (shoal.federated.sums) are associative: aggregating site sums gives bit by bit
the same result as aggregating every update. A gateway saves bandwidth; it must be trusted with the
updates of its site, and for their sum.

    >>> gateway = Gateway(2, most_examples=100)
    >>> gateway.add("press-1", np.array([0.5, 1.0], np.float32), examples=3, loss=0.7)
    >>> gateway.add("press-2", np.array([0.25, 0.0], np.float32), examples=1, loss=0.9)
    >>> found = decode(gateway.to_bytes())
    >>> sorted(found.members), ExactSum.from_bytes(found.deltas, 2).value().tolist()
    (['press-1', 'press-2'], [1.75, 3.0])
"""

from typing import Annotated

import msgspec
import numpy as np

from shoal.errors import ConflictError, InputError
from shoal.federated.sums import ExactSum
from shoal.params import F32
from shoal.validation_errors import decode_errors_as

#: Largest number of devices in one site sum.
MOST_MEMBERS = 4_096
Count = Annotated[int, msgspec.Meta(ge=1, le=2**53)]
Real = Annotated[float, msgspec.Meta(ge=0, le=1e300)]


class Member(msgspec.Struct, frozen=True, kw_only=True):
    """One device of the site: rows, mean loss before training, seconds of training."""

    examples: Count
    loss: Real = 0.0
    seconds: Real = 0.0


class SiteSum(msgspec.Struct, frozen=True, kw_only=True):
    """Members, Σ examples·delta and Σ examples of a site; sums as ExactSum.to_bytes."""

    members: Annotated[dict[str, Member], msgspec.Meta(min_length=1, max_length=MOST_MEMBERS)]
    deltas: bytes
    weights: bytes


class Gateway:
    """Accumulates the updates of a site in any order, in the memory of one sum.

    most_examples   largest weight of a device, from the task's strategy
    """

    def __init__(self, size: int, most_examples: int) -> None:
        self._deltas, self._weights, self._most = ExactSum(size), ExactSum(1), most_examples
        self._members: dict[str, Member] = {}

    def add(
        self, device: str, delta: F32, examples: int, loss: float = 0.0, seconds: float = 0.0
    ) -> None:
        """Add one device's update, float32 (P,). ConflictError for its second, InputError for an
        invalid one; neither is added."""
        if device in self._members:
            raise ConflictError(f"{device} has an update in this sum", "the first one counts")
        if examples < 1:
            raise InputError(f"update of {device}: {examples} examples", "it needs at least one")
        weight = float(min(examples, self._most))
        self._weights.reach_with(np.array([weight]))
        self._deltas.add(delta, weight)
        self._weights.add(np.array([weight]))
        self._members[device] = Member(examples=examples, loss=loss, seconds=seconds)

    def to_bytes(self) -> bytes:
        """msgpack SiteSum; ConflictError before the first update."""
        if not self._members:
            raise ConflictError("no update of this site arrived", "there is nothing to sum")
        made = SiteSum(
            members=dict(sorted(self._members.items())), deltas=self._deltas.to_bytes(),
            weights=self._weights.to_bytes(),
        )  # fmt: skip
        return msgspec.msgpack.encode(made)


def decode(data: bytes) -> SiteSum:
    """Decode a site sum; InputError if invalid."""
    with decode_errors_as(lambda cause: InputError(f"not a site sum: {cause}", "send it again")):
        return msgspec.msgpack.decode(data, type=SiteSum)
