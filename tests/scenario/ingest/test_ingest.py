"""Ingest: repeated, late, damaged, forged and foreign messages; a bad one costs itself alone."""

import random

import msgspec
import numpy as np
import pytest

from fakes import memory_folder
from fleet import FEATURES, MODEL, Fleet
from shoal import topics, wire
from shoal.controller.alerts import alerts
from shoal.controller.fleet import duplicate_devices, enrolment, ledger
from shoal.controller.fleet.duplicate_devices import ReturnCounter
from shoal.controller.ingest.ingest import ingest
from shoal.controller.monitoring import window_validation
from shoal.controller.store import tables
from shoal.controller.store.telemetry_retention import delete_expired
from shoal.errors import StorageError
from shoal.sketch import Sketch
from shoal.wire import FaultEvent, Health, Installed, Inventory, Status, UpdateEvent, WindowReport

pytestmark = pytest.mark.scenario
TOPIC = {kind: topics.up("cam-1", kind) for kind in topics.UP_KINDS}


@pytest.fixture
def fleet():
    with memory_folder() as folder:
        fleet = Fleet(folder)
        fleet.release()
        fleet.station("cam-1", start=False)
        fleet.station("cam-2", start=False)
        yield fleet


def references(fleet):
    with fleet.ctx.store.read() as db:
        return window_validation.references_of(db, f"{MODEL}@1")


def report(fleet, seq, device="cam-1", rows=50, **change):
    known = references(fleet)
    values = np.random.default_rng(seq).standard_normal((rows, len(FEATURES))).astype(np.float32)
    inputs, outputs = Sketch(known.inputs), Sketch(known.outputs)
    inputs.update(values)
    outputs.update(np.full((rows, 2), 0.5, np.float32))
    plain = {
        "device": device, "boot": "b1", "seq": seq, "sent_s": fleet.clock(), "model": MODEL,
        "release": f"{MODEL}@1", "reference": known.id, "window_start_s": fleet.clock(),
        "window_s": 10.0, "rows": rows, "latency": [0, 3, 2], "labelled": 5, "correct": 4,
        "inputs": inputs.to_bytes(), "outputs": outputs.to_bytes(),
    }  # fmt: skip
    return WindowReport(**plain | change)


def sent(message, device=None):
    kind = wire.UP_KIND[type(message)]
    return topics.up(device or message.device, kind), wire.encode(message)


def acked(acks, device="cam-1"):
    return sorted(seq for ack in acks.get(device, []) for seq in ack.seqs)


def windows(fleet):
    return {(w.device, w.seq) for w in fleet.windows()}


def device(fleet, name="cam-1"):
    return next(row for row in fleet.rows_of(tables.device) if row.name == name)


def test_a_batch_is_stored_and_every_sequence_number_acked(fleet):
    batch = [sent(report(fleet, seq)) for seq in range(1, 6)]
    assert acked(ingest(fleet.ctx, batch)) == [1, 2, 3, 4, 5]
    assert windows(fleet) == {("cam-1", seq) for seq in range(1, 6)}
    assert device(fleet).seen_at >= fleet.clock()


def test_redelivered_and_reordered_messages_are_stored_once_and_acked_each_time(fleet):
    batch = [sent(report(fleet, seq)) for seq in range(1, 9)]
    shuffled = batch * 3
    random.Random(1).shuffle(shuffled)
    assert acked(ingest(fleet.ctx, shuffled)) == list(range(1, 9))
    assert acked(ingest(fleet.ctx, batch[:2])) == [1, 2]
    assert len(fleet.windows()) == 8
    [found] = ledger.ledgers(fleet.ctx, "cam-1")
    assert (found.received, found.missing, found.rows) == (8, 0, 400)


def test_a_gap_in_the_sequence_numbers_is_in_the_ledger(fleet):
    ingest(fleet.ctx, [sent(report(fleet, 1)), sent(report(fleet, 4))])
    [found] = ledger.ledgers(fleet.ctx, "cam-1")
    assert (found.received, found.highest, found.missing) == (2, 4, 2)


