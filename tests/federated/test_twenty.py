"""Twenty agents' processes, forty rounds, digits that are not alike: SHOAL_SOAK=1, or
`make bench-federated`, which keeps what it found. Minutes."""

import datetime
import json
import os
from pathlib import Path

import numpy as np
import pytest

from bench.devices import resident_mb
from bench.report import Found, Row, report, write
from digits import homes_of
from federated.real import Cohort, serving
from federated.test_digits import FEATURES, MODEL, as_pixels, write_table
from soaking import soak

pytestmark = [
    pytest.mark.broker,
    pytest.mark.slow,
    pytest.mark.timeout(3_000),
    soak,
]
DEVICES, ROUNDS, SAMPLE = 20, 40, 40
LEARNING = {"lr": 0.1, "epochs": 3, "batch": 10}
PACE = {"goal": DEVICES, "least": 15, "over": 1.0, "recruit_s": 60, "train_s": 300}


def test_twenty_agents_learn_digits_together_to_94_in_a_hundred(tmp_path: Path) -> None:
    homes, others = homes_of(DEVICES, np.random.default_rng(0))
    sample, test = (
        as_pixels(others.only(np.arange(a, b))) for a, b in ((0, SAMPLE), (SAMPLE, len(others.y)))
    )
    with serving(tmp_path) as cohort:
        names = [f"cam-{i:02}" for i in range(DEVICES)]
        for i, name in enumerate(names):
            cohort.enrol(name, site=("north", "south", "east")[i % 3])
        cohort.start()
        how = {"estimator": "mlp", "params": {"hidden": [64]}}
        release = cohort.release(write_table(tmp_path / "s.csv", sample), MODEL, "digit", **how)
        for name, home in zip(names, map(as_pixels, homes), strict=True):
            cohort.teach(name, MODEL, FEATURES, home.x, [str(y) for y in home.y])
        cohort.plan(
            name="twenty", release=release, learning=LEARNING, pace=PACE, evaluate=0,
            compression={"kind": "int8"},
        )  # fmt: skip

        def accuracy() -> float:
            said = cohort.answers("twenty", test.x)
            return float(np.mean([int(s) == y for s, y in zip(said, test.y, strict=True)]))

        before, idle, course = accuracy(), memory(cohort), {}
        for number in range(5, ROUNDS + 1, 5):
            done = cohort.run("twenty", 5, within_s=900)
            course[number] = accuracy()
            print(number, course[number], [round(one["seconds"], 1) for one in done[-5:]])
        keep(before, course, done, idle, memory(cohort))
    assert len(done) == ROUNDS
    assert course[ROUNDS] >= 0.94


def memory(cohort: Cohort) -> float:
    """Median private memory of the agents, 2**20 bytes."""
    pids = [one.process.pid for one in cohort.members.values() if one.process]
    return float(np.median([resident_mb(pid)["private"] for pid in pids]))


def keep(before: float, course: dict, done: list[dict], idle: float, after: float) -> None:
    """In SHOAL_BENCH's folder, when that names one."""
    folder = os.environ.get("SHOAL_BENCH")
    if not folder:
        return
    row = Row(
        what=f"{DEVICES} agents, {ROUNDS} rounds, int8", unit="accuracy", ours=course[ROUNDS],
        against="the release that they began with", raw=before, ratio=course[ROUNDS] / before,
        over=course[ROUNDS] - before, aim="≥ 0.94 accuracy", held=course[ROUNDS] >= 0.94,
    )  # fmt: skip
    notes = {
        "accuracy after rounds": json.dumps({n: round(a, 4) for n, a in course.items()}),
        "a round, median": f"{np.median([one['seconds'] for one in done]):.1f} s",
        "updates a round": f"{np.median([one['bytes'] for one in done]) / 1e3:.1f} kB",
        "an agent's private memory": f"{idle:.1f} MB before, {after:.1f} MB after",
    }
    now = datetime.datetime.now(datetime.UTC)
    found = Found(rows=[row], notes=notes)
    made = report("federated-digits", found, at=now, quick=False, load=os.getloadavg()[0])
    write(made, Path(folder))
