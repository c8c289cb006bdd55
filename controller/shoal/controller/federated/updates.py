"""What comes into a round's aggregation and what goes out of it."""

import msgspec
import numpy as np
import numpy.typing as npt

from shoal.errors import InputError
from shoal.params import F32

F64 = npt.NDArray[np.float64]


#: Mean over rows: what is more has diverged, and would drown the losses of all others.
MOST_LOSS = 1e12


class Update(msgspec.Struct, frozen=True, kw_only=True):
    """What one device learned in one round.

    delta      float32 (P,): its theta after training less the theta it was given
    examples   rows it trained on, as it says
    loss       mean over its rows before training; what q-FedAvg weighs by
    control    float32 (P,): change of its control variate (SCAFFOLD), else None
    behind     rounds that were aggregated since the theta that it started from (FedBuff)
    """

    device: str
    delta: F32
    examples: int
    loss: float = 0.0
    control: F32 | None = None
    behind: int = 0


class Server(msgspec.Struct, frozen=True, kw_only=True):
    """What the controller carries from round to round.

    theta     float32 (P,): the checkpoint, exactly as devices are given it
    rounds    that were aggregated into it
    memory    the strategy's own vectors, float64 (P,), by name; empty at first
    """

    theta: F32
    rounds: int = 0
    memory: dict[str, F64] = {}

    def recall(self, name: str) -> F64:
        """A vector of the strategy's memory; zeros before it was first kept."""
        return self.memory.get(name, np.zeros(self.theta.size))

    def moved(self, by: F64, **memory: F64) -> "Server":
        """One round further: theta + by, taken in float64 and rounded once."""
        with np.errstate(over="ignore"):
            theta = (self.theta + by).astype(np.float32)
        if not np.isfinite(theta).all():
            raise InputError(
                "the aggregate is not finite: theta stays as it was",
                "lower the server's learning rate, or clip the updates",
            )
        return Server(theta=theta, rounds=self.rounds + 1, memory=memory)


class Aggregate(msgspec.Struct, frozen=True, kw_only=True):
    """One round's updates as one.

    delta     float64 (P,)
    devices   whose updates are in it, sorted
    chosen    of those, who was kept by a strategy that leaves some out; else all
    control   float64 (P,): mean change of the control variates (SCAFFOLD), else None
    """

    delta: F64
    devices: tuple[str, ...]
    chosen: tuple[str, ...]
    control: F64 | None = None


def check(update: Update, size: int) -> None:
    """InputError when an update cannot belong to this round."""
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
            "a device without rows sends nothing",
        )
