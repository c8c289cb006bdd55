"""Columns of a table against scikit-learn and datetime."""

import datetime
import math
from typing import Any

import numpy as np
import pytest
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder, StandardScaler

from shoal.errors import SettingError
from shoal.tensors import Array
from training_steps import composed, identity, outputs


def rows(columns: list[dict[str, Any]], width: int, **sent: Array) -> Array:
    declared = {"input": [{"name": "x", "steps": [{"step": "table", "columns": columns}]}]}
    return outputs(composed(identity(["N", width]), declared), sent)["y"]


def column(*values: Any, dtype: Any = object) -> Array:
    return np.array(values, dtype)[:, None]


def test_numbers_are_imputed_and_standardised_as_scikit_learn_does() -> None:
    raw = column(1.5, np.nan, -3, 1e6, np.inf, dtype=np.float32)
    made = make_pipeline(SimpleImputer(), StandardScaler()).fit(raw[:3])
    imputer, scaler = made[0], made[1]
    declared = {
        "name": "temp", "kind": "number", "missing": float(imputer.statistics_[0]),
        "mean": float(scaler.mean_[0]), "std": float(scaler.scale_[0]),
    }  # fmt: skip
    found = rows([declared], 1, temp=raw)
    assert np.allclose(found[:4], made.transform(raw[:4]), rtol=1e-6)
    assert found[4] == np.inf
    kept = rows([{"name": "temp", "kind": "number"}], 1, temp=raw)
    assert kept.tobytes() == raw.tobytes()


def test_categories_of_texts_and_numbers_are_encoded_as_scikit_learn_does() -> None:
    line = column("b", "a", "zzz", "", "c")
    shift = column(3, 1, 9, -7, 2, dtype=np.int64)
    lines, shifts = ["a", "b", "c"], [1, 2, 3]
    one_hot = OneHotEncoder(categories=[lines], handle_unknown="ignore", sparse_output=False)
    ordinal = OrdinalEncoder(
        categories=[shifts], handle_unknown="use_encoded_value", unknown_value=-1
    )
    wanted = np.hstack([
        one_hot.fit(line[:2]).transform(line),
        ordinal.fit(shift[:2]).transform(shift),
    ])  # fmt: skip
    found = rows(
        [
            {"name": "line", "kind": "category", "categories": lines},
            {"name": "shift", "kind": "category", "categories": shifts, "encoding": "ordinal"},
        ],
        4, line=line, shift=shift,
    )  # fmt: skip
    assert (found == wanted).all()


@pytest.mark.parametrize("values", [["a", "b"], [5, 6]])
def test_what_is_not_listed_may_have_a_column_of_its_own(values: list[Any]) -> None:
    declared = {"name": "c", "kind": "category", "categories": values, "unknown": "other"}
    sent = column(values[1], values[0][:0] if isinstance(values[0], str) else 0)
    found = rows([declared], 3, c=sent if isinstance(values[0], str) else sent.astype(np.int64))
    assert found.tolist() == [[0, 1, 0], [0, 0, 1]]


def test_a_time_becomes_its_place_in_the_day_and_the_week() -> None:
    utc = datetime.UTC
    moments = [
        datetime.datetime(2026, 11, 30, 6, tzinfo=utc),  # a Monday
        datetime.datetime(1969, 12, 31, 18, tzinfo=utc),
        datetime.datetime(2400, 2, 29, 23, 59, 59, tzinfo=utc),
    ]
    declared = {"name": "t", "kind": "time", "cycles": ["day", "week", "year"]}
    seconds = column(*[int(m.timestamp()) for m in moments], dtype=np.int64)
    found = rows([declared], 6, t=seconds)
    for moment, row in zip(moments, found, strict=True):
        day = (moment.hour * 3600 + moment.minute * 60 + moment.second) / 86_400
        week = (moment.weekday() + day) / 7
        year = moment.timestamp() / 31_556_952 % 1
        wanted = [
            f(2 * math.pi * share) for share in (day, week, year) for f in (math.sin, math.cos)
        ]
        assert np.allclose(row, wanted, atol=2e-6)
    local = rows([{**declared, "cycles": ["day"], "offset_s": 21_600}], 2, t=seconds[:1])
    assert np.allclose(local, [[0, -1]], atol=1e-6)


@pytest.mark.parametrize(
    ("declared", "words"),
    [
        ({"name": "c", "kind": "category", "categories": []}, "length >= 1"),
        ({"name": "c", "kind": "category", "categories": ["a", "a"]}, "a category is there twice"),
        ({"name": "c", "kind": "category", "categories": ["a", 1]}, "not both"),
        ({"name": "c", "kind": "number", "std": 0}, "std"),
        ({"name": "c", "kind": "hash"}, "hash"),
        ({"name": "c", "kind": "number", "scale": 1}, "unknown field"),
    ],
)  # fmt: skip
def test_a_column_that_makes_no_sense_is_refused(declared: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingError) as refused:
        rows([declared], 1)
    assert words in str(refused.value)
    assert "columns[0]" in str(refused.value)
