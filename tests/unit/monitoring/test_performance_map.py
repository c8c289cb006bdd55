"""A measure of every device over time, from sums."""

from pathlib import Path

import pytest
from sqlalchemy import text

from controllers import make_context
from shoal.controller.host.context import Context
from shoal.controller.monitoring.performance import performance, performance_map
from shoal.controller.store import window_sums
from shoal.controller.store.io.database import Store
from shoal.errors import InputError
from stored_windows import keep, new_window

DAY, HOUR = 86_400, 3_600
BEGIN = 20_000 * DAY


@pytest.fixture
def ctx(tmp_path: Path) -> Context:
    made = make_context(tmp_path)
    assert isinstance(made.store, Store)
    for i, (device, hour) in enumerate([("b", 0), ("a", 1), ("b", 1), ("b", 1), ("a", 30)], 1):
        site = "north" if device == "a" else "south"
        at = BEGIN + hour * HOUR + 60.0 * i
        keep(made.store, new_window(device, i, start_at=at, received_at=at, site=site, errors=i))
    return made


SHARE = 10.0
MEASURES = [
    ("windows", [[None, 1], [1, 2]]),
    ("rows", [[None, 10], [10, 20]]),
    ("errors", [[None, 2 / SHARE], [1 / SHARE, 7 / (2 * SHARE)]]),
    ("accuracy", [[None, 0.75], [0.75, 0.75]]),
]


@pytest.mark.parametrize(("measure", "values"), MEASURES)
def test_each_device_has_a_row_and_each_hour_a_column(
    ctx: Context, measure: str, values: list[list[float | None]]
) -> None:
    found = performance_map(ctx, model="m", measure=measure, since=BEGIN, until=BEGIN + 2 * HOUR)
    assert (found.subjects, found.span_s) == (["a", "b"], HOUR)
    assert found.at == [BEGIN, BEGIN + HOUR]
    assert found.values == values


def test_beyond_four_days_a_column_is_a_day_and_every_scope_has_its_map(ctx: Context) -> None:
    found = performance_map(ctx, model="m", measure="windows", scope="site")
    assert (found.at, found.span_s) == ([BEGIN, BEGIN + DAY], DAY)
    assert dict(zip(found.subjects, found.values, strict=True)) == {
        "north": [1, 1],
        "south": [3, None],
    }
    whole = performance_map(ctx, model="m", measure="rows", scope="fleet")
    assert whole.values == [[40, 10]]
    assert performance_map(ctx, model="other", measure="rows").values == []


def test_a_map_of_too_many_days_is_refused(ctx: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shoal.controller.monitoring.performance.MOST_BUCKETS", 1)
    with pytest.raises(InputError, match="2 days at once"):
        performance_map(ctx, model="m", measure="rows")


def test_performance_counts_the_hours_that_are_asked_for(ctx: Context) -> None:
    [south] = performance(ctx, model="m", site="south", since=BEGIN + HOUR, until=BEGIN + 2 * HOUR)
    assert (south.rows, south.errors, south.accuracy) == (20, 7, 0.75)
    assert south.since == BEGIN + HOUR + 180
    north, _ = performance(ctx, model="m")
    assert (north.subject, north.rows, north.p50_us is not None) == ("north", 20, True)
    assert performance(ctx, model="m", device="b", release="m@2") == []


PLANS = [
    (window_sums.DAY, "device"),
    (window_sums.HOUR, "site"),
]


@pytest.mark.parametrize(("span", "scope"), PLANS)
def test_a_map_reads_the_sums_that_it_shows_and_sorts_nothing(
    ctx: Context, span: int, scope: str
) -> None:
    """SQLite's plan: a search by the primary key, without a temporary tree."""
    with ctx.store.read() as db:
        plan = db.execute(
            text(
                "EXPLAIN QUERY PLAN SELECT at, json_group_array(subject) FROM window_sum WHERE "
                "model = :m AND span = :p AND scope = :s AND at >= 0 AND at <= 9 "
                "GROUP BY at ORDER BY at"
            ),
            {"m": "m", "p": span, "s": scope},
        ).all()
    assert len(plan) == 1
    assert "SEARCH window_sum USING PRIMARY KEY" in plan[0].detail
