"""How a strategy gathers client updates, and the accumulator of those that compare them.

Compared updates are kept side by side on a shelf, a file that is read in blocks of columns, so that
memory is O(P). The accumulator of a sum is `strategies.fedavg.WeightedSum`.
"""

from collections.abc import Callable, Container, Iterator, Sequence
from typing import Protocol

import numpy as np

from shoal.controller.federated.updates import Aggregate, Update, check
from shoal.errors import ConflictError
from shoal.federated.sums import F64
from shoal.params import F32

#: Elements of a block: 8 MB in float64.
_BLOCK = 1 << 20


class Gathering(Protocol):
    """Accumulator of updates; the result does not depend on their order."""

    def add(self, update: Update) -> None:
        """Add an update. InputError for an invalid one, ConflictError for a device's second."""
        ...

    def result(self) -> Aggregate:
        """ConflictError for too few updates."""
        ...


class Shelf(Protocol):
    """Storage of a round's updates, side by side."""

    def put(self, row: F32) -> None:
        """Append one update, float32 (P,)."""
        ...

    def columns(self, start: int, stop: int) -> F32:
        """These elements of every update, float32 (N, stop - start), in the order of `put`."""
        ...


class Row:
    """Row of the shelf: its device and number of examples."""

    __slots__ = ("device", "examples", "place")

    def __init__(self, device: str, place: int, examples: int) -> None:
        self.device, self.place, self.examples = device, place, examples


class Blocks:
    """Updates sorted by device, in blocks of columns.

    rows    one of each update, sorted by device
    """

    def __init__(self, shelf: Shelf, rows: Sequence[Row], size: int) -> None:
        self.rows, self.size, self._shelf = rows, size, shelf

    def __iter__(self) -> Iterator[tuple[slice, F64]]:
        """(columns, float64 (N, columns)), one block at a time."""
        width = max(1, _BLOCK // max(1, len(self.rows)))
        order = [row.place for row in self.rows]
        for start in range(0, self.size, width):
            stop = min(start + width, self.size)
            block = self._shelf.columns(start, stop)[order]
            yield slice(start, stop), block.astype(np.float64)

    def each(self, combine: Callable[[F64], F64]) -> F64:
        """combine(block (N, n)) -> (n,) over all columns: float64 (P,)."""
        out = np.empty(self.size)
        for columns, block in self:
            out[columns] = combine(block)
        return out

    def examples(self) -> F64:
        """float64 (N,)."""
        return np.array([row.examples for row in self.rows], np.float64)


class Compared:
    """Updates kept side by side; `combine` returns the delta and the indexes of chosen updates.

    least   smallest number of updates that the strategy needs
    """

    def __init__(
        self,
        size: int,
        shelf: Shelf,
        combine: Callable[[Blocks], tuple[F64, Sequence[int]]],
        least: int = 1,
    ) -> None:
        self._size, self._shelf, self._combine, self._least = size, shelf, combine, least
        self._rows: dict[str, Row] = {}

    def add(self, update: Update) -> None:
        check(update, self._size)
        check_new(update.device, self._rows)
        self._shelf.put(update.delta)
        self._rows[update.device] = Row(update.device, len(self._rows), update.examples)

    def result(self) -> Aggregate:
        if len(self._rows) < self._least:
            raise too_few(len(self._rows), self._least)
        rows = [self._rows[name] for name in sorted(self._rows)]
        delta, chosen = self._combine(Blocks(self._shelf, rows, self._size))
        return Aggregate(
            delta=delta,
            devices=tuple(row.device for row in rows),
            chosen=tuple(rows[i].device for i in sorted(chosen)),
        )


def check_new(device: str, known: Container[str]) -> None:
    """ConflictError when the device's update is in already."""
    if device in known:
        raise ConflictError(f"{device} has an update in this round", "the first one counts")


def too_few(have: int, need: int) -> ConflictError:
    return ConflictError(
        f"{have} updates, this strategy needs {need}",
        "let more devices take part, or assume fewer malicious ones",
        have=have,
        need=need,
    )
