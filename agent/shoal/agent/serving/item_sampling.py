"""Sampling of the items that are sketched: as many as fit into a share of the model's own time.

Statistics of an image cost more than a small model runs. So one item in k is looked at, where k
follows from what runs and looks took so far, and time for looking is earned by running: over any
stretch the share is kept. Which items are chosen follows an additive recurrence of the golden
ratio: as good as random where cameras take turns, and without a generator.
"""

import math
from collections import deque
from typing import NamedTuple

import numpy as np

from shoal.agent.serving.engine import Engine
from shoal.tensor_sketches import MOST_LOOKED
from shoal.tensors import Named

#: Of the model's time, at most.
SHARE = 0.05
#: Seconds that a look is taken for before the first; weights of the newest run and of the newest
#: look in the averages.
_FIRST_LOOK_S, _RUN_WEIGHT, _LOOK_WEIGHT = 500e-6, 0.05, 0.2
#: Seconds of looking that are saved up at most, unless four looks take longer.
_MOST_SAVED_S = 0.05
#: Runs with chosen items that wait for being looked at, at most: they hold their tensors.
_MOST_WAITING = 4
_STEP = (math.sqrt(5) - 1) / 2


class Chosen(NamedTuple):
    """Items of a run to be looked at: places along the batch axes of its inputs and outputs."""

    engine: Engine
    feeds: Named
    outputs: Named
    items: list[int]


class ItemSampler:
    """Chooses items of one release, and keeps them until they are looked at."""

    def __init__(self) -> None:
        self._run_s, self._look_s = 0.0, _FIRST_LOOK_S
        self._saved_s = self._place = 0.0
        self._expected = self._left = MOST_LOOKED
        self._waiting: deque[Chosen] = deque()

    @property
    def has_waiting(self) -> bool:
        return bool(self._waiting)

    def begin_window(self, items: int) -> None:
        """Begin a window in which as many items are expected as `items`, of the last one."""
        self._expected, self._left = max(items, MOST_LOOKED), MOST_LOOKED

    def offer(
        self, engine: Engine, feeds: Named, outputs: Named, items: int, model_s: float
    ) -> None:
        """Choose among the `items` of a run that took `model_s` seconds."""
        each = model_s / max(1, items)
        self._run_s += (each - self._run_s) * (_RUN_WEIGHT if self._run_s else 1.0)
        most = max(_MOST_SAVED_S, 4 * self._look_s)
        self._saved_s = min(self._saved_s + SHARE * model_s, most)
        if self._saved_s < self._look_s or not self._left or len(self._waiting) >= _MOST_WAITING:
            return
        chance = min(SHARE * self._run_s / self._look_s, MOST_LOOKED / self._expected)
        chosen = self._choose(items, chance)
        if chosen:
            self._saved_s -= len(chosen) * self._look_s
            self._left -= len(chosen)
            self._waiting.append(Chosen(engine, feeds, outputs, chosen))

    def take(self) -> Chosen | None:
        """The next run to be looked at; None when there is none. `count` what it took."""
        try:
            return self._waiting.popleft()
        except IndexError:
            return None

    def count(self, items: int, seconds: float) -> None:
        """Count a look at `items` items, which took `seconds`."""
        self._saved_s += items * self._look_s - seconds
        self._look_s += (max(seconds / items, 1e-6) - self._look_s) * _LOOK_WEIGHT

    def _choose(self, items: int, chance: float) -> list[int]:
        if items == 1:
            self._place = (self._place + _STEP) % 1
            return [0] if self._place < chance else []
        places = (self._place + _STEP * np.arange(1, items + 1)) % 1
        self._place = float(places[-1]) if items else self._place
        room = min(self._left, int(self._saved_s / self._look_s))
        found: list[int] = np.flatnonzero(places < chance)[:room].tolist()
        return found
