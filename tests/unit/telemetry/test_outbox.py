"""Nothing leaves the outbox but by acknowledgement, or, said aloud, because it is full."""

import itertools
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal import wire
from shoal.agent.host.io.database import readable_rows
from shoal.agent.telemetry.io.outbox_store import SqliteOutbox
from shoal.agent.telemetry.outbox import Drop, Merge, Row, next_eviction
from shoal.agent.telemetry.reporter import BacklogLimiter, SendWindow
from shoal.wire import FaultEvent, UpdateEvent, WindowReport

ALL = 10_000
FULL = 2  # of SQLite's PRAGMA synchronous


def window(number: int, release: str = "m@1", padding: int = 0) -> WindowReport:
    return WindowReport(
        device="cam-1",
        boot="",
        seq=0,
        sent_s=1e9,
        model="m",
        release=release,
        reference="r" * padding,
        window_start_s=1e9 + 60 * number,
        window_s=60,
        rows=10 + number,
        latency=[10],
    )


def update(state: str) -> UpdateEvent:
    return UpdateEvent(
        device="cam-1",
        boot="",
        seq=0,
        sent_s=1e9,
        model="m",
        release="m@1",
        rollout="r",
        attempt=1,
        state=state,
    )


@pytest.fixture
def open_outbox(tmp_path: Path) -> Iterator[Callable[..., SqliteOutbox]]:
    opened = []

    def open_it(limit: int = 1 << 20) -> SqliteOutbox:
        for one in opened:
            one.close()
        chance = random.Random(len(opened))
        found = SqliteOutbox(
            tmp_path / "outbox.db",
            limit_bytes=limit,
            boot_name=lambda: f"{chance.getrandbits(64):x}",
        )
        opened.append(found)
        return found

    yield open_it
    for one in opened:
        one.close()


def read(outbox: SqliteOutbox, after: int = 0, limit: int = ALL) -> list[wire.AnyUp]:
    return [wire.decode_up(x.kind, x.payload) for x in outbox.after(after, limit)]


def test_messages_come_out_in_order_named_once_and_for_all(open_outbox) -> None:
    outbox = open_outbox()
    for i in range(5):
        outbox.add(window(i))
    first = read(outbox)
    assert [m.seq for m in first] == [1, 2, 3, 4, 5]
    assert {m.boot for m in first} == {outbox.boot}
    assert [m.rows for m in first] == [10, 11, 12, 13, 14]
    assert read(open_outbox()) == first


def test_an_acknowledged_message_is_gone_and_its_number_is_never_used_again(open_outbox) -> None:
    outbox = open_outbox()
    for i in range(3):
        outbox.add(window(i), number=True)
    outbox.ack(outbox.boot, [2, 3, 77])
    assert [m.seq for m in read(outbox)] == [1]
    outbox = open_outbox()
    outbox.add(window(9))
    assert [m.seq for m in read(outbox)] == [1, 4]
    assert outbox.waiting == 2


def test_what_is_added_after_an_acknowledgement_is_on_the_disk_at_once_again(open_outbox) -> None:
    outbox = open_outbox()
    outbox.add(window(0), number=True)
    outbox.ack(outbox.boot, [1])
    assert outbox._db.execute("PRAGMA synchronous").fetchone() == (FULL,)


def test_an_acknowledgement_of_another_boot_is_ignored(open_outbox) -> None:
    outbox = open_outbox()
    outbox.add(window(0), number=True)
    outbox.ack("another", [1])
    assert outbox.waiting == 1


def test_an_ack_of_a_number_that_was_never_sent_means_a_duplicate_device(open_outbox) -> None:
    outbox = open_outbox()
    outbox.add(window(1))
    (message,) = outbox.after(0, ALL)
    outbox.ack(outbox.boot, [message.seq])
    outbox.ack("another life", [message.seq + 1])
    assert outbox.faults() == []
    outbox.ack(outbox.boot, [message.seq + 1])
    (fault,) = outbox.faults()
    assert (fault.cause, fault.severity) == ("copied", "critical")
    assert "message 2" in fault.detail


