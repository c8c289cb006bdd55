"""The parts that the demo is made of; the demo itself is run whole by `make demo ARGS=--exit`."""

import io
import os
import tomllib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from demo import graphs, table
from demo.digits import foul, lot_codes
from demo.partition import dirichlet_split, hold_out
from demo.power_cuts import overlapping
from demo.processes import Processes, free_ports
from demo.progress import Progress
from demo.scenario import Scenario
from demo.setup_fleet import change_toml
from demo.table import Table
from demo.user_table import Choice, user_table
from shoal.cli.exit_codes import FailedError
from shoal.errors import DatasetError, LinkError


@pytest.fixture(scope="module")
def digits() -> Scenario:
    return lot_codes()


def rows_of(scenario: Scenario) -> set[tuple[str, ...]]:
    return {row[:-1] for row in scenario.registered.rows}


def test_no_streamed_image_was_ever_in_a_registered_dataset(digits: Scenario) -> None:
    learned = {row[:-1] for row in digits.relabelled.rows}
    for step in (digits.streams, *digits.change_steps):
        for stream in step.values():
            assert not learned & {row[:-1] for row in stream.rows}


def test_each_station_has_its_own_mix_of_digits(digits: Scenario) -> None:
    mixes = [Counter(stream.column("digit")) for stream in digits.streams.values()]
    shares = np.array([[mix[str(d)] / mix.total() for d in range(10)] for mix in mixes])
    assert np.ptp(shares, axis=0).mean() > 0.08


def test_only_one_site_fouls_and_it_has_no_canary(digits: Scenario) -> None:
    changed = {name for step in digits.change_steps for name in step}
    there = {s.name: s for s in digits.stations if s.name in changed}
    assert {s.site for s in there.values()} == digits.drifting
    assert {s.ring for s in there.values()} == {"stable"}


def test_fouling_takes_contrast_and_keeps_the_range() -> None:
    images = np.random.default_rng(1).uniform(0, 16, (20, 64))
    assert np.array_equal(foul(images, 0.0), images)
    worst = foul(images, 1.0)
    assert worst.std() < 0.5 * images.std()
    assert worst.min() >= 0
    assert worst.max() <= 16


def test_shares_are_a_partition_and_none_is_empty() -> None:
    shares = dirichlet_split(["a"] * 40 + ["b"] * 3, 6, np.random.default_rng(3))
    assert sorted(row for share in shares for row in share) == list(range(43))
    assert all(shares)


