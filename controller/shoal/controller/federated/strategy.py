"""What a strategy is: a frozen struct of settings, one file, found by its entry point.

    [project.entry-points."shoal.strategies"]
    mine = "my_package.mine:Mine"

It says how updates are gathered, and how the server moves by what was gathered.
"""

import functools
import importlib.metadata
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import msgspec
import numpy as np

from shoal.controller.federated.gathering import Gathering, Shelf
from shoal.controller.federated.updates import Aggregate, Server, Update
from shoal.errors import SettingError

GROUP = "shoal.strategies"
#: Rows that a device keeps unless its owner says otherwise.
MOST_EXAMPLES = 20_000

Positive = Annotated[float, msgspec.Meta(gt=0)]
Fraction = Annotated[float, msgspec.Meta(ge=0, lt=1)]
Natural = Annotated[int, msgspec.Meta(ge=0)]
Counted = Annotated[int, msgspec.Meta(ge=1)]


class Strategy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of a strategy, and what it does; FedAvg's step unless it says otherwise.

    sums   it needs no more than sums over devices: it never sees two updates side by side
    """

    sums: ClassVar[bool] = True

    def gather(self, size: int, shelf: Shelf) -> Gathering:
        """Takes in the updates of one round; shelf is empty, and only for who compares them."""
        raise NotImplementedError

    def advance(self, server: Server, found: Aggregate) -> Server:
        """The server after the round. InputError, and nothing changes, if it is not finite."""
        return server.moved(found.delta)

    def reach(self, update: Update) -> float:
        """The largest number that an update brings into a sum: `weight` times its own, mostly."""
        vectors = [update.delta] if update.control is None else [update.delta, update.control]
        largest = max(float(np.abs(vector).max(initial=1)) for vector in vectors)
        return self.weight(update) * largest

    def weight(self, update: Update) -> float:
        """Of an update in a sum."""
        return 1.0

    def late(self) -> int:
        """Rounds that an update may be behind: 0 where devices are waited for."""
        return 0

    def terms(self) -> dict[str, float | bool]:
        """What devices have to know: inputs of the train graph beside theta, x, y and lr."""
        return {}


class ByExamples(Strategy, frozen=True, kw_only=True):
    """A strategy whose updates weigh what they learned from.

    most_examples   a device's claim counts up to this: nobody can check it
    """

    most_examples: Counted = MOST_EXAMPLES

    def weight(self, update: Update) -> float:
        return float(min(update.examples, self.most_examples))


def names() -> list[str]:
    """Every strategy that is installed."""
    return sorted({entry.name for entry in importlib.metadata.entry_points(group=GROUP)})


def strategy_of(name: str, settings: Mapping[str, Any] | None = None) -> Strategy:
    """A strategy by name; SettingError says what there is, or which setting is wrong."""
    try:
        return msgspec.convert(dict(settings or {}), _class_of(name))
    except msgspec.ValidationError as error:
        raise SettingError(f"strategy {name}: {error}", "see docs/federated/strategies.md") from (
            error
        )


@functools.cache
def _class_of(name: str) -> type[Strategy]:
    """Found once in the life of a process: to look through all that is installed takes 3 ms, and a
    round asks for every update. What is not found is looked for again."""
    found = importlib.metadata.entry_points(group=GROUP)
    if name not in found.names:
        raise SettingError(f"no strategy {name!r}", f"there are: {', '.join(names())}")
    loaded: type[Strategy] = found[name].load()
    return loaded
