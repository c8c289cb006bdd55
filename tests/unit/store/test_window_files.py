"""Windows in a file a day: each exactly once, in order of arrival, whatever is killed."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text

from shoal.controller.host.windows import NewWindow
from shoal.controller.store import arrivals, window_sums
from shoal.controller.store.arrivals import Arrivals, Run
from shoal.controller.store.io.database import Store, migrate
from shoal.errors import StorageError
from stored_windows import keep, new_window

DAY = 86_400.0
NOON = 20_000 * DAY + 43_200.0


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store.open(f"sqlite:///{tmp_path / 'controller.db'}")
    yield made
    made.close()


def at(day: int, seq: int, device: str = "cam-1", **change: Any) -> NewWindow:
    return new_window(
        device, seq, received_at=NOON + day * DAY, start_at=NOON + day * DAY, **change
    )


def seqs(store: Store, **wanted: Any) -> list[int]:
    return [one.seq for one in store.windows.of(**{"limit": 1_000} | wanted)]


def files(store: Store) -> list[str]:
    return sorted(path.name for path in store.windows.folder.glob("*.db"))


def test_windows_come_back_as_they_were_in_order_of_arrival_over_days(store: Store) -> None:
    given = [at(day, 1 + 2 * day + i, f"cam-{i}") for day in range(3) for i in range(2)]
    for day in range(3):
        keep(store, *given[2 * day : 2 * day + 2])
    kept = store.windows.after(0, 100)
    assert [NewWindow(*one[1:]) for one in kept] == given
    assert [one.id for one in kept] == [1, 2, 3, 4, 5, 6]
    assert [one.id for one in store.windows.after(1, 3)] == [2, 3, 4]
    assert store.windows.last() == 6
    assert files(store) == ["2024-10-04.db", "2024-10-05.db", "2024-10-06.db"]


CHOICES: list[tuple[dict[str, Any], list[int]]] = [
    ({"device": "cam-1"}, [1, 3, 4]),
    ({"device": "cam-1", "limit": 2}, [1, 3]),
    ({"device": "cam-1", "limit": 2, "newest": True}, [3, 4]),
    ({"site": "south"}, [2]),
    ({"release": "m@2"}, [4]),
    ({"model": "other"}, []),
    ({"since": NOON + DAY}, [3, 4]),
    ({"until": NOON + DAY}, [1, 2]),
    ({"after": 3}, [4]),
]


@pytest.mark.parametrize(("wanted", "found"), CHOICES)
def test_windows_are_found_by_what_they_are_of(
    store: Store, wanted: dict[str, Any], found: list[int]
) -> None:
    keep(store, at(0, 1), at(0, 2, "cam-2", site="south"))
    keep(store, at(1, 3))
    keep(store, at(2, 4, release="m@2"))
    assert seqs(store, **wanted) == found


def test_what_a_transaction_that_failed_left_in_a_file_is_no_window(store: Store) -> None:
    keep(store, at(0, 1))

    def fail() -> None:
        with store.write() as db:
            store.windows.add(db, [at(0, 2), at(0, 3)])
            raise KeyError("power")

    with pytest.raises(KeyError):
        fail()
    assert (seqs(store), store.windows.last()) == ([1], 1)
    keep(store, at(0, 4))
    assert (seqs(store), store.windows.last()) == ([1, 4], 2)


_WRITER = """
import sys, itertools
sys.path[:0] = [sys.argv[2], sys.argv[3]]
from test_window_files import *
store = Store.open(sys.argv[1])
done = int(sys.argv[4])
for seq in itertools.count(done + 1):
    keep(store, *(at(seq // 40, seq, f"cam-{i}") for i in range(5)))
    print(seq, flush=True)
"""


def test_killed_at_any_moment_a_writer_goes_on_and_every_window_is_there_once(
    store: Store, tmp_path: Path
) -> None:
    """Acked windows are all there; those of the batch that was cut are all or not there."""
    done = 0
    for more in (7, 55):
        argv = [sys.executable, "-c", _WRITER, f"sqlite:///{tmp_path / 'controller.db'}"]
        paths = [str(Path(__file__).parents[i]) for i in (0, 2)]
        with subprocess.Popen(
            [*argv, *paths, str(done)], stdout=subprocess.PIPE, text=True
        ) as writer:
            assert writer.stdout is not None
            for line in writer.stdout:
                done = int(line)
                if done >= more:
                    writer.send_signal(signal.SIGKILL)
        assert done >= more
        found = [(one.device, one.boot, one.seq) for one in store.windows.after(0, 10_000)]
        assert len(found) == len(set(found)) == store.windows.last()
        assert len(found) in (5 * done, 5 * done + 5)
        with store.read() as db:
            runs = [run for i in range(5) for _, run in arrivals.runs_of(db, f"cam-{i}")]
            sums = window_sums.of(db, "m", "fleet", span=window_sums.DAY, since=0, until=NOON * 2)
        assert {run.last - run.first + 1 for run in runs} == {len(found) // 5}
        assert sum(row.windows for row in sums) == len(found)
        done = len(found) // 5


def test_days_past_their_retention_are_deleted_as_files_and_ids_go_on(store: Store) -> None:
    for day in range(4):
        keep(store, at(day, day + 1))
    assert store.windows.drop(NOON + 1.5 * DAY) == 2
    assert (files(store), seqs(store)) == (["2024-10-06.db", "2024-10-07.db"], [3, 4])
    assert store.windows.drop(NOON + 9 * DAY) == 2
    assert (list(store.windows.folder.iterdir()), seqs(store), store.windows.last()) == ([], [], 4)
    keep(store, at(12, 5))
    assert [(one.id, one.seq) for one in store.windows.after(0, 9)] == [(5, 5)]


def test_a_clock_that_was_years_ahead_does_not_keep_its_windows_for_years(store: Store) -> None:
    keep(store, at(5_000, 1))
    keep(store, at(0, 2))
    keep(store, at(5_000, 3))
    assert seqs(store) == [1, 2, 3]
    assert len(files(store)) == 3
    assert store.windows.drop(NOON + DAY) == 2
    assert seqs(store) == [3]


@pytest.mark.parametrize("damage", ["garbage", "lost"])
def test_a_damaged_file_costs_its_own_windows_and_nothing_else(
    store: Store, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    keep(store, at(0, 1))
    keep(store, at(1, 2))
    store.close()
    path = store.windows.folder / "2024-10-05.db"
    if damage == "lost":
        path.unlink()
    else:
        path.write_bytes(b"not a database" * 999)
    assert seqs(store) == [1]
    assert "2024-10-05.db cannot be read" in caplog.text
    keep(store, at(1, 3))
    assert seqs(store) == [1, 3]


def test_a_full_disk_is_an_error_that_names_the_file(store: Store) -> None:
    store.windows.folder.write_text("a file where the folder should be")
    with pytest.raises(StorageError, match=r"2024-10-04\.db"):
        keep(store, at(0, 1))
    store.windows.folder.unlink()
    keep(store, at(0, 1))
    assert seqs(store) == [1]


@pytest.mark.parametrize(
    ("order", "runs"),
    [
        ([1, 2, 3, 4], [(1, 4)]),
        ([4, 2, 3, 1], [(1, 4)]),
        ([1, 3, 1, 3], [(1, 1), (3, 3)]),
        ([2**53, 1, 2], [(1, 2), (2**53, 2**53)]),
    ],
)
@pytest.mark.parametrize("together", [True, False])
def test_numbers_that_arrived_are_kept_as_runs(
    store: Store, order: list[int], runs: list[tuple[int, int]], together: bool
) -> None:
    for some in [order] if together else [[seq] for seq in order]:
        with store.write() as db:
            known = Arrivals(db, [("cam-1", "b", seq) for seq in some])
            for seq in some:
                known.add(("cam-1", "b", seq), 5.0, windows=1, rows=10)
            known.save()
    with store.read() as db:
        found = [run for _, run in arrivals.runs_of(db, "cam-1")]
        assert [(run.first, run.last) for run in found] == runs
        assert sum(run.rows for run in found) == 10 * len(set(order))
        assert arrivals.count_of(db, "cam-1") == len(set(order))


def test_windows_from_before_move_into_files_and_are_summed(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'controller.db'}"
    row = new_window("cam-1", 1)._asdict() | {"latency": "[0, 3]", "health": "{}"}
    with create_engine(url).begin() as db:
        migrate(db, "0015")
        insert: Callable[[Any], Any] = lambda values: db.execute(  # noqa: E731
            text(
                f"INSERT INTO window ({', '.join(values)}) "
                f"VALUES ({', '.join(':' + name for name in values)})"
            ),
            values,
        )
        for day, seq in ((0, 1), (0, 2), (1, 4)):
            insert(
                row | {"seq": seq, "received_at": NOON + day * DAY, "start_at": NOON + day * DAY}
            )
        tested = json.dumps(NOON)
        db.execute(text(f"INSERT INTO setting VALUES ('monitoring.received_at', '{tested}')"))
    store = Store.open(url)
    assert [(one.id, one.seq) for one in store.windows.after(0, 9)] == [(1, 1), (2, 2), (3, 4)]
    with store.read() as db:
        found = [run for _, run in arrivals.runs_of(db, "cam-1")]
        assert found == [Run(1, 2, 2, 20, NOON, NOON), Run(4, 4, 1, 10, NOON + DAY, NOON + DAY)]
        days = window_sums.of(db, "m", "site", span=window_sums.DAY, since=0, until=NOON * 2)
        assert [(row.subject, row.windows, row.latency) for row in days] == [
            ("north", 2, [0, 6]),
            ("north", 1, [0, 3]),
        ]
        assert window_sums.newest_release(db, "m", "device", "cam-1") == "m@1"
        position = db.execute(text("SELECT value FROM setting WHERE name = 'monitoring.window'"))
        assert position.scalar() == 2
    keep(store, at(1, 2), at(1, 5))
    assert seqs(store) == [1, 2, 4, 5]