def test_groups_are_held_back_whole_and_never_all_of_them() -> None:
    keys, groups = ["x"] * 30 + ["y"] * 10, [str(i // 5) for i in range(40)]
    back = hold_out(keys, groups, 0.5, np.random.default_rng(0))
    for group in set(groups):
        rows = {i for i, g in enumerate(groups) if g == group}
        assert rows <= back or not rows & back
    assert {keys[i] for i in range(40) if i not in back} == {"x", "y"}


@pytest.fixture
def rig(tmp_path: Path) -> Path:
    """Sixty rows at each of three sites."""
    lines = ["t,p,leak,plant,batch,note"]
    for i in range(180):
        site = i % 3
        lines.append(f"{20 * site + i % 7},{i % 11},{(i // 3) % 2},{100 - site},{i // 6},n{i}")
    path = tmp_path / "rig.csv"
    path.write_text("\n".join(lines))
    return path


def test_a_users_sites_start_with_the_train_sites_data_and_then_get_their_own(rig: Path) -> None:
    progress = user_table(Choice(rig, "leak", "plant", "batch", ("note",), ("100",)))
    assert progress.drifting == {"99", "98"}
    assert set(progress.registered.column("plant")) == {"100"}
    assert all(set(s.column("plant")) == {"100"} for s in progress.streams.values())
    assert set(progress.change_steps[-1]["site-99-1"].column("plant")) == {"99"}
    assert progress.relabelled.rows[: len(progress.registered.rows)] == progress.registered.rows
    assert "note" not in progress.registered.columns
    learned = set(progress.relabelled.column("batch"))
    streamed = {b for s in progress.streams.values() for b in s.column("batch")}
    assert not learned & streamed


def test_without_train_sites_the_sensors_of_one_site_wear(rig: Path) -> None:
    progress = user_table(Choice(rig, "leak", drop=("note", "batch", "plant")))
    assert len(progress.drifting) == 1
    assert {s.site for s in progress.stations} == {"north", "south", "east"}
    name = next(iter(progress.change_steps[0]))
    before = [float(t) for t in progress.streams[name].column("t")]
    after = [float(t) for t in progress.change_steps[-1][name].column("t")]
    assert np.mean(after) > np.mean(before) + 2 * np.std(before)


@pytest.mark.parametrize(
    ("choice", "said"),
    [
        ({"label": "colour"}, "colour"),
        ({"label": "note"}, "180 different values"),
        ({"label": "leak", "site": "plant", "train_sites": ("7",)}, "'7'"),
        ({"label": "leak", "site": "leak"}, "three sites"),
        ({"label": "leak", "site": "plant"}, "not numbers: 'note'.*--drop note"),
    ],
)
def test_a_table_that_does_not_fit_the_story_is_refused_by_name(
    rig: Path, choice: dict[str, object], said: str
) -> None:
    with pytest.raises(DatasetError, match=said):
        user_table(Choice(rig, **choice))  # type: ignore[arg-type]


def test_something_that_is_no_table_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DatasetError, match=r"x\.csv"):
        table.read(path)


def test_the_bad_models_load_and_are_wrong_or_slow_but_right(digits: Scenario) -> None:
    import onnxruntime

    model = graphs.fit(digits)
    rows = np.array(digits.registered.only(digits.features).rows[:50], np.float32)

    def labels(data: bytes) -> np.ndarray:
        session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
        return session.run(None, {"input": rows})[0].argmax(1)

    good = labels(graphs.build(model))
    assert np.array_equal(labels(graphs.build(model, rolled=1)), (good + 1) % 10)
    slow = graphs.build(model, burn=graphs.Burn(1 << 10, 5))
    assert np.array_equal(labels(slow), good)


def test_windows_that_overlap_are_found() -> None:
    windows = [{"start_at": t, "window_s": 1.0} for t in (0.0, 1.0, 2.0, 2.5)]
    assert overlapping(windows[:3]) == []
    assert overlapping(windows) == [(2.0, 2.5)]


def test_settings_are_changed_and_the_others_stay(tmp_path: Path) -> None:
    path = tmp_path / "agent.toml"
    path.write_text('[device]\nname = "a"\n[device.labels]\nhall = "3"\n[update]\nobserve_s = 60\n')
    change_toml(path, {"update": {"observe_s": 3.0}, "source": {"label": "digit"}})
    assert tomllib.loads(path.read_text()) == {
        "device": {"name": "a", "labels": {"hall": "3"}},
        "update": {"observe_s": 3.0},
        "source": {"label": "digit"},
    }


def test_every_process_is_ended_by_its_pid_even_one_that_does_not_listen(tmp_path: Path) -> None:
    processes = Processes(tmp_path, os.environ)
    children = [processes.start(name, "http.server", "0", "--bind", "127.0.0.1") for name in "ab"]
    assert all(not child.ended for child in children)
    processes.end_all(lambda text: None)
    assert all(child.ended for child in children)


def test_a_process_that_dies_is_reported_with_the_end_of_its_log(tmp_path: Path) -> None:
    processes = Processes(tmp_path, os.environ)
    child = processes.start("gone", "no_such_module")
    assert child.wait(20)
    with pytest.raises(FailedError, match="no_such_module"):
        processes.check()
    processes.end_all(lambda text: None)


def test_a_wait_ends_at_its_deadline_with_what_was_last_seen() -> None:
    now = [0.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    progress = Progress(Console(file=io.StringIO()), lambda: now[0], sleep, lambda: None)
    with progress.step(3, "x") as step:
        with pytest.raises(FailedError, match="step 3: the moon: not within 5 s; still day"):
            progress.wait_for("the moon", 5, lambda: None, lambda: "still day")
        answers = iter([LinkError("away"), None, "risen"])

        def look() -> str | None:
            answer = next(answers)
            if isinstance(answer, Exception):
                raise answer
            return answer

        assert progress.wait_for("the moon", 5, look) == "risen"
    assert step.held


def test_free_ports_are_different_and_can_be_bound() -> None:
    assert len(set(free_ports(5))) == 5


def test_tables_are_put_in_place_in_one_step(tmp_path: Path) -> None:
    path = tmp_path / "s.csv"
    table.write(Table(("a", "b"), [("1", 'x"y')]), path)
    assert table.read(path) == Table(("a", "b"), [("1", 'x"y')])
    assert list(tmp_path.iterdir()) == [path]