def test_a_report_with_a_key_is_added_once_even_after_it_left(open_outbox) -> None:
    outbox = open_outbox()
    outbox.add(update("QUEUED"), "r/1/QUEUED")
    outbox.add(update("QUEUED"), "r/1/QUEUED")
    assert outbox.waiting == 1
    read(outbox)
    outbox.ack(outbox.boot, [1])
    outbox = open_outbox()
    outbox.add(update("QUEUED"), "r/1/QUEUED")
    assert outbox.waiting == 0


def test_a_number_is_only_given_ahead_when_nothing_older_waits_for_one(open_outbox) -> None:
    outbox = open_outbox()
    outbox.add(window(0))
    outbox.add(window(1), number=True)
    assert [m.rows for m in read(outbox)] == [10, 11]


def test_a_full_outbox_merges_windows_before_it_drops_any(open_outbox) -> None:
    outbox = open_outbox(limit=8_000)
    for i in range(64):
        outbox.add(window(i, padding=200))
    kept = read(outbox)
    assert sum(m.merged for m in kept) == 64
    assert sum(m.rows for m in kept) == sum(10 + i for i in range(64))
    assert max(m.merged for m in kept) <= 8
    assert [m.seq for m in kept] == list(range(1, len(kept) + 1))
    told = outbox.faults()
    assert {(f.cause, f.severity) for f in told} == {("outbox-merged", "info")}
    assert sum(f.times for f in told) == 64 - len(kept)


def test_windows_of_two_releases_are_not_merged(open_outbox) -> None:
    outbox = open_outbox(limit=8_000)
    for i in range(64):
        outbox.add(window(i, release=f"m@{1 + i // 32}", padding=200))
    assert {m.release for m in read(outbox)} == {"m@1", "m@2"}


def test_what_may_lie_in_the_controllers_database_already_is_not_merged(open_outbox) -> None:
    outbox = open_outbox(limit=8_000)
    for i in range(10):
        outbox.add(window(i, padding=200))
    sent = {m.seq: m for m in read(outbox, limit=5)}
    for i in range(10, 64):
        outbox.add(window(i, padding=200))
    again = {m.seq: m for m in read(outbox)}
    assert all(again[seq] == message for seq, message in sent.items())


def test_when_nothing_merges_the_oldest_window_is_dropped_and_reported(open_outbox) -> None:
    outbox = open_outbox(limit=4_000)
    outbox.add(update("QUEUED"))
    for i in range(20):
        outbox.add(window(i, release=f"m@{i}", padding=200))
    kept = read(outbox)
    assert isinstance(kept[0], UpdateEvent)
    assert kept[-1].release == "m@19"
    faults = [f for f in outbox.faults() if f.cause != "outbox-merged"]
    assert {f.cause for f in faults} == {"outbox-full"}
    assert sum(f.facts["windows"] for f in faults) == 21 - len(kept)


def test_a_damaged_file_is_set_aside_and_a_new_life_begins(open_outbox, tmp_path: Path) -> None:
    outbox = open_outbox()
    outbox.add(window(0))
    old = outbox.boot
    outbox.close()
    for path in tmp_path.glob("outbox.db*"):
        path.write_bytes(b"\x00garbage" * 999)
    outbox = open_outbox()
    assert outbox.boot != old
    assert [f.cause for f in outbox.faults()] == ["outbox-damaged"]
    assert (tmp_path / "outbox.db.damaged").exists()
    outbox.add(window(1))
    assert [m.seq for m in read(outbox)] == [1]


def test_one_unreadable_row_does_not_hold_up_the_rest(open_outbox) -> None:
    outbox = open_outbox()
    for i in range(3):
        outbox.add(window(i))
    outbox._db.execute("UPDATE row SET payload = substr(payload, 1, 9) || x'c1' WHERE id = 2")
    outbox._db.conn.commit()
    assert [m.rows for m in read(outbox)] == [10, 12]
    assert [f.cause for f in outbox.faults()] == ["outbox-damaged"]
    assert outbox.waiting == 2


