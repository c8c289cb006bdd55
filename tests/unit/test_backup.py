"""Backup and restore of a controller that is served meanwhile."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from shoal.controller.__main__ import main
from shoal.controller.backup import back_up
from shoal.controller.doctor import Check, run_checks
from shoal.controller.host import settings
from shoal.controller.initialization import InitOptions, make_folder
from shoal.controller.releases.io.blobs import Blobs
from shoal.controller.store import arrivals, window_sums
from shoal.controller.store.io.database import Store, url_of
from stored_windows import keep, new_window

TESTS = Path(__file__).parents[1]
_WRITER = """
import itertools, sys
sys.path[:0] = [sys.argv[2]]
from stored_windows import keep, new_window
from shoal.controller.releases.io.blobs import Blobs
from shoal.controller.store.io.database import Store
from pathlib import Path
store, blobs = Store.open(sys.argv[1]), Blobs(Path(sys.argv[3]))
for seq in itertools.count(1):
    at = 1_700_000_000.0 + 600 * seq
    keep(store, *(new_window(f"cam-{i}", seq, received_at=at, start_at=at) for i in range(8)))
    blobs.put_bytes(b"%d" % seq)
    print(seq, flush=True)
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "controller"
    make_folder(folder, InitOptions(), 1_800_000_000.0)
    Store.open(url_of(folder, settings.load(folder))).close()
    Blobs(folder / "blobs").put_bytes(b"a model")
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "controller"))


def store_of(folder: Path) -> Store:
    return Store.open(url_of(folder, settings.load(folder)))


def run(*args: object) -> Result:
    return CliRunner().invoke(main, [str(arg) for arg in args])


def writing(folder: Path) -> "subprocess.Popen[str]":
    """A process that keeps windows, eight at a time, in a day after another."""
    argv = [url_of(folder, settings.load(folder)), str(TESTS), str(folder / "blobs")]
    return subprocess.Popen(
        [sys.executable, "-c", _WRITER, *argv], stdout=subprocess.PIPE, text=True
    )


def wait_for(writer: "subprocess.Popen[str]", seq: int) -> None:
    assert writer.stdout is not None
    for line in writer.stdout:
        if int(line) >= seq:
            return


def test_a_backup_of_a_controller_that_takes_windows_is_a_moment_of_it(
    folder: Path, tmp_path: Path
) -> None:
    """The copy holds whole batches, counted alike by windows, runs and sums, and goes on."""
    with writing(folder) as writer:
        wait_for(writer, 160)  # into the second day
        back_up(folder, tmp_path / "backup", 5.0)
        wait_for(writer, 200)
        writer.send_signal(signal.SIGKILL)
    restored = tmp_path / "elsewhere" / "controller"
    restored.parent.mkdir()
    done = run("restore", tmp_path / "backup", "--folder", restored)
    assert done.exit_code == 0, done.output
    assert f"next: shoal-controller serve --folder {restored}" in done.output
    store = store_of(restored)
    kept = store.windows.after(0, 100_000)
    assert [one.id for one in kept] == list(range(1, store.windows.last() + 1))
    assert len(kept) % 8 == 0
    assert len(kept) >= 8 * 160
    with store.read() as db:
        for i in range(8):
            [(_, found)] = arrivals.runs_of(db, f"cam-{i}")
            assert (found.first, found.last) == (1, len(kept) // 8)
        sums = window_sums.of(db, "m", "fleet", span=window_sums.HOUR, since=0, until=2e9)
        assert sum(row.windows for row in sums) == len(kept)
    keep_one = new_window("cam-9", 1, received_at=kept[-1].received_at)
    with store.write() as db:
        store.windows.add(db, [keep_one])
    assert store.windows.last() == len(kept) + 1
    for name in ("keys", "pki", "repository"):
        names = sorted(path.name for path in (folder / name).rglob("[!.]*"))
        assert sorted(path.name for path in (restored / name).rglob("*")) == names
    mode = (folder / "keys" / "capability.key").stat().st_mode
    assert (restored / "keys" / "capability.key").stat().st_mode == mode


@pytest.fixture
def backup(folder: Path, tmp_path: Path) -> Path:
    made = tmp_path / "backup"
    done = run("backup", made, "--folder", folder, "--json")
    assert json.loads(done.output)["files"] > 10, done.output
    return made


def test_nothing_is_overwritten(folder: Path, backup: Path, tmp_path: Path) -> None:
    again = run("backup", backup, "--folder", folder)
    assert (again.exit_code, "is not empty" in again.output) == (1, True)
    onto = run("restore", backup, "--folder", folder)
    assert (onto.exit_code, "nothing is overwritten" in onto.output) == (1, True)
    (tmp_path / "empty").mkdir()
    assert run("restore", backup, "--folder", tmp_path / "empty").exit_code == 0


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (lambda b: (b / "backup.json").unlink(), "is no complete backup"),
        (lambda b: (b / "controller.db").unlink(), "controller.db is missing"),
        (lambda b: (b / "controller.toml").write_text("x"), "controller.toml is damaged"),
        (lambda b: (b / "backup.json").write_text("{}"), "backup.json"),
        (
            lambda b: (b / "backup.json").write_text(
                '{"format": 1, "made_at": 1, "files": {"../x": {"size": 1, "sha256": ""}}}'
            ),
            "'../x'",
        ),
    ],
)
def test_a_backup_that_is_incomplete_or_damaged_restores_nothing(
    backup: Path, tmp_path: Path, harm: object, told: str
) -> None:
    assert callable(harm)
    harm(backup)
    done = run("restore", backup, "--folder", tmp_path / "new")
    assert (done.exit_code, told in done.output) == (1, True), done.output
    assert not (tmp_path / "new").exists()


def test_a_backup_or_a_restore_that_is_killed_leaves_nothing_that_looks_whole(
    folder: Path, backup: Path, tmp_path: Path
) -> None:
    for i in range(1_000):
        (folder / "blobs" / f"{i:04x}").write_bytes(b"x")
    argv = [sys.executable, "-m", "shoal.controller"]
    cut = tmp_path / "cut"
    with subprocess.Popen([*argv, "backup", str(cut), "--folder", str(folder)]) as process:
        while not (cut / "blobs" / "0001").exists():
            assert process.poll() is None
        process.kill()
    assert "is no complete backup" in run("restore", cut, "--folder", tmp_path / "new").output
    draft = tmp_path / ".new.restoring"
    with subprocess.Popen([*argv, "restore", str(backup), "--folder", str(tmp_path / "new")]) as p:
        while not draft.exists():
            assert p.poll() is None
        p.kill()
    assert not (tmp_path / "new").exists()
    assert run("restore", backup, "--folder", tmp_path / "new").exit_code == 0
    assert store_of(tmp_path / "new").windows.last() == 0


def test_doctor_says_how_much_telemetry_there_is_and_which_of_it_is_lost(folder: Path) -> None:
    store = store_of(folder)
    for day in (0, 1):
        keep(store, new_window("cam-1", day + 1, received_at=1.7e9 + 86_400 * day))
    store.close()

    def check() -> Check:
        return next(one for one in run_checks(folder, 1.8e9) if one.name == "telemetry")

    assert (check().state, check().detail.startswith("2 files of windows")) == ("ok", True)
    (folder / "controller.windows" / "2023-11-14.db").unlink()
    assert check().state == "warning"
    assert "2023-11-14 are lost" in check().detail
