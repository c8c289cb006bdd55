"""What changed between two versions of a table: columns, rows, distributions."""

import numpy as np
import pytest

from controllers import csv, make_context
from shoal.controller.data import comparison, datasets
from shoal.controller.data.records import TableDiff
from shoal.controller.host.context import Context
from shoal.errors import AbsentError

N = 500
Columns = dict[str, list[object]]


@pytest.fixture(scope="module")
def ctx(tmp_path_factory: pytest.TempPathFactory) -> Context:
    return make_context(tmp_path_factory.mktemp("controller"))


def parts() -> Columns:
    rng = np.random.default_rng(2)
    return {
        "heat": rng.normal(60, 5, N).round(3).tolist(),
        "speed": rng.integers(0, 9, N).tolist(),
        "plant": rng.choice(["north", "south"], N).tolist(),
        "ok": rng.choice(["yes", "no"], N).tolist(),
    }


def add(ctx: Context, name: str, columns: Columns) -> None:
    path = csv(ctx.folder / "parts.csv", columns)
    datasets.add_dataset(
        ctx, actor="ana", path=path, filename="parts.csv", name=name, label="ok", site="plant"
    )


def diff(ctx: Context, name: str, before: Columns, after: Columns) -> TableDiff:
    add(ctx, name, before)
    add(ctx, name, after)
    found = comparison.compare(ctx, name)
    assert (found.before, found.after) == (f"{name}@1", f"{name}@2")
    return found.table


def test_rows_that_came_and_went_are_counted_and_numbered(ctx: Context) -> None:
    before = parts()
    after = {name: [*values[2:], values[9], values[9]] for name, values in before.items()}
    after["heat"][100] = 99.5
    found = diff(ctx, "rows", before, after)
    assert (found.rows_added, found.rows_removed, found.rows_same) == (3, 3, N - 3)
    assert (found.added, found.removed) == ([101], [1, 2, 103])
    assert not found.columns
    assert not [one for one in found.shifts if one.differs]


def test_a_column_that_came_went_or_has_another_type_is_named(ctx: Context) -> None:
    after = parts()
    after["load"] = after.pop("speed")
    after["heat"] = [round(value) for value in after["heat"]]  # type: ignore[call-overload]
    found = diff(ctx, "columns", parts(), after)
    assert {(c.column, c.what, c.before, c.after) for c in found.columns} == {
        ("speed", "type", "int64", ""), ("speed", "role", "feature", ""),
        ("load", "type", "", "int64"), ("load", "role", "", "feature"),
        ("heat", "type", "float64", "int64"),
    }  # fmt: skip


def test_a_distribution_that_differs_is_named_with_how_far(ctx: Context) -> None:
    after = parts()
    after["heat"] = [value + 5 for value in after["heat"]]  # type: ignore[operator]
    after["plant"] = ["north" if i % 5 else "south" for i in range(N)]
    after["speed"] = ["" if i % 4 == 0 else value for i, value in enumerate(after["speed"])]
    found = diff(ctx, "shift", parts(), after)
    differ = {one.column: one for one in found.shifts if one.differs}
    assert set(differ) == {"heat", "plant", "speed"}
    assert 0.3 < differ["heat"].distance < 0.5
    assert "north 80 %" in differ["plant"].after
    assert (differ["speed"].missing_before, differ["speed"].missing_after) == (0, 25)


def test_the_first_version_has_none_before_it_and_says_how_to_compare(ctx: Context) -> None:
    add(ctx, "first", parts())
    with pytest.raises(AbsentError, match="shoal dataset diff NAME@N first@1"):
        comparison.compare(ctx, "first")
