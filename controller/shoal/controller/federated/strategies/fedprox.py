"""FedProx: a proximal term keeps local training near the global theta; the server is FedAvg's.

Li et al., "Federated Optimization in Heterogeneous Networks", 2020. The term
mu/2·‖theta - theta0‖² is in the train graph (`proximal=True`).
"""

from typing import Annotated

import msgspec

from shoal.controller.federated.strategies.fedavg import FedAvg


class FedProx(FedAvg, frozen=True, kw_only=True):
    """mu   weight of the proximal term; 0 is FedAvg."""

    mu: Annotated[float, msgspec.Meta(ge=0)] = 0.01

    def terms(self) -> dict[str, float | bool]:
        return {"mu": self.mu}
