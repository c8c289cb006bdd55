"""SCAFFOLD: control variates correct the client drift of local steps.

Karimireddy et al., "SCAFFOLD: Stochastic Controlled Averaging for Federated Learning", 2020,
option II. The device's half is `shoal.agent.federated.trainer`; `shift` is in the train graph.
"""

from typing import ClassVar

from shoal.controller.federated.aggregation.gathering import Gathering, Shelf
from shoal.controller.federated.strategies.fedavg import WeightedSum
from shoal.controller.federated.strategy import Counted, Positive, Strategy
from shoal.controller.federated.updates import Aggregate, Server, Update
from shoal.errors import ConflictError, InputError


class Scaffold(Strategy, frozen=True, kw_only=True):
    """theta + lr·mean delta; c += taking part / population · mean change of c_i.

    Every device weighs the same, as in the paper: c is a mean over devices.

    population   number of devices that may take part
    """

    elementwise: ClassVar[bool] = True
    population: Counted
    lr: Positive = 1.0

    def gather(self, size: int, shelf: Shelf) -> Gathering:
        return WeightedSum(size, _with_control)

    def advance(self, server: Server, found: Aggregate) -> Server:
        taking_part = len(found.devices)
        if found.control is None or taking_part > self.population:
            raise ConflictError(
                f"{taking_part} devices of {self.population} sent control variates",
                "set population to the devices that may take part",
            )
        c = server.recall("c") + taking_part / self.population * found.control
        return server.moved(self.lr * found.delta, c=c)

    def terms(self) -> dict[str, float | bool]:
        return {"shift": True}


def _with_control(update: Update) -> float:
    if update.control is None:
        raise InputError(
            f"update of {update.device} has no control variate", "its train graph lacks shift"
        )
    return 1.0