def test_the_numbers_of_a_new_outbox_do_not_collide_with_the_old_ones(fleet):
    ingest(fleet.ctx, [sent(report(fleet, 1)), sent(report(fleet, 1, boot="b2"))])
    assert len(fleet.windows()) == 2


BAD = {
    "junk": lambda f: (TOPIC["window"], b"\xc1 not a message"),
    "empty": lambda f: (TOPIC["window"], b""),
    "a list": lambda f: (TOPIC["window"], msgspec.msgpack.encode([1, 2])),
    "deep": lambda f: (TOPIC["event"], b"\x91" * 5_000),
    "oversized": lambda f: (TOPIC["window"], b"\x00" * 300_000),
    "wrong kind": lambda f: (TOPIC["event"], wire.encode(report(f, 7))),
    "foreign topic": lambda f: ("other/v1/cam-1/up/window", wire.encode(report(f, 7))),
    "unknown kind of topic": lambda f: ("shoal/v1/cam-1/up/gossip", b"x"),
    "another's name": lambda f: sent(report(f, 7, device="cam-2"), device="cam-1"),
    "unknown device": lambda f: sent(report(f, 7, device="stranger")),
    "NaN seconds": lambda f: sent(report(f, 7, window_s=float("nan"))),
    "infinite health": lambda f: sent(report(f, 7, health=Health(temp_c=float("inf")))),
    "cut sketch": lambda f: sent(report(f, 7, inputs=report(f, 7).inputs[:-3])),
    "no sketch": lambda f: sent(report(f, 7, inputs=b"")),
    "more sketched than seen": lambda f: sent(
        report(f, 7, outputs=report(f, 7, rows=60).outputs)
    ),
    "unknown release": lambda f: sent(report(f, 7, release=f"{MODEL}@9")),
    "another model's release": lambda f: sent(report(f, 7, model="other")),
    "another reference": lambda f: sent(report(f, 7, reference="0" * 16)),
    "more right than labelled": lambda f: sent(report(f, 7, labelled=3, correct=4)),
    "too many latency bins": lambda f: sent(report(f, 7, latency=[1] * 97)),
    "no number": lambda f: sent(report(f, 0)),
    "endless boot": lambda f: sent(report(f, 7, boot="b" * 33)),
    "negative count": lambda f: (
        TOPIC["window"],
        wire.encode(report(f, 7)).replace(b"\xa4rows\x32", b"\xa4rows\xff"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_message_costs_itself_alone(fleet, kind, caplog):
    batch = [sent(report(fleet, 1)), BAD[kind](fleet), sent(report(fleet, 2, device="cam-2"))]
    acks = ingest(fleet.ctx, batch)
    assert windows(fleet) == {("cam-1", 1), ("cam-2", 2)}
    assert 1 in acked(acks)
    assert acked(acks, "cam-2") == [2]
    assert "stranger" not in acks
    assert caplog.messages


@pytest.mark.parametrize("kind", ["cut sketch", "unknown release", "NaN seconds", "wrong kind"])
def test_a_message_that_can_never_be_stored_is_acked_and_shown_as_an_error(fleet, kind):
    """Otherwise the device would send it for ever."""
    assert acked(ingest(fleet.ctx, [BAD[kind](fleet)])) == [7]
    [fault] = fleet.rows_of(tables.device_event)
    assert (fault.kind, fault.seq) == ("fault", 7)
    assert fault.cause in {"sketch-mismatch", "not-found", "unreadable-message"}
    assert device(fleet).error.startswith("a message was rejected")
    [found] = ledger.ledgers(fleet.ctx, "cam-1")
    assert found.received == 1


def test_messages_of_a_decommissioned_device_are_dropped(fleet):
    enrolment.decommission(fleet.ctx, actor="ana", device="cam-1")
    assert ingest(
        fleet.ctx, [sent(report(fleet, 1)), sent(report(fleet, 1, device="cam-2"))]
    ).keys() == {"cam-2"}
    assert windows(fleet) == {("cam-2", 1)}


def status(fleet, online, session):
    return sent(
        Status(
            device="cam-1", boot="", seq=0, sent_s=fleet.clock(), online=online,
            since_s=fleet.clock(), session=session,
        )
    )  # fmt: skip


@pytest.mark.parametrize(
    ("statuses", "online"),
    [
        ([(True, "s1")], True),
        ([(True, "s1"), (False, "s1")], False),
        ([(True, "s1"), (True, "s2"), (False, "s1")], True),
        ([(True, "s1"), (False, "s1"), (True, "s1")], False),
        ([(True, "s1"), (False, "s1"), (True, "s2")], True),
        ([(False, "s1")], False),
    ],
)
@pytest.mark.parametrize("together", [True, False])
def test_a_late_will_of_an_old_session_is_ignored(fleet, statuses, online, together):
    batch = [status(fleet, *one) for one in statuses]
    for part in [batch] if together else [[one] for one in batch]:
        assert ingest(fleet.ctx, part) == {}
    assert device(fleet).online is online


def test_a_device_without_messages_for_long_is_offline_until_its_next_message(fleet):
    fleet.clock.now += 1_000
    fleet.stations["cam-1"].start()
    fleet.run(5)
    assert device(fleet).online
    fleet.stations["cam-1"].link.stop(rudely=False)
    fleet.stations["cam-1"].agent = None
    fleet.run(400, step=10)
    assert not device(fleet).online


def test_an_inventory_updates_the_device_but_not_its_site(fleet):
    installed = Installed(
        model=MODEL, release=f"{MODEL}@1", variant="fp32", sha256="0" * 64, slot="a",
        role="release", since_s=1.0,
    )  # fmt: skip
    inventory = Inventory(
        device="cam-1", boot="", seq=0, sent_s=1.0, agent="0.1.0", profile="rpi4", ring="stable",
        site="elsewhere", line="7", labels={"shift": "b"}, facts={"ram_mb": float("inf")},
        installed=[installed], floors={},
    )  # fmt: skip
    ingest(fleet.ctx, [sent(inventory)])
    row = device(fleet)
    assert (row.profile, row.ring, row.line, row.site) == ("rpi4", "stable", "7", "north")
    assert row.releases == {MODEL: f"{MODEL}@1"}
    assert row.facts == {"ram_mb": "inf"}


@pytest.mark.parametrize("floor", [float("nan"), float("inf"), 1e300, -5.0])
def test_an_assignment_floor_that_is_no_version_rejects_its_inventory(fleet, caplog, floor):
    inventory = Inventory(
        device="cam-1", boot="b1", seq=0, sent_s=fleet.clock(), agent="0.2", profile="rpi5",
        ring="stable", site="s1", line="", labels={}, facts={}, installed=[],
        floors={"assignment": floor},
    )  # fmt: skip
    assert acked(ingest(fleet.ctx, [sent(inventory), sent(report(fleet, 1))])) == [1]
    assert "assignment floor" in device(fleet).error
    assert device(fleet).agent != "0.2"
    assert "cannot ingest" not in caplog.text


def test_a_release_version_too_large_for_the_database_rejects_its_window(fleet, caplog):
    odd = report(fleet, 1, release=f"{MODEL}@{'9' * 23}")
    assert acked(ingest(fleet.ctx, [sent(odd), sent(report(fleet, 2))])) == [1, 2]
    assert windows(fleet)
    assert "cannot ingest" not in caplog.text


def test_a_fault_sets_the_devices_last_error_unless_its_severity_is_info(fleet):
    def fault(seq, severity):
        return FaultEvent(
            device="cam-1", boot="b1", seq=seq, sent_s=0.0, cause="source-gone",
            detail="the camera is gone", severity=severity, facts={"bus": float("nan")},
        )  # fmt: skip

    ingest(fleet.ctx, [sent(fault(1, "info"))])
    assert device(fleet).error == ""
    assert acked(ingest(fleet.ctx, [sent(fault(2, "warning"))])) == [2]
    assert device(fleet).error == "the camera is gone"
    events = fleet.rows_of(tables.device_event)
    assert all(one.at == pytest.approx(fleet.clock(), abs=1) for one in events), (
        "its clock showed 1970"
    )
    assert events[0].facts["bus"] == "nan"


def test_an_overtaken_update_event_does_not_change_the_state_back(fleet):
    fleet.run(1)
    one = fleet.roll_out(f"{MODEL}@1")

    def event(seq, state):
        return sent(
            UpdateEvent(
                device="cam-1", boot="b1", seq=seq, sent_s=fleet.clock(), model=MODEL,
                release=f"{MODEL}@1", rollout=one.id, attempt=1, state=state,
            )
        )  # fmt: skip

    ingest(fleet.ctx, [event(3, "PROBING")])
    ingest(fleet.ctx, [event(2, "DOWNLOADING")])
    assert fleet.states(one.id)["cam-1"] in ("PROBING", "WAITING")


def test_only_durable_messages_are_acked(fleet, monkeypatch):
    def full(*_):
        raise StorageError("disk is full")

    monkeypatch.setattr("shoal.controller.ingest.ingest.changes.note_all", full)
    with pytest.raises(StorageError):
        ingest(fleet.ctx, [sent(report(fleet, 1))])
    monkeypatch.undo()
    assert windows(fleet) == set()
    assert acked(ingest(fleet.ctx, [sent(report(fleet, 1))])) == [1]


def test_a_message_that_meets_a_bug_does_not_stop_the_others(fleet, monkeypatch, caplog):
    real = window_validation.WindowValidator.check

    def brittle(self, message):
        if message.seq == 2:
            raise ZeroDivisionError
        real(self, message)

    monkeypatch.setattr(window_validation.WindowValidator, "check", brittle)
    assert acked(ingest(fleet.ctx, [sent(report(fleet, seq)) for seq in (1, 2, 3)])) == [1, 3]
    assert "one by one" in caplog.text


def test_a_device_may_step_back_to_stable_and_not_promote_itself(fleet):
    fleet.station("cam-3", ring="canary", start=False)

    def reports(name, ring):
        inventory = Inventory(
            device=name, boot="b1", seq=0, sent_s=fleet.clock(), agent="0.1.0", profile="generic",
            ring=ring, site="north", line="", labels={}, facts={}, installed=[], floors={},
        )  # fmt: skip
        ingest(fleet.ctx, [sent(inventory)])
        return device(fleet, name)

    promoted = reports("cam-1", "canary")
    assert promoted.ring == "stable"
    assert "enrol it again with a join token for that ring" in promoted.error
    assert reports("cam-2", "gold").ring == "stable"
    back = reports("cam-3", "stable")
    assert (back.ring, back.error) == ("stable", "")
    assert reports("cam-3", "canary").ring == "stable", "and it stays so until it is enrolled again"


def test_a_number_that_no_outbox_gives_is_a_jump_and_not_a_gap(fleet):
    ingest(fleet.ctx, [sent(report(fleet, seq)) for seq in (1, 3, 2**53)])
    [found] = ledger.ledgers(fleet.ctx, "cam-1")
    assert (found.received, found.highest, found.missing, found.jumps) == (3, 2**53, 1, 1)


def test_a_boot_that_begins_at_a_high_number_misses_nothing(fleet):
    ingest(fleet.ctx, [sent(report(fleet, seq)) for seq in (2**53 - 1, 2**53)])
    [found] = ledger.ledgers(fleet.ctx, "cam-1")
    assert (found.received, found.missing, found.jumps) == (2, 0, 1)


def test_messages_deleted_by_retention_are_not_missing(fleet):
    ingest(fleet.ctx, [sent(report(fleet, seq)) for seq in (1, 2, 3)])
    fleet.clock.now += fleet.ctx.settings.fleet.retention_days * 86_400 - 60.0
    ingest(fleet.ctx, [sent(report(fleet, seq)) for seq in (4, 6)])
    fleet.clock.now += 120.0
    delete_expired(fleet.ctx)
    [found] = ledger.ledgers(fleet.ctx, "cam-1")
    assert (found.received, found.highest, found.missing) == (5, 6, 1)


# --- two agents under one name -------------------------------------------------------------------


def online(process, before, device="cam-1"):
    session = f"{process * 8}-{before}-{before:08x}"
    return sent(
        Status(
            device=device, boot="b1", seq=0, sent_s=1.0, online=True, since_s=1.0, session=session
        )
    )


def standing(fleet):
    """Open alerts of two agents under one name."""
    found = fleet.rows_of(tables.alert)
    return {a.key: a for a in found if a.state == alerts.OPEN and a.key.startswith("copies/")}


CONNECTIONS = [
    ("one agent on a bad line", [("a", n) for n in range(9)], False),
    ("one that is started again and again", [("a", 0), ("b", 0), ("c", 0), ("d", 0)], False),
    ("... on a bad line", [("a", 0), ("a", 1), ("b", 0), ("b", 1), ("c", 0), ("c", 1)], False),
    ("one that connected while the controller was down", [("a", 0), ("b", 1), ("b", 2)], False),
    ("a message that comes again and again", [("a", 1), ("b", 0), ("a", 1), ("b", 0)] * 3, False),
    ("two that take turns", [("a", 0), ("b", 0), ("a", 1), ("b", 1)], True),
    ("two, of which one starts later", [("a", 5), ("b", 0), ("a", 6), ("b", 1)], True),
]


@pytest.mark.parametrize(
    ("case", "connections", "duplicate"), CONNECTIONS, ids=[c[0] for c in CONNECTIONS]
)
def test_two_agents_that_take_turns_differ_from_one_that_reconnects(
    fleet, case, connections, duplicate
):
    returns = ReturnCounter(fleet.clock)
    for process, before in connections:
        ingest(fleet.ctx, [online(process, before)], returns)
        fleet.clock.now += 20.0
    assert set(standing(fleet)) == ({"copies/cam-1"} if duplicate else set())
    if duplicate:
        alert = standing(fleet)["copies/cam-1"]
        assert (alert.severity, alert.kind) == ("critical", "device")
        assert "decommission cam-1" in alert.next_step


def test_returns_that_are_far_apart_are_no_duplicate(fleet):
    returns = ReturnCounter(fleet.clock)
    for process, before in [("a", 0), ("b", 0), ("a", 1), ("b", 1)]:
        ingest(fleet.ctx, [online(process, before)], returns)
        fleet.clock.now += 4_000.0
    assert standing(fleet) == {}


def test_sessions_of_older_agents_raise_no_alert(fleet):
    returns = ReturnCounter(fleet.clock)
    for session in ("0123456789abcdef", "fedcba9876543210", "0123456789abcdef"):
        status = Status(
            device="cam-1", boot="b1", seq=0, sent_s=1.0, online=True, since_s=1.0, session=session
        )
        ingest(fleet.ctx, [sent(status)], returns)
    assert standing(fleet) == {}


def fault(seq, cause="nan"):
    return FaultEvent(device="cam-1", boot="b1", seq=seq, sent_s=1.0, cause=cause, detail="x")


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("kind", ["window", "event"])
def test_two_different_messages_with_one_number_raise_the_alert(fleet, kind, together):
    one, two = (
        (report(fleet, 1), report(fleet, 1, rows=51))
        if kind == "window"
        else (fault(1), fault(1, "modbus"))
    )
    for batch in [[one, one, two]] if together else [[one], [one], [two]]:
        assert acked(ingest(fleet.ctx, [sent(each) for each in batch])) == [1]
    alert = standing(fleet)["copies/cam-1"]
    assert "sequence number 1" in alert.detail
    assert "outbox.db" in alert.next_step


def test_a_redelivery_raises_no_alert_even_when_the_clock_was_corrected_in_between(fleet):
    first = report(fleet, 1)
    ingest(fleet.ctx, [sent(first), sent(fault(2))])
    fleet.clock.now += 900.0
    again = msgspec.structs.replace(first, sent_s=fleet.clock())
    ingest(fleet.ctx, [sent(again), sent(fault(2))])
    assert standing(fleet) == {}


def test_the_alert_closes_after_an_hour_without_a_second_agent(fleet):
    ingest(fleet.ctx, [sent(fault(1)), sent(fault(1, "modbus"))])
    fleet.clock.now += duplicate_devices.CALM_S - 1
    duplicate_devices.close_alerts(fleet.ctx)
    assert standing(fleet)
    fleet.clock.now += 2
    duplicate_devices.close_alerts(fleet.ctx)
    assert standing(fleet) == {}
