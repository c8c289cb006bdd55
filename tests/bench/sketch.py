"""Values per second into a sketch, against a plain numpy pass for mean and variance.

Seconds are the thread's own CPU time: what else the machine does in between does not count.
Two limits: numpy on the same batches, and numpy on as many rows at once as the sketch gathers.
"""

from collections.abc import Callable

import numpy as np

from bench.measuring import compare, cpu_seconds, interleave
from bench.report import Aim, Found, Row
from shoal.sketch import BUFFER_ROWS, F32, Sketch, reference_of

BATCHES, FEATURES = (1, 32, 1024), (8, 64)
AIMS = {1: Aim(at_least=5.0), 1024: Aim(at_least=0.5, on_ratio=True)}


def run(*, quick: bool) -> Found:
    """Six pairs of batch and number of features."""
    values, repetitions = (20_000, 2) if quick else (2_000_000, 15)
    pairs = [(batch, features) for features in FEATURES for batch in BATCHES]
    return Found(rows=[row for pair in pairs for row in _pair(*pair, values, repetitions)])


def _pair(batch: int, features: int, values: int, repetitions: int) -> list[Row]:
    rng = np.random.default_rng(0)
    training = rng.normal(size=(5_000, features))
    reference = reference_of({f"x{j}": training[:, j] for j in range(features)})
    rows = max(1, values // features)
    gathered = max(batch, BUFFER_ROWS)
    drawn = rng.normal(size=(max(rows, gathered), features)).astype(np.float32)

    def sketched() -> float:
        sketch = Sketch(reference)
        return _rate(lambda cut: sketch.update(cut), _cuts(drawn[:rows], batch))

    def numpy_of(size: int) -> Callable[[], float]:
        return lambda: _rate(lambda cut: (cut.mean(0), cut.var(0)), _cuts(drawn[:rows], size))

    sides = {"ours": sketched, "same": numpy_of(batch), "gathered": numpy_of(gathered)}
    found = interleave(repetitions, sides)
    what = f"{features} features, batch {batch}"
    aim = AIMS.get(batch)
    same = f"numpy mean and var of {batch} row" + ("s" if batch > 1 else "")
    rates = [compare(what, "M values/s", found["ours"], found["same"], against=same, aim=aim)]
    if gathered != batch:
        limit = f"numpy mean and var of {gathered} rows"
        rates.append(compare(what, "M values/s", found["ours"], found["gathered"], against=limit))
    return rates


def _cuts(drawn: F32, batch: int) -> list[F32]:
    return [drawn[i : i + batch] for i in range(0, len(drawn), batch)]


def _rate(take: Callable[[F32], object], cuts: list[F32]) -> float:
    """Million values a second; rows still buffered at the end do not count."""

    def all_of_them() -> None:
        for cut in cuts:
            take(cut)

    return sum(cut.size for cut in cuts) / cpu_seconds(all_of_them) / 1e6
