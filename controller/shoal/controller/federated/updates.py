"""Input and output of aggregation: client updates, server state, aggregates."""

import msgspec
import numpy as np
import numpy.typing as npt

from shoal.errors import InputError
from shoal.params import F32, square_of

F64 = npt.NDArray[np.float64]


#: Largest mean loss: a larger one has diverged, and would dominate all others.
MOST_LOSS = 1e12


class Update(msgspec.Struct, frozen=True, kw_only=True):
    """Update of one device in one round.

    delta      float32 (P,): theta after training minus theta before
    examples   rows it trained on, as reported
    loss       mean over its rows before training; weight of q-FedAvg
    control    float32 (P,): change of its control variate (SCAFFOLD), else None
    behind     staleness: rounds aggregated since its starting theta (FedBuff)
    square     ‖delta‖² of the whole update, where delta is a slice of it; None: delta is all of it
    """

    device: str
    delta: F32
    examples: int
    loss: float = 0.0
    control: F32 | None = None
    behind: int = 0
    square: float | None = None

    def squared_norm(self) -> float:
        """‖delta‖² of the whole update, in float64, independent of the number of threads."""
        return square_of(self.delta) if self.square is None else self.square


class Server(msgspec.Struct, frozen=True, kw_only=True):
    """Server state between rounds.

    theta     float32 (P,): the checkpoint, exactly as sent to devices
    rounds    aggregated into it
    memory    vectors of the strategy's state, float64 (P,), by name; empty at first
    """

    theta: F32
    rounds: int = 0
    memory: dict[str, F64] = {}

    def recall(self, name: str) -> F64:
        """A vector of the strategy's state; zeros before it was first stored."""
        return self.memory.get(name, np.zeros(self.theta.size))

    def moved(self, by: F64, **memory: F64) -> "Server":
        """State after a round: theta + by, computed in float64 and rounded once."""
        with np.errstate(over="ignore"):
            theta = (self.theta + by).astype(np.float32)
        if not np.isfinite(theta).all():
            raise InputError(
                "the aggregate is not finite: theta stays as it was",
                "lower the server's learning rate, or clip the updates",
            )
        return Server(theta=theta, rounds=self.rounds + 1, memory=memory)


class Aggregate(msgspec.Struct, frozen=True, kw_only=True):
    """Aggregate of a round's updates.

    delta     float64 (P,)
    devices   devices that sent an update, sorted
    chosen    those of them that the strategy kept; mostly all
    control   float64 (P,): mean change of the control variates (SCAFFOLD), else None
    """

    delta: F64
    devices: tuple[str, ...]
    chosen: tuple[str, ...]
    control: F64 | None = None


def check(update: Update, size: int) -> None:
    """InputError for an update with wrong shape, type, or values."""
    vectors = [update.delta] if update.control is None else [update.delta, update.control]
    for vector in vectors:
        if vector.shape != (size,) or vector.dtype != np.float32:
            raise InputError(
                f"update of {update.device}: {vector.dtype} {vector.shape}, float32 ({size},) "
                "needed",
                "is it another model's?",
            )
        if not np.isfinite(vector).all():
            raise InputError(
                f"update of {update.device} holds NaN or infinity", "its training diverged"
            )
    if update.examples < 1 or not 0 <= update.loss <= MOST_LOSS:
        raise InputError(
            f"update of {update.device}: {update.examples} examples, loss {update.loss}",
            "a device without rows sends no update",
        )
