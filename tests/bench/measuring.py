"""Two sides measured side by side: on a noisy machine only what ran together can be compared."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from bench.report import Aim, Row

F64 = npt.NDArray[np.float64]
T = TypeVar("T")


def interleave(repetitions: int, sides: Mapping[str, Callable[[], T]]) -> dict[str, list[T]]:
    """Run every side so often, there and back (A B, B A, ...), after one run that does not count.

    A machine that slows down for a while slows down all sides of one repetition.
    """
    results: dict[str, list[T]] = {name: [] for name in sides}
    for side in sides.values():
        side()
    for repetition in range(repetitions):
        order = list(sides) if repetition % 2 == 0 else list(sides)[::-1]
        for name in order:
            results[name].append(sides[name]())
    return results


def latencies(call: Callable[[], object], calls: int) -> F64:
    """Seconds of each of `calls` calls, shape (calls,)."""
    ticks = np.empty(calls + 1, np.int64)
    now = time.perf_counter_ns
    ticks[0] = now()
    for i in range(1, calls + 1):
        call()
        ticks[i] = now()
    return np.diff(ticks) * 1e-9


def seconds(call: Callable[[], object], calls: int = 1) -> float:
    """Seconds that `calls` calls take together."""
    start = time.perf_counter()
    for _ in range(calls):
        call()
    return time.perf_counter() - start


def cpu_seconds(call: Callable[[], object]) -> float:
    """CPU seconds of this thread that one call takes."""
    start = time.thread_time()
    call()
    return time.thread_time() - start


def compare(
    what: str,
    unit: str,
    ours: Sequence[float],
    raw: Sequence[float],
    *,
    against: str,
    aim: Aim | None = None,
) -> Row:
    """A row of medians over repetitions; ratio and difference are taken within each repetition.

    ours, raw   one value a repetition, in the order in which they ran
    """
    mine, theirs = np.asarray(ours, float), np.asarray(raw, float)
    over = float(np.median(mine - theirs))
    value, ratio = float(np.median(mine)), float(np.median(mine / theirs))
    return Row(
        what=what,
        unit=unit,
        ours=value,
        against=against,
        raw=float(np.median(theirs)),
        ratio=ratio,
        over=over,
        aim=aim.text(unit) if aim else "",
        held=aim.holds(over if aim.on_difference else ratio if aim.on_ratio else value)
        if aim
        else None,
    )


def quantile_us(times: Sequence[F64], q: float) -> list[float]:
    """Quantile `q` of each repetition's latencies, in microseconds."""
    return [float(np.quantile(t, q)) * 1e6 for t in times]


def mean_us(times: Sequence[F64]) -> list[float]:
    """Mean of each repetition's latencies, in microseconds: what rare slow calls add is in it."""
    return [float(t.mean()) * 1e6 for t in times]
