"""CPU time of one model's run over another's."""

import math
import statistics
import time
from collections.abc import Callable, Sequence

from shoal.tensors import Named

Run = Callable[[Named], object]
#: Rounds of timing, seconds for them at most, and rounds that are made in any case.
_ROUNDS, _TIMING_S, _LEAST_ROUNDS = 41, 3.0, 5
#: CPU seconds of one round of each model.
_ROUND_S = 0.004


def time_ratio(run: Run, fp32: Run, feeds: Sequence[Named]) -> float:
    """CPU time of a run over fp32's: the median of rounds in which both run in turn.

    The thread's CPU time: other work on the machine does not count.
    """
    _cpu_s(run, feeds[:1], 1)
    once = max(_cpu_s(fp32, feeds[:1], 1), _cpu_s(fp32, feeds[:1], 1), 1e-7)
    runs = min(500, math.ceil(_ROUND_S / once))
    began, ratios = time.monotonic(), []
    for turn in range(_ROUNDS):
        first, second = (run, fp32) if turn % 2 else (fp32, run)
        took = {one: _cpu_s(one, feeds, runs) for one in (first, second)}
        ratios.append(took[run] / max(took[fp32], 1e-9))
        if turn + 1 >= _LEAST_ROUNDS and time.monotonic() - began > _TIMING_S:
            break
    return statistics.median(ratios)


def _cpu_s(run: Run, feeds: Sequence[Named], runs: int) -> float:
    began = time.thread_time()
    for i in range(runs):
        run(feeds[i % len(feeds)])
    return time.thread_time() - began
