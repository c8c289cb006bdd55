"""The product's drift decision, as the benches of error rates call it, and what one step costs."""

import numpy as np
import numpy.typing as npt

from bench.feature_windows import BOOL, Watched, Windows
from bench.measuring import compare, interleave, seconds
from bench.report import Aim, Row
from shoal.controller.monitoring import channels, drift_state, sequential
from shoal.controller.monitoring.surprises import Rules

#: How often, in windows, devices learn what the whole fleet saw.
FLEET_EVERY = 16


class Sequential:
    """`sequential.observe` on D devices, those without a window left out.

    began counts: a finding begins for a feature, or for the device's number of rows.
    """

    def __init__(self, watched: Watched, budget: float, rules: Rules) -> None:
        features, bins = watched.training.shape
        self.rules, self.first = rules, rules.first
        self.training, self.window_s = channels.shares(watched.training), watched.window_s
        layout = sequential.device_layout(features, bins, rules)
        self.states = [drift_state.empty(layout)] * watched.devices
        self.fleet, self.passed = sequential.Fleet.unknown(), 0
        self.log_a = sequential.log_threshold(
            budget, subjects=watched.subjects, features=features, window_s=watched.window_s
        )

    def observe(self, at: float, local: float, windows: Windows) -> BOOL:
        """(D, F + 1): the last is for the rows."""
        self.passed += 1
        sent = np.flatnonzero(windows.sent)
        began = np.zeros((len(self.states), len(self.training) + 1), bool)
        if not len(sent):
            return began
        given = arrived(windows, sent, at, local, self.window_s, self.passed)
        states = [self.states[i] for i in sent]
        states, outcome = sequential.observe(
            states, given, self.training, self.rules, self.fleet, self.log_a
        )
        for i, state in zip(sent, states, strict=True):
            self.states[i] = state
        if self.passed % FLEET_EVERY == 0:
            self.fleet = self.fleet.after(self.states)
        began[sent] = outcome.began
        return began


def product(watched: Watched, budget: float) -> Sequential:
    """With the product's defaults."""
    return Sequential(watched, budget, Rules())


def flat(watched: Watched, budget: float) -> Sequential:
    """Of machines that know no day."""
    return Sequential(watched, budget, Rules(cycle=False))


def short(watched: Watched, budget: float) -> Sequential:
    """Without a daily cycle, and with a first word after 24 windows: for short recordings."""
    return Sequential(watched, budget, Rules(first=24, cycle=False))


def arrived(
    windows: Windows, sent: npt.NDArray, at: float, local: float, window_s: float, position: int
) -> channels.Windows:
    """The windows of the devices `sent`, as the decision takes them."""
    some = np.ones(len(sent))
    return channels.Windows(
        at=at * some,
        local=local * some,
        window_s=window_s * some,
        position=position * some,
        counts=windows.counts[sent],
        missing=windows.missing[sent],
        n=windows.n[sent],
        mean=windows.mean[sent],
        m2=windows.m2[sent],
        low=windows.low[sent],
        high=windows.high[sent],
    )


def decisions(*, quick: bool) -> list[Row]:
    """One window of each of 10 000 devices of 8 features, all channels, both directions."""
    devices, features, rounds = (50, 8, 2) if quick else (10_000, 8, 7)
    rng = np.random.default_rng(0)
    shares = rng.dirichlet(np.full(28, 50.0))
    counts = rng.multinomial(60, shares, size=(devices, features))
    values = rng.normal(size=(devices, features))
    zeros, n = np.zeros((devices, features), np.int64), np.full((devices, features), 60)
    sent = np.ones(devices, bool)
    windows = Windows(sent, counts, zeros, n, values / 8, 60 + values, values - 3, values + 3)
    training = np.tile((20_000 * shares).astype(np.int64), (features, 1))
    rule = product(Watched(devices, training, 60.0, devices), 1.0)
    for i in range(rule.rules.lens + 1):
        rule.observe(60.0 * i, 60.0 * i, windows)

    def decide() -> float:
        at = 60.0 * rule.passed
        return seconds(lambda: rule.observe(at, at, windows))

    found = interleave(rounds, {"ours": decide, "sum": lambda: seconds(windows.counts.sum)})
    what = f"a decision for {devices:,} devices of {features} features"
    aim = Aim(at_most=2.0)
    return [compare(what, "s", found["ours"], found["sum"], against="sum of the counts", aim=aim)]
