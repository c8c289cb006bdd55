"""The database: migrations, durability and the translation of its errors."""

import subprocess
import sys
import threading
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import func, select

from shoal.controller.store.columns import metadata
from shoal.controller.store.io.database import Store
from shoal.controller.store.tables import change
from shoal.errors import StorageError


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'controller.db'}"


def note(store: Store, subject: str) -> None:
    with store.write() as db:
        db.execute(change.insert().values(at=1.0, kind="device", subject=subject))


def subjects(store: Store) -> list[str]:
    with store.read() as db:
        return list(db.scalars(select(change.c.subject).order_by(change.c.id)))


def test_the_migrations_lead_exactly_to_the_schema_that_the_code_uses(url: str) -> None:
    with Store.open(url).read() as db:
        context = MigrationContext.configure(db, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []


def test_opening_a_database_again_keeps_its_rows(url: str) -> None:
    first = Store.open(url)
    note(first, "cam-1")
    first.close()
    assert subjects(Store.open(url)) == ["cam-1"]


def test_a_failed_write_leaves_nothing_behind(url: str) -> None:
    store = Store.open(url)

    def write_half() -> None:
        with store.write() as db:
            db.execute(change.insert().values(at=1.0, kind="device", subject="half"))
            raise KeyError("the rest")

    with pytest.raises(KeyError):
        write_half()
    assert subjects(store) == []


def test_a_reader_sees_a_consistent_view_during_a_write(url: str) -> None:
    store, other = Store.open(url), Store.open(url)
    with store.read() as db:
        before = db.scalar(select(func.count()).select_from(change))
        note(other, "cam-1")
        assert db.scalar(select(func.count()).select_from(change)) == before == 0
    assert subjects(store) == ["cam-1"]


def test_a_commit_of_any_thread_or_process_is_seen_without_a_query(url: str) -> None:
    store, other = Store.open(url), Store.open(url)
    before = store.commits()
    with store.write():
        pass
    assert subjects(store) == []
    assert store.commits() == before, "nothing was written"
    note(other, "cam-1")
    second = store.commits()
    assert second != before
    note(store, "cam-2")
    assert store.commits() != second


def test_writers_wait_for_each_other_and_none_is_lost(url: str) -> None:
    Store.open(url)

    def write_ten(name: str) -> None:
        store = Store.open(url)
        for i in range(10):
            note(store, f"{name}-{i}")

    threads = [threading.Thread(target=write_ten, args=(f"t{i}",)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(subjects(Store.open(url)))) == 40


KILLED = """
import os, sys
from shoal.controller.store.io.database import Store
from shoal.controller.store.tables import change
store = Store.open(sys.argv[1])
with store.write() as db:
    db.execute(change.insert().values(at=1.0, kind="device", subject="kept"))
with store.write() as db:
    db.execute(change.insert().values(at=1.0, kind="device", subject="torn"))
    os.kill(os.getpid(), 9)
"""


def test_kill_9_keeps_what_was_committed_and_nothing_else(url: str) -> None:
    subprocess.run([sys.executable, "-c", KILLED, url], check=False)
    assert subjects(Store.open(url)) == ["kept"]


def test_a_write_is_synced_to_the_disk_before_it_returns(url: str) -> None:
    with Store.open(url).read() as db:
        full = db.exec_driver_sql("PRAGMA synchronous").scalar()
        assert (full, db.exec_driver_sql("PRAGMA journal_mode").scalar()) == (2, "wal")


def test_a_full_disk_is_a_storage_error_and_keeps_what_was_there(url: str) -> None:
    store = Store.open(url)
    note(store, "cam-1")
    with store.read() as db:
        db.exec_driver_sql("PRAGMA max_page_count = 1")  # SQLite's own way to fill a disk
    with pytest.raises(StorageError, match="full"):
        note(store, "x" * 1_000_000)
    assert subjects(store) == ["cam-1"]


def test_the_error_names_a_database_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="nowhere"):
        Store.open(f"sqlite:///{tmp_path / 'nowhere' / 'controller.db'}")


def test_a_file_that_is_no_database_is_a_storage_error(tmp_path: Path) -> None:
    path = tmp_path / "controller.db"
    path.write_bytes(b"not a database at all" * 100)
    with pytest.raises(StorageError, match="not a database"):
        Store.open(f"sqlite:///{path}")
