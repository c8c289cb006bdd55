"""Drift decision of a window, decoded and applied to its device's state, against decoding alone."""

import numpy as np

from bench.measuring import compare, interleave, seconds
from bench.report import Found, Row
from shoal.controller.monitoring import channels, drift_state, sequential
from shoal.controller.monitoring.channels import Windows
from shoal.controller.monitoring.surprises import Rules
from shoal.sketch import Reference, Sketch, reference_of
from shoal.sketch_batches import SketchBatch, decode

ROWS, TOGETHER, SETTLED = 900, 256, 30


def run(*, quick: bool) -> Found:
    """Time with 8 and 64 features, and the cores that a fleet of 10 000 devices needs."""
    rounds, together = (2, 8) if quick else (20, TOGETHER)
    rows = [_measure(features, rounds, together) for features in (8, 64)]
    notes = {}
    for features, row in zip((8, 64), rows, strict=True):
        minute, quarter = (f"{10_000 * row.ours / 1e3 / every_s:.2g}" for every_s in (60, 900))
        cores = f"{minute} cores at a window a minute, {quarter} at one in 15 minutes"
        notes[f"10 000 devices, {features} features"] = cores
    return Found(rows=rows, notes=notes)


def _measure(features: int, rounds: int, together: int) -> Row:
    rng = np.random.default_rng(0)
    reference = reference_of({f"x{i}": rng.normal(size=5_000) for i in range(features)})
    sketches = [_sketch(rng, reference) for _ in range(together)]
    counts = np.array([f.counts[:-1] for f in reference.features], float)
    rules, training = Rules(), channels.shares(counts)
    layout = sequential.device_layout(features, training.shape[1], rules)
    states = [drift_state.empty(layout)] * together
    fleet, log_a = sequential.Fleet.unknown(), 20.0
    number = 0

    def apply(batch: SketchBatch) -> None:
        nonlocal number, states
        number += 1
        each = np.ones(together)
        at = each * 60 * number
        moments = np.moveaxis(batch.moments.astype(np.float64), -1, 0)
        windows = Windows(
            each * number, at, at, each * 60, batch.counts, batch.missing, batch.n, *moments
        )
        states, _ = sequential.observe(states, windows, training, rules, fleet, log_a)

    for _ in range(SETTLED):
        apply(decode(reference, sketches))
    sides = {
        "ours": lambda: 1e3 / together * seconds(lambda: apply(decode(reference, sketches))),
        "plain": lambda: 1e3 / together * seconds(lambda: decode(reference, sketches)),
    }
    found = interleave(rounds, sides)
    what = f"apply a window of {features} features, {together} devices together"
    return compare(what, "ms", found["ours"], found["plain"], against="decoding alone")


def _sketch(rng: np.random.Generator, reference: Reference) -> bytes:
    sketch = Sketch(reference)
    sketch.update(rng.normal(size=(ROWS, len(reference.features))).astype(np.float32))
    return sketch.to_bytes()
