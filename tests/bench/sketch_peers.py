"""The sketch against whylogs and Apache DataSketches, each in an environment of its own.

Values a second, of CPU time.
"""

import functools
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bench.measuring import compare, cpu_seconds, interleave
from bench.peer import servers
from bench.report import Aim, Row
from shoal.sketch import Sketch, reference_of

FEATURES, BATCHES = (8, 64), (1, 1_024)
_SCRIPTS = Path(__file__).parent / "peer"


class Peer(NamedTuple):
    """A library that sketches rows. script: in peer/; aims: batch -> what ours should reach."""

    name: str
    script: str
    against: str
    aims: dict[int, Aim]


WHYLOGS = Peer("whylogs", "whylogs_rows.py", "whylogs", {1: Aim(at_least=100.0, on_ratio=True)})
KLL = Peer(
    "datasketches",
    "kll_rows.py",
    "Apache DataSketches, KLL sketches of k = 200, one call for all features",
    {1: Aim(at_least=1.0, on_ratio=True), 1_024: Aim(at_least=2.0, on_ratio=True)},
)


def sketch_against(peer: Peer, batches: int, repetitions: int) -> list[Row]:
    """Rows for single rows and for 1024 at once; MissingError where it cannot be installed."""
    python = servers.installed(peer.name)
    return [row for n in FEATURES for row in _with(peer, python, n, batches, repetitions)]


def _with(peer: Peer, python: Path, features: int, batches: int, repetitions: int) -> list[Row]:
    rows = []
    command = [str(python), str(_SCRIPTS / peer.script), str(features)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, stderr=subprocess.DEVNULL
    ) as running:
        for batch in BATCHES:
            count = min(1_000, batches) if batch == 1 else max(2, batches // 100)
            values = batch * count * features
            sides: dict[str, Callable[[], float]] = {
                "ours": _ours(features, batch, count),
                "theirs": functools.partial(_theirs, running, batch, count),
            }
            found = interleave(repetitions, sides)
            ours, theirs = ([values / s / 1e6 for s in found[n]] for n in ("ours", "theirs"))
            what, aim = f"sketch, {features} features, batch {batch}", peer.aims.get(batch)
            rows.append(compare(what, "M values/s", ours, theirs, against=peer.against, aim=aim))
        assert running.stdin is not None
        running.stdin.close()
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
