"""A column that is the label under another name is warned about, and nothing is refused."""

import numpy as np
import pytest

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
