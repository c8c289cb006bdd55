"""Reproducible aggregation of updates, against a plain float64 sum."""

import tracemalloc

import numpy as np

from bench.measuring import compare, interleave, seconds
from bench.report import Found, Row
from shoal.federated.sums import ExactSum

_PART = 1 << 14


def run(*, quick: bool) -> Found:
    """500 updates of ten million numbers, and of a small model's."""
    if quick:
        return Found(rows=[_summed(5, 10_000)], notes=_memory(10_000))
    rows = [_summed(500, 17_000), _summed(500, 1_000_000), _summed(500, 10_000_000)]
    return Found(rows=rows, notes=_memory(10_000_000))


def _summed(updates: int, size: int) -> Row:
    """Add every update on both sides in turn; measure the total time."""
    base = np.random.default_rng(0).normal(size=size).astype(np.float32)
    ours, plain = ExactSum(size), np.zeros(size)
    sides = {
        "ours": lambda: seconds(lambda: ours.add(base, 37.0)),
        "plain": lambda: seconds(lambda: _add(plain, base, 37.0)),
    }
    found = interleave(updates, sides)
    what = f"{updates} updates of {size:,} numbers"
    total = {name: [sum(times)] for name, times in found.items()}
    return compare(what, "s", total["ours"], total["plain"], against="plain float64 sum")


def _add(total: np.ndarray, update: np.ndarray, weight: float) -> None:
    for start in range(0, total.size, _PART):
        part = slice(start, start + _PART)
        total[part] += np.multiply(update[part], weight, dtype=np.float64)


def _memory(size: int) -> dict[str, str]:
    """Peak memory beside the update itself, after 3 updates and after 30."""
    base = np.ones(size, np.float32)
    notes = {}
    for updates in (3, 30):
        tracemalloc.start()
        total = ExactSum(size)
        for _ in range(updates):
            total.add(base)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        notes[f"memory, {updates} updates of {size:,}"] = f"{peak / size:.1f} bytes a number"
    return notes
