"""Journal and outbox where the disk refuses their files, and once it takes them again."""

from pathlib import Path

import pytest

from shoal.agent.installed.io.journal import SqliteJournal
from shoal.agent.installed.record import Record
from shoal.agent.telemetry.io.outbox_store import MEMORY_BYTES, SqliteOutbox
from shoal.errors import StorageError
from shoal.wire import FaultEvent


def fault(detail: str) -> FaultEvent:
    return FaultEvent(device="cam-1", boot="", seq=0, sent_s=1e9, cause="nan", detail=detail)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that is not there yet: as a card that is not mounted."""
    return tmp_path / "card"


def test_messages_are_kept_in_memory_until_all_are_acknowledged_and_the_disk_takes_them(
    folder: Path,
) -> None:
    boots = iter(["of-memory", "of-the-disk"])
    outbox = SqliteOutbox(folder / "outbox.db", limit_bytes=1 << 24, boot_name=lambda: next(boots))
    assert [one.cause for one in outbox.faults()] == ["storage"]
    outbox.add(fault("one"))
    folder.mkdir()
    outbox.add(fault("two"))
    assert (outbox.boot, outbox.waiting) == ("of-memory", 2)
    sent = [message.seq for message in outbox.after(0, 10)]
    assert sent == [1, 2]
    outbox.ack("of-memory", sent)
    outbox.add(fault("three"))
    assert (outbox.boot, outbox.waiting, outbox.degraded) == ("of-the-disk", 1, "")
    outbox.close()
    again = SqliteOutbox(folder / "outbox.db", limit_bytes=1 << 24, boot_name=str)
    assert (again.boot, again.waiting) == ("of-the-disk", 1)


def test_memory_is_bounded_while_the_disk_refuses(folder: Path) -> None:
    outbox = SqliteOutbox(folder / "outbox.db", limit_bytes=1 << 30, boot_name=lambda: "b")
    for number in range(300):
        outbox.add(fault(f"{number}" + "x" * 10_000))
    assert outbox.waiting <= MEMORY_BYTES // 10_000
    assert any(one.cause == "outbox-full" for one in outbox.faults())


def test_a_journal_without_its_disk_saves_nothing_and_then_everything(folder: Path) -> None:
    journal = SqliteJournal(folder / "journal.db")
    assert "unable to open" in journal.degraded
    assert journal.records() == {}
    with pytest.raises(StorageError):
        journal.save(Record(model="parts"))
    assert journal.records() == {}, "what is not durable did not happen"
    folder.mkdir()
    journal.save(Record(model="parts"))
    assert journal.degraded == ""
    journal.close()
    assert "parts" in SqliteJournal(folder / "journal.db").records()
