"""The disk of the power-cut tests loses exactly the data that a real disk may lose."""

import contextlib
import os
import random
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from scenario.power import Disk, How, Supply
from shoal.agent.host.io.database import open_database
from shoal.durable import write_durable
from supply import PowerCut


@pytest.fixture
def live(tmp_path: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="shoal-") as folder:
        path = Path(folder) / "live"
        path.mkdir()
        (path / "old").write_bytes(b"old")
        yield path


def careless(live: Path) -> None:
    (live / "old").write_bytes(b"new")


def renamed(live: Path) -> None:
    with (live / "new").open("wb") as file:
        file.write(b"new")
        file.flush()
        os.fsync(file.fileno())
    (live / "new").replace(live / "old")


def unsynced(live: Path) -> None:
    (live / "new").write_bytes(b"new")
    (live / "new").replace(live / "old")
    descriptor = os.open(live, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def durable(live: Path) -> None:
    write_durable(live / "old", b"new")


@pytest.mark.parametrize(
    ("write", "left"),
    [(careless, b"old"), (renamed, b"old"), (unsynced, b""), (durable, b"new")],
)
def test_what_is_left_of_a_write_that_was_not_synced_and_of_one_that_was(
    write: Callable[[Path], None], left: bytes, live: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(live)
    supply = Supply(disk)
    with supply.patched(monkeypatch):
        write(live)
    disk.crash(live.with_name("after"), How.LOST, random.Random(0))
    assert (live.with_name("after") / "old").read_bytes() == left
    disk.crash(live.with_name("kept"), How.KEPT, random.Random(0))
    assert (live.with_name("kept") / "old").read_bytes() == b"new"


def test_by_chance_some_of_it_was_written(live: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk, seen = Disk(live), set[bytes]()
    with Supply(disk).patched(monkeypatch):
        unsynced(live)
    for seed in range(40):
        after = live.with_name(f"after-{seed}")
        disk.crash(after, How.TORN, random.Random(seed))
        seen.add((after / "old").read_bytes())
    assert {b"", b"new", b"\0\0\0"} <= seen


def test_a_torn_log_of_sqlite_loses_the_commit_and_nothing_before(live: Path) -> None:
    database = open_database(live / "journal.db")
    database["t"].insert({"n": 1})
    disk = Disk(live)
    database["t"].insert({"n": 2})
    found = set()
    for seed in range(20):
        after = live.with_name(f"after-{seed}")
        disk.crash(after, How.TORN, random.Random(seed))
        rows = open_database(after / "journal.db").execute("SELECT n FROM t").fetchall()
        found.add(tuple(n for (n,) in rows))
    database.close()
    assert found == {(1,), (1, 2)}


def test_nothing_happens_after_the_cut(live: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    supply = Supply(Disk(live), cut=0, after=live.with_name("after"))
    with supply.patched(monkeypatch), contextlib.suppress(PowerCut):
        try:
            (live / "old").unlink()
        finally:
            (live / "old").rename(live / "elsewhere")
    assert [path.name for path in live.with_name("after").iterdir()] == ["old"]
    assert [path.name for path in live.iterdir()] == ["old"]
