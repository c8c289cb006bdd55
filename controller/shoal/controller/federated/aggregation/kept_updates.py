"""A device's update, read from its file in slices: memory is that of a slice."""

from collections.abc import Iterator

import msgspec

from shoal.controller.federated.rounds.active_round import ActiveRound
from shoal.controller.federated.updates import Update
from shoal.errors import AbsentError
from shoal.federated.compression import PackedUpdate
from shoal.params import F32, square_of

#: Parameters of a slice: with sums and the strategy's vectors some 30 MB.
SLICE = 1 << 18


class _Contribution(msgspec.Struct, frozen=True, kw_only=True):
    """messages.Contribution, its vectors left where they are."""

    update: memoryview
    examples: int = 0
    loss: float = 0.0
    control: memoryview = memoryview(b"")
    seconds: float = 0.0


class KeptUpdate:
    """An update in the files of a round. AbsentError when its file is missing.

    examples        rows it trained on, limited to what the device can have
    sent_examples   as reported
    seconds         of training
    """

    def __init__(self, active: ActiveRound, device: str) -> None:
        self._active, self.device = active, device
        found = self._open()
        self.sent_examples, self.loss, self.seconds = found.examples, found.loss, found.seconds
        self.examples = active.limit_rows(device, found.examples)
        self._behind = active.record.behind(device)

    def part(self, columns: slice) -> Update:
        """Input of a strategy: these parameters of it. WireError when it cannot be decompressed."""
        found, active = self._open(), self._active
        return Update(
            device=self.device,
            delta=_part(found.update, active.size, columns),
            examples=self.examples,
            loss=self.loss,
            control=_part(found.control, active.size, columns) if has_control(active) else None,
            behind=self._behind,
            square=None if _is_whole(columns, active.size) else self._square(),
        )

    def _square(self) -> float:
        """‖delta‖² of the whole, in float64."""
        squares = self._active.squares
        if self.device not in squares:
            squares[self.device] = square_in_slices(self._open().update, self._active.size)
        return squares[self.device]

    def _open(self) -> _Contribution:
        data = self._active.files.view(self._active.id, "update", self.device)
        if data is None:
            hint = "was the database restored without it? The next attempt asks the devices again"
            raise AbsentError("update", f"{self.device} in round {self._active.id}", hint)
        return msgspec.msgpack.decode(data, type=_Contribution)


def has_control(active: ActiveRound) -> bool:
    """Whether updates have a control variate (SCAFFOLD)."""
    return bool(active.plan.learning.terms.get("shift"))


def slices(size: int) -> Iterator[slice]:
    """All parameters, a slice at a time."""
    for start in range(0, size, SLICE):
        yield slice(start, min(start + SLICE, size))


def is_sliced(size: int) -> bool:
    """Whether there is more than one slice."""
    return size > SLICE


def square_in_slices(packed: bytes | memoryview, size: int) -> float:
    """‖delta‖² of a compressed update, in float64; WireError when it cannot be decompressed."""
    update = PackedUpdate(packed, size)
    return sum(square_of(update.part(part.start, part.stop)) for part in slices(size))


def _part(packed: memoryview, size: int, columns: slice) -> F32:
    return PackedUpdate(packed, size).part(columns.start, columns.stop)


def _is_whole(columns: slice, size: int) -> bool:
    return columns.stop - columns.start == size