def test_a_numbered_row_whose_bits_flipped_is_not_sent(open_outbox) -> None:
    outbox = open_outbox()
    for i in range(3):
        outbox.add(window(i))
    assert len(read(outbox)) == 3
    outbox._db.execute("UPDATE row SET payload = substr(payload, 1, 9) || x'07' WHERE id = 2")
    assert [m.seq for m in read(outbox)] == [1, 3]
    assert [f.cause for f in outbox.faults()] == ["outbox-damaged"]


def fill(outbox: SqliteOutbox, windows: int, padding: int = 700) -> None:
    for i in range(windows):
        outbox.add(window(i, release=f"m@{i}", padding=padding), key=f"w{i}")


def pages_of(path: Path) -> int:
    return path.stat().st_size // 4096


def damage(path: Path, page: int) -> None:
    """One page of the file as a dying card leaves it."""
    with path.open("r+b") as file:
        file.seek(page * 4096)
        file.write(b"\xa5" * 4096)


#: Where SQLite keeps the way to all rows: lost, so are they.
ROOT = 1


def fold(outbox: SqliteOutbox) -> None:
    """Everything into the one file, nothing in the log beside it."""
    outbox._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    outbox.close()


@pytest.mark.parametrize("page", range(1, 40, 3))
def test_whatever_page_is_lost_what_is_read_is_true_and_nothing_is_numbered_twice(
    open_outbox, tmp_path: Path, page: int
) -> None:
    outbox = open_outbox()
    fill(outbox, 120)
    sent = read(outbox, limit=20)
    boot = outbox.boot
    fold(outbox)
    path = tmp_path / "outbox.db"
    assert pages_of(path) > 40
    damage(path, page)
    outbox = open_outbox()
    kept = read(outbox)
    assert all(m.release == f"m@{m.rows - 10}" for m in kept), "only what was put in"
    assert len({m.rows for m in kept}) == len(kept)
    if outbox.boot == boot:
        again = {m.seq: m for m in kept}
        assert all(again.get(m.seq, m) == m for m in sent), "a number stands for one message"
    else:
        assert not {m.rows for m in kept} & {m.rows for m in sent}
    assert len(kept) >= 90 or page == ROOT
    (fault,) = {f.cause: f for f in outbox.faults()}.values()
    assert fault.cause == "outbox-damaged"
    assert fault.facts["saved"] + fault.facts["lost"] >= 100


def test_a_store_of_before_checksums_is_read_on(open_outbox) -> None:
    outbox = open_outbox()
    outbox.add(window(0))
    outbox._db.execute("ALTER TABLE row DROP COLUMN crc")
    assert [m.rows for m in read(open_outbox())] == [10]


def test_new_windows_and_events_go_before_what_piled_up(open_outbox) -> None:
    outbox = open_outbox()
    for i in range(6):
        outbox.add(window(i))
    outbox.connected()
    outbox.add(window(90))
    outbox.add(update("QUEUED"))
    first = read(outbox, limit=4)
    assert [getattr(m, "rows", "event") for m in first] == ["event", 100, 10, 11]
    assert outbox.caught_up == 2


def test_the_backlog_goes_no_faster_than_it_may(open_outbox) -> None:
    outbox = open_outbox()
    for i in range(9):
        outbox.add(window(i))
    outbox.connected()
    batch = outbox.after(0, 64, 2)
    assert len(batch) == 2
    outbox.add(window(50))
    assert len(outbox.after(0, 64, 0)) == 3
    assert outbox.waiting == 10


