"""What windows and faults of devices are signs of: raised, grouped, and over by themselves."""

from collections import namedtuple

import pytest

from fakes import memory_folder
from fleet import Fleet
from shoal.controller.alerts import listing, members
from shoal.controller.conditions import drafts, health
from shoal.controller.conditions.clocks import DeviceClock
from shoal.controller.conditions.device_watch import BatchWatch
from shoal.controller.host.windows import NewWindow
from shoal.controller.store import alert_tables

pytestmark = pytest.mark.scenario
Known = namedtuple("Known", "name site seen_at")


@pytest.fixture
def fleet():
    with memory_folder() as folder:
        yield Fleet(folder)


def window(fleet, device="cam-1", **change):
    plain = {
        "device": device, "boot": "b", "seq": 1, "site": "north", "model": "pumps",
        "release": "pumps@1", "reference": "", "start_at": fleet.clock() - 60, "window_s": 60.0,
        "received_at": fleet.clock(), "rows": 100, "errors": 0, "slow": 0, "labelled": 0,
        "correct": 0, "merged": 1, "latency": [], "health": {}, "inputs": b"", "outputs": b"",
    }  # fmt: skip
    return NewWindow(**plain | change)


def fault(device, cause, severity="warning", detail=""):
    return {"device": device, "kind": "fault", "state": severity, "cause": cause, "detail": detail}


def arrive(fleet, *windows, faults=(), seconds=60.0, clock_reports=()):
    """A batch; then time passes, and what is due is done."""
    names = {w.device for w in windows} | {f["device"] for f in faults}
    devices = {n: Known(n, "north", fleet.clock() - 60) for n in names}
    with fleet.ctx.store.write() as db:
        BatchWatch(db, fleet.ctx, devices, fleet.clock()).note(
            names, windows, faults, clock_reports
        )
    end = fleet.clock.now + seconds
    while fleet.clock.now < end:
        fleet.clock.now += min(60.0, end - fleet.clock.now)
        members.step(fleet.ctx, drafts.draft)


def unresolved(fleet, kind=""):
    return listing.page(fleet.ctx, state="unresolved", kind=kind)[0]


def closed(fleet, kind):
    return not unresolved(fleet, kind) and listing.page(fleet.ctx, kind=kind)[1].total > 0


@pytest.mark.parametrize(
    ("kind", "bad", "still", "well"),
    [
        ("disk", {"disk_free_mb": 40}, {"disk_free_mb": 150}, {"disk_free_mb": 500}),
        ("memory", {"memory_free_mb": 12}, {"memory_free_mb": 50}, {"memory_free_mb": 90}),
        ("temperature", {"temp_c": 91}, {"temp_c": 82}, {"temp_c": 70}),
        ("temperature", {"temp_c": 50, "throttled": True}, {"temp_c": 83}, {"temp_c": 60}),
    ],
)
def test_a_level_has_to_last_and_ends_only_when_well_clear(fleet, kind, bad, still, well):
    arrive(fleet, window(fleet, health=bad), seconds=30)
    assert unresolved(fleet) == [], "one window is none"
    arrive(fleet, window(fleet, health=well))
    arrive(fleet, window(fleet, health=bad))
    arrive(fleet, window(fleet, health=bad))
    arrive(fleet, window(fleet, health=bad))
    [alert] = unresolved(fleet)
    assert (alert.kind, alert.site, alert.members) == (kind, "north", 1)
    for _ in range(40):
        arrive(fleet, window(fleet, health=still))
    assert len(unresolved(fleet)) == 1
    arrive(fleet, window(fleet, health=well))
    assert closed(fleet, kind)


def test_devices_of_a_site_with_one_trouble_are_one_alert(fleet):
    names = [f"cam-{i}" for i in range(7)]
    for _ in range(4):
        arrive(fleet, *(window(fleet, n, health={"disk_free_mb": 1}) for n in names))
    [alert] = unresolved(fleet)
    assert alert.title == "Disks of 7 devices at north are full or nearly"
    assert "and 3 more" in alert.detail
    assert alert.members == 7


@pytest.mark.parametrize(
    ("kind", "before", "after"),
    [
        ("errors", {"errors": 1}, {"errors": 40}),
        ("latency", {"slow": 1}, {"slow": 30}),
        ("accuracy", {"labelled": 50, "correct": 47}, {"labelled": 50, "correct": 35}),
    ],
)
def test_a_share_that_rose_is_an_alert_after_some_windows_and_over_when_it_fell(
    fleet, kind, before, after
):
    for _ in range(30):
        arrive(fleet, window(fleet, **before))
    assert unresolved(fleet) == []
    arrive(fleet, window(fleet, **after))
    assert unresolved(fleet) == [], "one bad window is none"
    windows = 1
    while not unresolved(fleet) and windows < 9:
        arrive(fleet, window(fleet, **after))
        windows += 1
    [alert] = unresolved(fleet)
    assert windows <= 6
    assert (alert.kind, alert.model) == (kind, "pumps")
    assert alert.title.startswith("pumps ")
    for _ in range(30):
        arrive(fleet, window(fleet, **before))
    assert closed(fleet, kind)


def test_a_new_release_is_held_against_its_own_past(fleet):
    for _ in range(30):
        arrive(fleet, window(fleet, errors=1))
    for _ in range(5):
        arrive(fleet, window(fleet, errors=20))
    assert len(unresolved(fleet, "errors")) == 1
    for _ in range(8):
        arrive(fleet, window(fleet, errors=0, release="pumps@2"))
    assert closed(fleet, "errors")


