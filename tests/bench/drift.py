"""Drift test of a device's window, all features at all scales, against its distances alone."""

import numpy as np

from bench.measuring import compare, interleave, seconds
from bench.report import Found, Row
from shoal.controller.monitoring import drift

BINS, ROWS, BASELINE, SCALES = 28, 900, 96, (1, 4, 16)


def run(*, quick: bool) -> Found:
    """Time with 8 and 64 features, and the cores that a fleet of 10 000 devices needs."""
    rounds, baseline = (3, 12) if quick else (200, BASELINE)
    rows = [_measure(features, rounds, baseline) for features in (8, 64)]
    took_s = rows[-1].ours / 1e3
    minute, quarter = (f"{10_000 * took_s / every_s:.2g}" for every_s in (60, 900))
    cores = f"{minute} cores at a window a minute, {quarter} at one in 15 minutes"
    return Found(rows=rows, notes={"10 000 devices, 64 features": cores})


def _measure(features: int, rounds: int, baseline: int) -> Row:
    random = np.random.default_rng(0)
    windows = [_window(random, features) for _ in range(baseline)]
    base, newest = drift.fit(windows, SCALES), [_window(random, features) for _ in range(16)]
    training = np.sum([one["cam-1"] for one in windows], axis=0)
    sides = {
        "ours": lambda: 1e3 * seconds(lambda: _test(base, newest, training)),
        "plain": lambda: 1e3 * seconds(lambda: _distances(newest, training)),
    }
    found = interleave(rounds, sides)
    what = f"look at a window of {features} features, scales 1, 4, 16"
    return compare(what, "ms", found["ours"], found["plain"], against="distances alone")


def _window(random: np.random.Generator, features: int) -> dict[str, np.ndarray]:
    shares = random.dirichlet(np.full(BINS, 50.0))
    return {"cam-1": random.multinomial(ROWS, shares, size=features).astype(np.int64)}


def _test(base: drift.Baseline, newest: list[dict[str, np.ndarray]], training: np.ndarray) -> None:
    for at, scale in enumerate(base.scales):
        drift.compare(base, newest[-scale:], at, 0.01)
        drift.psi(base, newest[-scale:], at, training)


def _distances(newest: list[dict[str, np.ndarray]], training: np.ndarray) -> None:
    """Hellinger distances of merged windows: no bins merged, no correction, no tail probability."""
    q = np.sqrt(training / training.sum(-1, keepdims=True))
    for scale in SCALES:
        merged = np.sum([one["cam-1"] for one in newest[-scale:]], axis=0)
        p = np.sqrt(merged / merged.sum(-1, keepdims=True))
        np.sqrt(np.square(p - q).sum(-1) / 2)