def test_a_week_offline_is_caught_up_with_in_hours_and_new_windows_never_wait(open_outbox) -> None:
    outbox, limiter, sender = open_outbox(limit=1 << 26), BacklogLimiter(), SendWindow()
    week, minutes, delays = 400, 0, []
    for i in range(week):  # less than a week's: the rate is what counts
        outbox.add(window(i, release=f"m@{i}"))
    outbox.connected()
    sender.connect()
    limiter.connect(0.0, 0.0)
    while outbox.waiting and minutes < 100:
        now = 60.0 * minutes
        outbox.add(window(week + minutes, release="m@new"))
        new = week + minutes + 10
        for second in range(60):
            before = outbox.caught_up
            allowed = limiter.allowed(now + second, 60.0)
            batch = outbox.after(sender.start_after(now + second), sender.free, allowed)
            limiter.sent(outbox.caught_up - before)
            for message in batch:
                sender.sent(message.seq, now + second)
                if wire.decode_up(message.kind, message.payload).rows == new:
                    delays.append(second)
            outbox.ack(outbox.boot, [message.seq for message in batch])
            sender.acked([message.seq for message in batch])
        minutes += 1
    assert minutes == pytest.approx(week / 60, abs=3)
    assert delays == [0] * minutes


rows = st.builds(
    Row,
    id=st.integers(1, 99),
    seq=st.integers(0, 3),
    kind=st.sampled_from(["window", "event"]),
    group=st.sampled_from(["", "a", "b"]),
    merged=st.integers(1, 9),
    size=st.integers(1, 999),
)


@settings(max_examples=200)
@given(st.lists(rows, max_size=12, unique_by=lambda r: r.id))
def test_something_always_gives_way_and_never_a_merge_across_groups(found: list[Row]) -> None:
    found.sort(key=lambda r: r.id)
    step, by_id = next_eviction(found), {r.id: r for r in found}
    if isinstance(step, Merge):
        older, newer = by_id[step.older], by_id[step.newer]
        assert older.group == newer.group != ""
        assert not older.seq
        assert not newer.seq
        assert older.id < newer.id
    elif isinstance(step, Drop):
        windows = [r for r in found if r.kind == "window"]
        assert by_id[step.id] == (windows or found)[0]
    else:
        assert not found


class LossyNetwork:
    """A send window over a lossy network; the receiver keeps a set."""

    def __init__(self, seed: int) -> None:
        self.chance, self.sender = random.Random(seed), SendWindow(window=4, resend_s=10)
        self.arrived: list[int] = []
        self.left = list(range(1, 30))

    def tick(self, now: float) -> None:
        if self.chance.random() < 0.1:
            self.sender.connect()
        after = self.sender.start_after(now)
        for seq in [s for s in self.left if s > after][: self.sender.free]:
            self.sender.sent(seq, now)
            if self.chance.random() < 0.7:
                self.arrived.append(seq)
        acks = [s for s in self.arrived if s in self.left and self.chance.random() < 0.5]
        self.sender.acked(acks)
        self.left = [s for s in self.left if s not in acks]


@pytest.mark.parametrize("seed", range(20))
def test_whatever_the_network_loses_everything_arrives_and_is_acknowledged(seed: int) -> None:
    network = LossyNetwork(seed)
    for second in range(2_000):
        network.tick(float(second))
    assert network.left == []
    assert set(network.arrived) == set(range(1, 30))


def test_few_messages_are_in_flight_at_once() -> None:
    sender = SendWindow(window=2)
    sender.sent(1, 0.0)
    sender.sent(2, 0.0)
    assert sender.free == 0
    sender.acked([1])
    assert sender.free == 1


def test_a_fault_is_a_message_like_any_other(open_outbox) -> None:
    outbox = open_outbox()
    fault = FaultEvent(device="cam-1", boot="", seq=0, sent_s=1e9, cause="x", detail="y")
    outbox.add(fault, number=True)
    (kept,) = read(outbox)
    assert msgspec.structs.replace(kept, boot="", seq=0) == fault


def test_a_damaged_tree_that_leads_back_to_its_beginning_is_left() -> None:
    """As 3 of 400 files were whose bits were flipped at random: the agent never came up."""

    class LoopingTree:
        def execute(self, query: str, given: list[int]) -> Iterator[tuple]:
            return itertools.repeat((7, "event"))

    found = readable_rows(LoopingTree(), "SELECT id, kind FROM row", 100)  # type: ignore[arg-type]
    assert list(found) == [(7, "event")]