def test_a_device_without_errors_is_written_down_once_and_not_again(fleet):
    for _ in range(6):
        arrive(fleet, window(fleet))
    rows = fleet.rows_of(alert_tables.device_share)
    arrive(fleet, window(fleet), window(fleet, seq=2))
    assert fleet.rows_of(alert_tables.device_share) == rows
    assert {row.trials for row in rows} == {500}


@pytest.mark.parametrize(
    ("cause", "severity", "kind"),
    [
        ("disk-full", "critical", "disk"), ("feed-down", "warning", "source"),
        ("bad-input", "warning", "refused-rows"),
        ("sketch-mismatch", "warning", "refused-messages"),
        ("slot-damaged", "critical", "failing"), ("bad-signature", "critical", "attack"),
        ("pressure", "warning", "pressure"), ("short-memory", "warning", "memory"),
        ("too-hot", "warning", "temperature"),
        ("never-seen", "warning", "fault"),
    ],
)  # fmt: skip
def test_a_fault_is_an_alert_until_it_stays_away(fleet, cause, severity, kind):
    arrive(fleet, faults=[fault("cam-1", cause, severity, "what happened")])
    [alert] = unresolved(fleet)
    assert (alert.kind, alert.severity) == (kind, severity)
    assert "what happened" in alert.detail
    for _ in range(12):
        arrive(fleet, faults=[fault("cam-1", cause, severity)], seconds=300)
    assert len(unresolved(fleet)) == 1
    arrive(fleet, window(fleet), seconds=health.CALM_S + 120)
    assert closed(fleet, kind)


@pytest.mark.parametrize(
    ("kind", "cause", "bad", "well"),
    [
        ("memory", "short-memory", {"memory_free_mb": 12}, {"memory_free_mb": 90}),
        ("temperature", "too-hot", {"temp_c": 91}, {"temp_c": 60}),
        ("disk", "disk-full", {"disk_free_mb": 2}, {"disk_free_mb": 500}),
    ],
)
@pytest.mark.parametrize("measured_first", [True, False])
def test_one_trouble_that_is_reported_and_measured_is_one_alert_until_it_is_measured_to_be_over(
    fleet, kind, cause, bad, well, measured_first
):
    if measured_first:
        arrive(fleet, window(fleet, health=bad))
    arrive(fleet, window(fleet, health=bad), faults=[fault("cam-1", cause)])
    for _ in range(int(health.CALM_S / 60) + 5):
        arrive(fleet, window(fleet, health=bad))
        assert [a.kind for a in unresolved(fleet)] in ([kind], []), "it is waited for"
    [alert] = unresolved(fleet)
    assert [one.what for one in listing.history(fleet.ctx, alert.id)] == ["opened"]
    arrive(fleet, window(fleet, health=well))
    assert closed(fleet, kind)


def test_what_only_informs_is_no_alert(fleet):
    arrive(fleet, faults=[fault("cam-1", "folder-imported", "info")])
    assert unresolved(fleet) == []


def test_an_outbox_that_overflows_is_an_alert(fleet):
    arrive(fleet, window(fleet, merged=4))
    assert [a.title for a in unresolved(fleet)] == ["The outbox of cam-1 grows or overflows"]


def test_old_windows_after_an_outage_say_nothing_of_the_machine_now(fleet):
    old = fleet.clock() - 7200
    for _ in range(4):
        arrive(fleet, window(fleet, start_at=old, health={"disk_free_mb": 1}))
    assert unresolved(fleet) == []


def test_a_rule_that_fails_costs_no_other_rule(fleet, monkeypatch):
    monkeypatch.setattr(health, "of_window", lambda *_: 1 / 0)
    arrive(fleet, window(fleet), faults=[fault("cam-1", "feed-down")])
    assert [a.kind for a in unresolved(fleet)] == ["source"]


HOSTILE = [
    {"disk_free_mb": "x"},
    {"temp_c": float("nan")},
    {"disk_free_mb": None},
    {"temp_c": 1e300},
]


@pytest.mark.parametrize("values", HOSTILE)
def test_whatever_a_device_claims_its_windows_are_taken(fleet, values):
    arrive(fleet, window(fleet, health=values, errors=2**60, rows=2**53, labelled=1, correct=99))


@pytest.mark.parametrize(("waits", "raised"), [((90, 120, 150), 1), ((900, 500, 90), 0)])
def test_an_outbox_that_grows_raises_an_alert_and_one_that_empties_after_an_outage_none(
    fleet, waits, raised
):
    for waiting in waits:
        for _ in range(3):
            arrive(fleet, window(fleet, health={"outbox": waiting}), seconds=630)
    found = unresolved(fleet, "outbox")
    assert len(found) == raised
    if raised:
        assert "messages wait" in found[0].detail
        assert "grows" in found[0].title
        arrive(fleet, window(fleet, health={"outbox": 3}))
        assert closed(fleet, "outbox")


def test_what_waits_of_an_hour_ago_is_no_backlog_of_now(fleet):
    for waiting in (100, 300, 500):
        old = window(fleet, start_at=fleet.clock() - 3_600, health={"outbox": waiting})
        arrive(fleet, old, seconds=2_000)
    assert unresolved(fleet, "outbox") == []


def test_a_clock_fault_of_a_device_whose_clock_is_known_to_be_wrong_is_not_a_second_alert(fleet):
    clock = DeviceClock("cam-1", 3 * 86_400.0, 1.0)
    arrive(fleet, window(fleet), faults=[fault("cam-1", "clock")], clock_reports=[clock])
    arrive(fleet, window(fleet), faults=[fault("cam-1", "clock")])
    [alert] = unresolved(fleet)
    assert (alert.kind, alert.members) == ("clock", 1)
    arrive(fleet, window(fleet), clock_reports=[clock._replace(skew_s=0.0)])
    assert closed(fleet, "clock")
