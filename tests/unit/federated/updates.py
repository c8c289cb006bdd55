"""Updates to try strategies with."""

from collections.abc import Iterable

import numpy as np

from shelves import file_shelf
from shoal.controller.federated.strategy import Strategy
from shoal.controller.federated.updates import Aggregate, Update


def some(count: int, size: int = 50, seed: int = 0, control: bool = False) -> list[Update]:
    """Updates of devices d00, d01, ...; scales and examples differ between them."""
    random = np.random.default_rng(seed)
    return [
        Update(
            device=f"d{i:02}",
            delta=(random.normal(size=size) * 10.0 ** random.uniform(-4, 0)).astype(np.float32),
            examples=int(random.integers(1, 1000)),
            loss=float(random.uniform(0.1, 3)),
            control=random.normal(size=size).astype(np.float32) if control else None,
        )
        for i in range(count)
    ]


def gathered(strategy: Strategy, updates: Iterable[Update]) -> Aggregate:
    updates = list(updates)
    size = updates[0].delta.size if updates else 50
    gathering = strategy.gather(size, file_shelf(size))
    for update in updates:
        gathering.add(update)
    return gathering.result()
