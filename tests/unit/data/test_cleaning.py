"""The cleaning report names what is wrong with a table, and is silent about one that is fine."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controllers import csv, make_context
from shoal.controller.data import datasets, number_checks
from shoal.controller.data.records import TableFinding
from shoal.controller.host.context import Context
from shoal.controller.store.tables import dataset

N = 400
Columns = dict[str, list[object]]


@pytest.fixture(scope="module")
def ctx(tmp_path_factory: pytest.TempPathFactory) -> Context:
    return make_context(tmp_path_factory.mktemp("controller"))


def fine() -> Columns:
    """Two measured columns, a batch, a note, and a label that follows the first with noise."""
    rng = np.random.default_rng(4)
    heat, length = rng.normal(60, 5, N).round(3), rng.uniform(1, 3, N).round(4)
    fault = ["yes" if h > 0 else "no" for h in heat - 60 + rng.normal(0, 4, N)]
    batches = [f"b{i // 20:02}" for i in range(N)]
    return {
        "heat": heat.tolist(), "length": length.tolist(), "batch": batches, "note": ["ok"] * N,
        "fault": fault,
    }  # fmt: skip


def findings(ctx: Context, columns: Columns, **roles: object) -> dict[str, TableFinding]:
    path = csv(ctx.folder / "rig.csv", columns)
    given = {"name": "rig", "label": "fault", "split": "batch", "drop": ["note"]} | roles
    made = datasets.add_dataset(
        ctx, actor="ana", path=path, filename="rig.csv", **given  # type: ignore[arg-type]
    )  # fmt: skip
    report = datasets.get_report(ctx, made.ref)
    assert report.rows == made.rows
    return {one.check: one for one in report.findings}


def changed(column: str, rows: dict[int, object]) -> Columns:
    table = fine()
    table[column] = [rows.get(i, value) for i, value in enumerate(table[column])]
    return table


def test_nothing_is_found_in_a_table_that_is_fine(ctx: Context) -> None:
    assert findings(ctx, fine()) == {}


CASES = {
    "missing": (changed("heat", {4: "", 9: ""}), ["heat"], [5, 10], "0.5 % of its values"),
    "sentinel": (changed("heat", dict.fromkeys((3, 7, 8), -999)), ["heat"], [4, 8, 9], "-999"),
    "unit": (
        changed("length", {i: 2000 + i for i in range(40, 60)}), ["length"], [41, 42, 43, 44, 45],
        "1000",
    ),
    "range": (changed("heat", {11: 1e7}), ["heat"], [12], "the usual range"),
    "constant": (fine() | {"length": [7] * N}, ["length"], [1, 2, 3, 4, 5], "the same value, 7"),
    "encoding": (changed("note", {5: "GrÃ¶ÃŸe"}), ["note"], [6], "another encoding"),
    "spelling": (changed("fault", {0: "Yes ", 1: "Yes "}), ["fault"], [1, 2], "beside 'yes'"),
    "left out": (changed("fault", {6: ""}), [], [7], "label missing"),
}  # fmt: skip


@pytest.mark.parametrize("check", CASES)
def test_what_is_wrong_is_named_with_its_column_count_and_rows(ctx: Context, check: str) -> None:
    table, columns, rows, words = CASES[check]
    found = findings(ctx, table)
    assert check in found, found
    assert (found[check].columns, found[check].rows) == (columns, rows)
    assert found[check].count >= len(rows)
    assert words in found[check].what


def test_rows_that_are_the_same_are_found_on_both_sides_and_with_two_labels(ctx: Context) -> None:
    table = fine()
    for values in table.values():
        values[300] = values[10]  # the same row, in the same batch
        values[350] = values[20]
    table["batch"][350], table["fault"][350] = "b17", "no" if table["fault"][20] == "yes" else "yes"
    found = findings(ctx, table)
    assert found["duplicates"].rows == [301]
    assert found["contradiction"].rows == [21, 351]
    assert (found["overlap"].rows, found["overlap"].warns) == ([21, 351], True)


def test_a_column_that_gives_the_label_away_is_named(ctx: Context) -> None:
    table = fine()
    code = [7 if fault == "yes" else 4 for fault in table["fault"]]
    assert findings(ctx, table | {"code": code})["leak"].columns == ["code", "fault"]


def test_a_rare_class_is_named(ctx: Context) -> None:
    table = fine()
    table["fault"] = ["other" if i in (100, 200) else v for i, v in enumerate(table["fault"])]
    found = findings(ctx, table)["skew"]
    assert (found.rows, found.count) == ([101, 201], 2)


def test_a_column_around_zero_or_with_set_points_is_in_one_unit(ctx: Context) -> None:
    rng = np.random.default_rng(1)
    around = rng.normal(0, 1, N).round(4).tolist()
    points = (rng.choice([10.0, 1000.0], N) + rng.normal(0, 300, N)).round(2).tolist()
    bursts = rng.lognormal(0, 1, N).round(5).tolist()
    found = findings(ctx, fine() | {"around": around, "points": points, "bursts": bursts})
    assert found == {}


@given(
    st.lists(
        st.sampled_from([0.0, -0.0, 1.0, -1.0, 5e-324, 1e-300, 1e308, -1e308, -999.0])
        | st.floats() | st.integers(-50, 50).map(float),
        min_size=20,
        max_size=150,
    ),
    st.integers(0, 60),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_whatever_numbers_a_column_has_it_is_looked_at(numbers: list[float], zeros: int) -> None:
    def make(check: str, columns: list[str], rows: Any, what: str, hint: str) -> TableFinding:
        count = int(rows.sum())
        assert 0 < count <= len(values)
        return TableFinding(
            check=check, columns=columns, what=what, hint=hint, warns=True, count=count, rows=[]
        )

    values = np.array(numbers + [0.0] * zeros, np.float64)
    with np.errstate(all="ignore"):
        list(number_checks.number_findings("x", values, make))


def test_images_with_black_pixels_are_in_one_unit(ctx: Context) -> None:
    rng = np.random.default_rng(3)
    pixels = np.where(rng.random(N) < 0.3, 0, rng.integers(1, 17, N)) + rng.random(N).round(2) / 9
    grey = np.where(pixels < 0.12, 0.0, pixels).tolist()
    assert findings(ctx, fine() | {"grey": grey}, name="pixels") == {}


def test_a_table_from_before_reports_is_looked_at_when_asked_for(ctx: Context) -> None:
    found = findings(ctx, CASES["sentinel"][0], name="old")
    with ctx.store.write() as db:
        db.execute(dataset.update().values(report=None))
    assert datasets.get_report(ctx, "old@1").findings == [*found.values()]
