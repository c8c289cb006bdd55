"""Aggregation strategies: the base class for plugins, found by their entry points.

    [project.entry-points."shoal.strategies"]
    mine = "my_package.mine:Mine"

A strategy is a frozen struct of settings. It defines how updates are gathered, and the server step.
"""

import functools
import importlib.metadata
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import msgspec
import numpy as np

from shoal.controller.federated.aggregation.gathering import Gathering, Shelf
from shoal.controller.federated.updates import Aggregate, Server, Update
from shoal.errors import SettingError

GROUP = "shoal.strategies"
#: Rows that a device keeps by default.
MOST_EXAMPLES = 20_000

Positive = Annotated[float, msgspec.Meta(gt=0)]
Fraction = Annotated[float, msgspec.Meta(ge=0, lt=1)]
Natural = Annotated[int, msgspec.Meta(ge=0)]
Counted = Annotated[int, msgspec.Meta(ge=1)]


class Strategy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of strategies: its fields are the settings, its server step is FedAvg's by default.

    sums          it needs sums over devices only, and never compares updates
    elementwise   besides, its server step treats every parameter alone: of a large model `gather`
                  and `advance` are called for one slice of the parameters after the other
    """

    sums: ClassVar[bool] = True
    elementwise: ClassVar[bool] = False

    def gather(self, size: int, shelf: Shelf) -> Gathering:
        """Accumulator of a round's updates; shelf: empty, for strategies that compare them."""
        raise NotImplementedError

    def advance(self, server: Server, found: Aggregate) -> Server:
        """Server state after the round. InputError, and no change, if it is not finite."""
        return server.moved(found.delta)

    def reach(self, update: Update) -> float:
        """Largest number that an update adds to a sum: `weight` times its largest element."""
        vectors = [update.delta] if update.control is None else [update.delta, update.control]
        largest = max(float(np.abs(vector).max(initial=1)) for vector in vectors)
        return self.weight(update) * largest

    def weight(self, update: Update) -> float:
        """Weight of an update in a sum."""
        return 1.0

    def late(self) -> int:
        """Rounds that an update may lag behind; 0 for synchronous strategies."""
        return 0

    def terms(self) -> dict[str, float | bool]:
        """Inputs of the train graph beside theta, x, y and lr, for the devices."""
        return {}


class ByExamples(Strategy, frozen=True, kw_only=True):
    """Base of strategies that weigh updates by their number of examples.

    most_examples   upper bound on a device's reported number, which cannot be verified
    """

    most_examples: Counted = MOST_EXAMPLES

    def weight(self, update: Update) -> float:
        return float(min(update.examples, self.most_examples))


def names() -> list[str]:
    """Names of the installed strategies."""
    return sorted({entry.name for entry in importlib.metadata.entry_points(group=GROUP)})


def strategy_of(name: str, settings: Mapping[str, Any] | None = None) -> Strategy:
    """Strategy by name; SettingError lists the names, or names the wrong setting."""
    try:
        return msgspec.convert(dict(settings or {}), _class_of(name))
    except msgspec.ValidationError as error:
        raise SettingError(f"strategy {name}: {error}", "see docs/federated/strategies.md") from (
            error
        )


@functools.cache
def _class_of(name: str) -> type[Strategy]:
    """Cached: searching the installed entry points takes 3 ms, and a round does it per update.
    An unknown name is not cached."""
    found = importlib.metadata.entry_points(group=GROUP)
    if name not in found.names:
        raise SettingError(f"no strategy {name!r}", f"there are: {', '.join(names())}")
    loaded: type[Strategy] = found[name].load()
    return loaded
