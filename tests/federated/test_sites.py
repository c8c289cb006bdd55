"""Three sites of one hydraulic rig learn one model, and no row leaves any of them.

The oil is at 36, 45 or 55 °C, as the cooler does 100, 20 or 3 %: a model of one site fails at the
others. A maker's sample of a few runs is all that the controller has.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import balanced_accuracy_score

from controllers import HYDRAULIC, OTHER_CONDITIONS, shared_data
from federated.real import Cohort, holds_row, serving
from soaking import soak

pytestmark = [pytest.mark.broker, pytest.mark.slow, pytest.mark.timeout(420), soak]

MODEL, LABEL, SITES = "pump-leak", "pump_leak", (100, 20, 3)
#: Runs of the rig (a group is never split): a third is held back, three of each site are a sample.
SAMPLED, SEED, ROUNDS = 3, 1, 20


class Rig:
    """own, test: site -> rows that its device has, and rows that nobody learns from."""

    def __init__(self, frame: pd.DataFrame) -> None:
        random = np.random.default_rng(SEED)
        left_out = {LABEL, "cooler_pct", "group", *OTHER_CONDITIONS}
        self.features = [name for name in frame.columns if name not in left_out]
        self.own: dict[int, pd.DataFrame] = {}
        self.test: dict[int, pd.DataFrame] = {}
        sample = []
        for site in SITES:
            of_it = frame[frame.cooler_pct == site]
            runs = of_it.group.unique()
            random.shuffle(runs)
            held = len(runs) // 3
            self.test[site] = of_it[of_it.group.isin(runs[:held])]
            sample.append(of_it[of_it.group.isin(runs[held : held + SAMPLED])])
            self.own[site] = of_it[of_it.group.isin(runs[held + SAMPLED :])]
        self.sample = pd.concat(sample)

    def x(self, rows: pd.DataFrame) -> np.ndarray:
        return rows[self.features].to_numpy(np.float32)


@pytest.fixture(scope="module")
def rig() -> Rig:
    return Rig(pd.read_csv(shared_data(HYDRAULIC)))


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory, rig: Rig) -> Iterator[Cohort]:
    with serving(tmp_path_factory.mktemp("sites")) as made:
        for site in SITES:
            made.enrol(f"rig-{site}", site=f"oil-{site}")
        made.start()
        yield made


def scores(cohort: Cohort, rig: Rig) -> dict[int, float]:
    """Balanced accuracy of the newest checkpoint, on each site's rows that nobody learned from."""
    return {
        site: balanced_accuracy_score(rows[LABEL].astype(str), cohort.answers("pump", rig.x(rows)))
        for site, rows in rig.test.items()
    }


def test_three_sites_train_together_and_no_row_leaves_them(
    cohort: Cohort, rig: Rig, tmp_path: Path
) -> None:
    table = tmp_path / "sample.csv"
    rig.sample[[*rig.features, LABEL]].to_csv(table, index=False)
    release = cohort.release(table, MODEL, LABEL, estimator="mlp", params={"hidden": [32]})
    for site, rows in rig.own.items():
        labels = [str(label) for label in rows[LABEL]]
        cohort.teach(f"rig-{site}", MODEL, rig.features, rig.x(rows), labels)
    cohort.plan(
        name="pump", release=release, learning={"lr": 0.05, "epochs": 20, "batch": 32},
        pace={"goal": 3, "least": 3, "over": 1.0}, compression={"kind": "int8"}, evaluate=ROUNDS,
    )  # fmt: skip
    before = scores(cohort, rig)
    done = cohort.run("pump", ROUNDS, within_s=300)
    after = scores(cohort, rig)
    assert len(done) == ROUNDS
    assert min(before.values()) < 0.8
    assert min(after.values()) >= 0.90, (before, after)
    assert {name for name in done[-1]["slices"] if name.startswith("site:")} == {
        f"site:oil-{site}" for site in SITES
    }
    made = cohort.release_of("pump")
    assert (made["state"], made["version"], made["quarantined"]) == ("candidate", 2, "")
    assert [one["device"] for one in made["origin"]["devices"]] == ["rig-100", "rig-20", "rig-3"]
    assert made["origin"]["rounds"] == list(range(1, ROUNDS + 1))
    cohort.publish(f"{MODEL}@2")
    heard = b"\n".join(payload for _, payload in cohort.heard)
    whole = [row for rows in rig.own.values() for row in rig.x(rows)]
    assert not [row for row in whole if holds_row(heard, row)]
