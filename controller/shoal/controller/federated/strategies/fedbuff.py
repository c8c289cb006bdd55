"""FedBuff: asynchronous; the server steps with every so many updates of any devices.

Nguyen et al., "Federated Learning with Buffered Asynchronous Aggregation", 2022. An update that
started from an older theta weighs less, by the root of its staleness. The buffer
is a round's goal (`Pace.goal`); in shoal.controller.federated.rounds.machine a round takes
updates that started in an earlier one.
"""

from typing import Annotated, ClassVar

import msgspec

from shoal.controller.federated.aggregation.gathering import Gathering, Shelf
from shoal.controller.federated.strategies.fedavg import WeightedSum
from shoal.controller.federated.strategy import Positive, Strategy
from shoal.controller.federated.updates import Aggregate, Server, Update
from shoal.errors import InputError


class FedBuff(Strategy, frozen=True, kw_only=True):
    """theta + lr·Σ delta/√(1 + behind) / K, with K the updates in the buffer.

    lr          the server's learning rate
    behind      largest staleness of an update, in rounds; older ones are refused
    """

    elementwise: ClassVar[bool] = True
    lr: Positive = 1.0
    behind: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 10

    def gather(self, size: int, shelf: Shelf) -> Gathering:
        return WeightedSum(size, self._one, lambda update: float((1 + update.behind) ** -0.5))

    def advance(self, server: Server, found: Aggregate) -> Server:
        return server.moved(self.lr * found.delta)

    def late(self) -> int:
        return self.behind

    def _one(self, update: Update) -> float:
        behind = update.behind
        if not 0 <= behind <= self.behind:
            raise InputError(
                f"update of {update.device} is {behind} rounds behind, {self.behind} allowed",
                "the device is too slow for this task",
            )
        return 1.0
