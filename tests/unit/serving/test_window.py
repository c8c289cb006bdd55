"""A window counts rows, errors and labels; merged windows equal one long window."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devices import engine, softmax
from shoal.agent.serving.window import Window
from shoal.agent.telemetry.outbox import merge_windows
from shoal.errors import SketchError
from shoal.sketch import References, Sketch, merge_bytes, reference_of
from shoal.wire import Health, WindowReport

NOW = 1_000.0


def references() -> References:
    rows = np.random.default_rng(0).normal(size=(400, 2))
    outputs = softmax(rows, 1)
    return References(
        inputs=reference_of({"a": rows[:, 0], "b": rows[:, 1]}),
        outputs=reference_of({"score": outputs.max(1), "prediction": outputs.argmax(1) * 1.0}),
    )


REFERENCES = references()


def window(version: int = 1, start_s: float = NOW, **manifest: Any) -> Window:
    loaded = engine(version, **manifest)
    loaded.references = REFERENCES
    return Window(loaded, start_s)


def rows(n: int, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    inputs = np.random.default_rng(seed).normal(size=(n, 2)).astype(np.float32)
    return inputs, softmax(inputs, 1).astype(np.float32)


@pytest.mark.parametrize("batch", [1, 7, 255, 256, 257, 1000])
def test_a_window_counts_every_row_whatever_the_batches(batch: int) -> None:
    open_, (inputs, outputs) = window(), rows(1000)
    for i in range(0, 1000, batch):
        open_.record(inputs[i : i + batch], outputs[i : i + batch], 0.001)
    report = open_.close(NOW + 60, Health())
    sketch = Sketch.from_bytes(REFERENCES.outputs, report.outputs)
    want = Sketch(REFERENCES.outputs)
    want.update(np.stack([outputs.max(1), outputs.argmax(1)], axis=1).astype(np.float32))
    np.testing.assert_array_equal(sketch.counts, want.counts)
    assert report.rows == Sketch.from_bytes(REFERENCES.inputs, report.inputs).rows == 1000
    assert sum(report.latency) == open_.requests
    assert (report.window_start_s, report.window_s) == (NOW, 60.0)


def test_errors_slow_requests_and_odd_outputs_are_counted() -> None:
    open_, (inputs, outputs) = window(), rows(4)
    open_.record(inputs, outputs, 0.5)
    open_.record(inputs, outputs * np.nan, 0.001)
    open_.record(inputs, outputs * 7, 0.001)
    open_.record_error()
    vitals = open_.vitals
    assert (vitals.requests, vitals.errors, vitals.slow) == (4, 1, 1)
    assert vitals.rows == 12
    assert vitals.odd >= 8


def test_labels_are_compared_with_the_predictions() -> None:
    open_, (_, outputs) = window(), rows(10)
    truth = outputs.argmax(1).astype(np.float32)
    truth[:3] = -1
    open_.record_labels(outputs, truth)
    report = open_.close(NOW + 1, Health())
    assert (report.labelled, report.correct) == (10, 7)


def test_two_classes_are_split_at_the_threshold() -> None:
    open_ = window(labels=["good", "bad"], threshold=0.3)
    outputs = np.array([[0.65, 0.35], [0.8, 0.2]], np.float32)
    open_.record_labels(outputs, np.array([1, 0], np.float32))
    assert open_.correct == 2


def test_labels_of_a_regression_are_counted_and_its_outputs_have_no_bounds() -> None:
    open_ = window(task="regression", labels=[])
    outputs = np.array([[512.0], [-3.0]], np.float32)
    open_.record(rows(2)[0], outputs, 0.001)
    open_.record_labels(outputs, np.array([500.0, 0.0], np.float32))
    assert (open_.labelled, open_.correct, open_.vitals.odd) == (2, 0, 0)


def test_a_window_without_rows_has_no_sketch() -> None:
    report = window().close(NOW + 60, Health(rss_mb=70))
    assert (report.rows, report.inputs, report.outputs) == (0, b"", b"")
    assert report.health.rss_mb == 70


def reported(n: int, seed: int, start: float) -> WindowReport:
    open_, (inputs, outputs) = window(start_s=start), rows(n, seed)
    if n:
        open_.record(inputs, outputs, 0.001 * (1 + seed))
    return open_.close(start + 60, Health())


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 40), min_size=2, max_size=6))
def test_merged_windows_are_one_long_window(sizes: list[int]) -> None:
    reports = [reported(n, i, NOW + 60 * i) for i, n in enumerate(sizes)]
    together = reports[0]
    for report in reports[1:]:
        together = merge_windows(together, report, merge_bytes)
    assert together.rows == sum(sizes)
    assert together.merged == len(sizes)
    assert sum(together.latency) == sum(n > 0 for n in sizes)
    assert (together.window_start_s, together.window_s) == (NOW, 60.0 * len(sizes))
    if together.rows:
        whole = Sketch.from_bytes(REFERENCES.inputs, together.inputs)
        assert whole.rows == sum(sizes)


def test_windows_of_two_releases_do_not_merge() -> None:
    older, newer = reported(3, 0, NOW), window(2).close(NOW + 60, Health())
    with pytest.raises(SketchError):
        merge_windows(older, newer, merge_bytes)
