"""The sketch against whylogs, in an environment of its own: values a second, of CPU time."""

import functools
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np

from bench.measuring import compare, cpu_seconds, interleave
from bench.peer import servers
from bench.report import Aim, Row
from shoal.sketch import Sketch, reference_of

FEATURES, BATCHES = (8, 64), (1, 1_024)
AIM = Aim(at_least=100.0, on_ratio=True)
_SCRIPT = Path(__file__).parent / "peer" / "whylogs_rows.py"


def against_whylogs(batches: int, repetitions: int) -> list[Row]:
    """Rows for single rows and for 1024 at once; MissingError where whylogs cannot be installed."""
    python = servers.installed("whylogs")
    return [row for features in FEATURES for row in _with(python, features, batches, repetitions)]


def _with(python: Path, features: int, batches: int, repetitions: int) -> list[Row]:
    rows = []
    command = [str(python), str(_SCRIPT), str(features)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, stderr=subprocess.DEVNULL
    ) as peer:
        for batch in BATCHES:
            count = min(1_000, batches) if batch == 1 else max(2, batches // 100)
            values = batch * count * features
            sides: dict[str, Callable[[], float]] = {
                "ours": _ours(features, batch, count),
                "theirs": functools.partial(_theirs, peer, batch, count),
            }
            found = interleave(repetitions, sides)
            ours, theirs = ([values / s / 1e6 for s in found[n]] for n in ("ours", "theirs"))
            what, aim = f"sketch, {features} features, batch {batch}", AIM if batch == 1 else None
            rows.append(compare(what, "M values/s", ours, theirs, against="whylogs", aim=aim))
        assert peer.stdin is not None
        peer.stdin.close()
    return rows


def _ours(features: int, batch: int, count: int) -> Callable[[], float]:
    rng = np.random.default_rng(0)
    training = rng.normal(size=(5_000, features))
    reference = reference_of({f"x{j}": training[:, j] for j in range(features)})
    drawn = rng.normal(size=(batch, features)).astype(np.float32)

    def once() -> float:
        sketch = Sketch(reference)

        def all_of_them() -> None:
            for _ in range(count):
                sketch.update(drawn)

        return cpu_seconds(all_of_them)

    return once


def _theirs(peer: "subprocess.Popen[str]", batch: int, count: int) -> float:
    assert peer.stdin is not None
    assert peer.stdout is not None
    peer.stdin.write(f"{batch} {count}\n")
    peer.stdin.flush()
    return float(peer.stdout.readline())
