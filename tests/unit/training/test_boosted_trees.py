"""Gradient-boosted trees: the exported graph answers as the fitted estimator does."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import pytest
import threadpoolctl

from shoal.controller.data import frames, table_files
from shoal.controller.data.records import DatasetVersion
from shoal.controller.releases.records import Built
from shoal.controller.training.io import build, estimators, export, runtime
from shoal.controller.training.io.rows import Rows
from shoal.controller.training.jobs import Job
from shoal.estimators import read_params


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """As in an operation's process: on a busy machine the threads of OpenMP wait for each other."""
    with threadpoolctl.threadpool_limits(1):
        yield


def rows_of(x: Any, y: Any) -> Rows:
    return Rows(np.asarray(x, np.float32), np.asarray(y), np.full(len(y), ""))


def answers(estimator: str, rows: Rows, x: Any, **params: Any) -> tuple[Any, Any]:
    """What the fitted estimator answers, and what its graph does."""
    fitted = estimators.fit(estimator, read_params(estimator, params), rows)
    classes = len(np.unique(rows.y)) if hasattr(fitted, "predict_proba") else 1
    model = export.export(fitted, rows.x.shape[1], classes)
    own = fitted.predict_proba(x) if classes > 1 else fitted.predict(x)[:, None]
    return own, runtime.outputs(model.SerializeToString(), x, "m")


@pytest.mark.parametrize("classes", [2, 3])
def test_the_graph_of_a_classifier_gives_its_probabilities(classes: int) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(600, 4)).astype(np.float32)
    y = np.digitize(x[:, 0] * x[:, 1], np.linspace(-0.3, 0.3, classes - 1))
    own, graph = answers("boosted-trees", rows_of(x[:400], y[:400]), x[400:], trees=30)
    np.testing.assert_allclose(graph, own, atol=1e-5)
    assert (graph.argmax(1) == y[400:]).mean() > 0.8


def test_the_graph_of_a_regressor_gives_its_values_at_any_magnitude() -> None:
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(600, 3)) * [1, 1e30, 1e-30]).astype(np.float32)
    y = 1e4 + 100 * np.sin(2 * x[:, 0]) + x[:, 1] / 1e28
    own, graph = answers("boosted-trees-regressor", rows_of(x[:400], y[:400]), x[400:], trees=40)
    np.testing.assert_allclose(graph, own, rtol=1e-5)


def test_neighbouring_float32_values_turn_the_same_way_as_when_they_were_fitted() -> None:
    low = np.linspace(1, 2, 40, dtype=np.float32)
    x = np.concatenate([low, np.nextafter(low, np.float32(9))]).repeat(25)[:, None]
    y = np.arange(80).repeat(25) >= 40
    own, graph = answers(
        "boosted-trees", rows_of(x, y.astype(int)), x, trees=60, leaves=80, least_rows=1, rate=0.3
    )
    np.testing.assert_allclose(graph, own, atol=1e-5)
    assert (graph.argmax(1) == y).mean() > 0.95, "a threshold in between is found"


@pytest.mark.parametrize("column", ["constant", "random"])
def test_a_column_that_says_nothing_does_no_harm(column: str) -> None:
    rng = np.random.default_rng(0)
    other = np.zeros(200) if column == "constant" else rng.normal(size=200)
    x = np.column_stack([rng.normal(size=200), other]).astype(np.float32)
    own, graph = answers("boosted-trees", rows_of(x, (x[:, 0] > 0).astype(int)), x, trees=10)
    np.testing.assert_allclose(graph, own, atol=1e-5)


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Built:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(500, 3))
    table = pd.DataFrame(x, columns=["heat", "load", "speed"])
    table["state"] = np.where(x[:, 0] * x[:, 1] > 0, "worn", "fine")
    path = tmp_path_factory.mktemp("data") / "t.csv"
    table.to_csv(path, index=False)
    frame = table_files.read_frame(path)
    version = DatasetVersion(
        name="d", version=1, sha256="", size=0, rows=500,
        columns=frames.describe(frame, label="state", site="", split="", drop=()),
        label="state", site="", split="", parents=[], how="", created_at=0, created_by="",
    )  # fmt: skip
    params = {"trees": 40}
    job = Job(model="m", dataset=version, table=path, estimator="boosted-trees", params=params)
    return build.build(job, lambda share, step: None)


def test_a_release_of_trees_passes_its_gates_in_fp32(release: Built) -> None:
    assert release.why_refused == ""
    assert release.metrics["balanced_accuracy"] > 0.9
    kept = [one.name for one in release.variants if not one.dropped]
    assert kept == ["fp32"]
    assert {one.variant for one in release.verdicts if one.passed} == {"fp32"}
