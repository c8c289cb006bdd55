"""A column that is the label under another name is warned about, and nothing is refused."""

import numpy as np
import pandas as pd
import pytest

from shoal.controller.data.label_leaks import findings_of
from shoal.controller.training.io.leakage import notes_on_leaks
from shoal.controller.training.io.rows import Data, Rows


def split(columns: dict[str, np.ndarray], y: np.ndarray) -> Data:
    x = np.column_stack(list(columns.values())).astype(np.float32)
    rows = Rows(x, y, np.full(len(y), ""))
    first = np.arange(len(y)) < len(y) * 3 // 4
    held = rows.take(~first)
    return Data(list(columns), ["good", "bad"], rows.take(first), held, held, 0)


@pytest.fixture
def noisy() -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Two measured columns, and a label that follows the first with much noise."""
    rng = np.random.default_rng(3)
    heat, load = rng.normal(size=(2, 600))
    return {"heat": heat, "load": load}, heat + rng.normal(size=600)


def test_a_copy_of_the_classes_is_named(noisy) -> None:  # type: ignore[no-untyped-def]
    columns, hidden = noisy
    y = (hidden > 0).astype(int)
    [note] = notes_on_leaks(
        split({**columns, "code": 7.0 - 3 * y}, y), "defect", "classification", 0
    )
    assert note.startswith("warning: column 'code' alone predicts 'defect'")
    assert "drop it" in note


def test_a_quantity_in_another_unit_is_named(noisy) -> None:  # type: ignore[no-untyped-def]
    columns, y = noisy
    [note] = notes_on_leaks(split({**columns, "kelvin": y + 273.15}, y), "celsius", "regression", 0)
    assert "'kelvin' alone predicts 'celsius'" in note


def test_two_copies_do_not_hide_each_other(noisy) -> None:  # type: ignore[no-untyped-def]
    columns, hidden = noisy
    y = (hidden > 0).astype(int)
    data = split({**columns, "code": 1.0 * y, "again": 5.0 - y}, y)
    assert "'code', 'again'" in notes_on_leaks(data, "defect", "classification", 0)[0]


def test_columns_that_only_help_are_not_warned_about(noisy) -> None:  # type: ignore[no-untyped-def]
    columns, hidden = noisy
    assert not notes_on_leaks(split(columns, (hidden > 0).astype(int)), "y", "classification", 0)
    assert not notes_on_leaks(split(columns, hidden), "y", "regression", 0)


def test_a_label_that_the_others_predict_as_well_is_easy_not_given_away(noisy) -> None:  # type: ignore[no-untyped-def]
    columns, _ = noisy
    y = (columns["heat"] > 0).astype(int)
    rng = np.random.default_rng(4)
    three = {f"sensor{i}": 4.0 * y + 0.9 * rng.normal(size=600).clip(-3, 3) for i in range(3)}
    assert not notes_on_leaks(split({**three, "code": 1.0 * y}, y), "y", "classification", 0)


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_what_adding_a_table_warns_of_is_what_training_warns_of(noisy, task) -> None:  # type: ignore[no-untyped-def]
    columns, hidden = noisy
    y = (hidden > 0).astype(int) if task == "classification" else hidden
    table = {**columns, "code": 7.0 - 3 * y, "again": np.where(y > 5, np.nan, y + 0.5)}
    found = list(findings_of(table, pd.Series(y), "defect"))
    assert {one.columns[0] for one in found} == {"code", "again"}
    [note] = notes_on_leaks(split(table, y), "defect", task, 0)
    assert "'code'" in note
    assert "'again'" in note
    assert [*findings_of(columns, pd.Series(y), "defect")] == []


def test_whatever_a_table_holds_it_is_looked_at(noisy) -> None:  # type: ignore[no-untyped-def]
    columns, hidden = noisy
    wild = np.where(np.arange(600) % 9 == 0, 1e308, hidden)
    wild[:5] = np.inf, -np.inf, np.nan, 1e39, -1e39
    for y in (wild, np.zeros(600), np.arange(600), np.where(hidden > 2, "rare", "often")):
        label = pd.Series(y)
        assert {one.check for one in findings_of({**columns, "wild": wild}, label, "y")} <= {"leak"}
    assert [*findings_of({"empty": np.full(600, np.nan)}, pd.Series(wild), "y")] == []
