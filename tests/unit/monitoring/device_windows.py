"""Windows of many devices as their sketches hold them, made from rows, for tests of drift."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from shoal.controller.monitoring import channels, drift_state, sequential
from shoal.controller.monitoring.channels import Windows
from shoal.controller.monitoring.drift_state import State
from shoal.controller.monitoring.surprises import Outcome, Rules
from shoal.sketch import reference_of

#: A Monday, 00:00, that is no day of rest.
MONDAY = 4 * 86_400.0


def training(seed: int = 0, rows: int = 20_000) -> npt.NDArray[Any]:
    return np.random.default_rng(seed).normal(size=rows)


@dataclass
class Devices:
    """`many` devices of `features` features that share one training distribution."""

    many: int
    rules: Rules
    features: int = 1
    window_s: float = 60.0
    learnt_from: npt.NDArray[Any] = field(default_factory=training)
    start: float = MONDAY

    def __post_init__(self) -> None:
        reference = reference_of({"x": self.learnt_from}).features[0]
        self.edges = np.asarray(reference.edges, np.float32)
        counts = np.array(reference.counts[:-1], float)
        self.training = np.tile(channels.shares(counts), (self.features, 1))
        layout = sequential.device_layout(self.features, len(counts), self.rules)
        self.states: Sequence[State] = [drift_state.empty(layout) for _ in range(self.many)]
        self.fleet = sequential.Fleet.unknown()
        self.log_a = sequential.log_threshold(
            1.0, subjects=10_000, features=8, window_s=self.window_s
        )
        self.number = 0

    def window(self, rows: npt.NDArray[Any], at: float | None = None) -> Windows:
        """rows (n, many, features) as one window of each device."""
        n, many, features = rows.shape
        width = len(self.edges) + 1
        known = np.isfinite(rows)
        where = self.edges.searchsorted(np.nan_to_num(rows).astype(np.float32), side="right")
        where = where + width * np.arange(many * features).reshape(many, features)
        flat = np.bincount(where[known], minlength=width * many * features)
        values = np.where(known, rows, 0.0)
        count = known.sum(0)
        mean = values.sum(0) / np.maximum(count, 1)
        m2 = np.where(known, np.square(values - mean), 0).sum(0)
        begin = self.start + self.number * self.window_s if at is None else at
        each = np.ones(many)
        return Windows(
            each * (self.number + 1), each * begin, each * begin, each * self.window_s,
            flat.reshape(many, features, width), n - count, count, mean, m2,
            np.where(known, rows, np.inf).min(0), np.where(known, rows, -np.inf).max(0),
        )  # fmt: skip

    def see(self, rows: npt.NDArray[Any], at: float | None = None) -> Outcome:
        """What the decision says of one more window of each device."""
        return self.take(self.window(rows, at))

    def take(self, windows: Windows) -> Outcome:
        self.states, outcome = sequential.observe(
            self.states, windows, self.training, self.rules, self.fleet, self.log_a
        )
        self.number += 1
        if self.number % 16 == 0:
            self.fleet = self.fleet.after(self.states)
        return outcome
