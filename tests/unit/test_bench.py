"""Every bench runs, at sizes that say nothing of speed, and writes what can be read again."""

import math
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from bench.__main__ import NAMES as ALL
from bench.measuring import compare, interleave
from bench.report import Aim, Report, human
from programs import nats_server
from soaking import soak

BENCH = Path(__file__).parents[1] / "bench"
ROOT = BENCH.parents[1]
#: Run apart: two want peers in environments of their own, and no numbers of feeds are committed.
APART = ("peers", "federated", "feeds")
NAMES = [name for name in ALL if name not in APART]
WITH_BROKER = [pytest.mark.broker, pytest.mark.slow, soak]


def names() -> list[object]:
    """Those that take longest, with real processes or a fleet of thousands, are for a soak."""
    slow = dict.fromkeys(("ingest", "update"), WITH_BROKER)
    slow |= {name: [soak] for name in ("attacks", "console")}
    return [pytest.param(name, marks=slow.get(name, [])) for name in NAMES]


@pytest.mark.parametrize("name", names())
def test_a_bench_runs_quickly_and_writes_what_can_be_read_again(name: str, tmp_path: Path) -> None:
    if name in ("ingest", "update"):
        nats_server()
    argv = [sys.executable, str(BENCH), name, "--quick", "--out", str(tmp_path)]
    run = subprocess.run(argv, capture_output=True, text=True, cwd=tmp_path)
    assert run.returncode == 0, run.stderr[-3_000:]
    report = msgspec.json.decode((tmp_path / f"{name}.json").read_bytes(), type=Report)
    assert (report.bench, report.quick) == (name, True)
    assert report.rows
    for row in report.rows:
        assert row.against
        assert all(math.isfinite(x) for x in (row.ours, row.raw, row.ratio, row.over)), row.what
        assert min(row.ours, row.raw, row.ratio) > 0, row.what


def test_what_is_committed_is_a_real_run_of_every_bench() -> None:
    for name in NAMES:
        report = msgspec.json.decode((ROOT / "bench" / f"{name}.json").read_bytes(), type=Report)
        assert (report.bench, report.quick) == (name, False)


def test_sides_take_turns_there_and_back_after_one_run_that_does_not_count() -> None:
    ran: list[str] = []
    sides = {name: (lambda name=name: ran.append(name)) for name in "AB"}
    found = interleave(3, sides)
    assert "".join(ran) == "AB" + "AB" + "BA" + "AB"
    assert {name: len(results) for name, results in found.items()} == {"A": 3, "B": 3}


def test_a_slow_spell_of_the_machine_does_not_move_the_ratio() -> None:
    row = compare("x", "µs", [2.0, 20.0, 2.2], [1.0, 10.0, 1.1], against="y")
    assert row.ratio == pytest.approx(2.0)
    assert (row.ours, row.raw) == (2.2, 1.1)


@pytest.mark.parametrize(
    ("aim", "ours", "raw", "held", "text"),
    [
        (Aim(at_least=5), 6.0, 1.0, True, "≥ 5 µs"),
        (Aim(at_least=5), 4.0, 1.0, False, "≥ 5 µs"),
        (Aim(at_most=20, on_difference=True), 30.0, 11.0, True, "≤ 20 µs over raw"),
        (Aim(at_most=20, on_difference=True), 30.0, 9.0, False, "≤ 20 µs over raw"),
        (Aim(at_most=2, on_ratio=True), 30.0, 15.0, True, "≤ 2 × raw"),
        (Aim(at_least=4, on_ratio=True), 30.0, 9.0, False, "≥ 4 × raw"),
    ],
)
def test_an_aim_is_held_or_missed(aim: Aim, ours: float, raw: float, held: bool, text: str) -> None:
    row = compare("x", "µs", [ours], [raw], against="y", aim=aim)
    assert (row.held, row.aim) == (held, text)


@pytest.mark.parametrize(
    ("value", "text"), [(0.01234, "0.0123"), (12.345, "12.3"), (26789.0, "26,789")]
)
def test_a_number_shows_the_digits_that_matter(value: float, text: str) -> None:
    assert human(value) == text
