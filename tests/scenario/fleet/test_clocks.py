"""Devices with wrong clocks: detected and reported, without harm to other devices' data."""

import msgspec
import pytest
from sqlalchemy import select

from fakes import memory_folder
from fleet import MODEL, Fleet
from shoal import wire
from shoal.agent.status import text
from shoal.controller.alerts import alerts
from shoal.controller.alerts.records import Draft
from shoal.controller.conditions import clocks, drafts
from shoal.controller.fleet import devices
from shoal.controller.ingest.ingest import ingest
from shoal.controller.monitoring import window_validation
from shoal.controller.store import drift_tables, rollout_tables, tables

pytestmark = pytest.mark.scenario


@pytest.fixture
def fleet():
    with memory_folder() as folder:
        yield Fleet(folder, window_s=10.0)


def standing_alerts(fleet):
    return [one for one in alerts.list_alerts(fleet.ctx, "open") if "Clocks" in one.title]


def windows_of(fleet, name):
    return fleet.windows(name)


@pytest.mark.parametrize(("off_s", "how"), [(93.0, "93 s ahead of"), (-7200.0, "7200 s behind")])
def test_a_wrong_clock_is_known_on_both_sides_until_it_is_right(fleet, off_s, how):
    wrong, right = fleet.station("cam-1", ring="canary"), fleet.station("cam-2", ring="canary")
    one = fleet.roll_out(fleet.release())
    fleet.run(60, lambda: fleet.rollout(one.id).state == "FINISHED")
    wrong.clock_off_s = off_s
    fleet.run(40)
    known = devices.get_device(fleet.ctx, "cam-1")
    assert known.clock_skew_s == pytest.approx(off_s, abs=1.5)
    assert abs(known.clock_skew_s - off_s) <= known.clock_error_s + 0.01
    assert abs(devices.get_device(fleet.ctx, "cam-2").clock_skew_s) < 1.5
    problems = dict(wrong.agent.status().problems)
    assert "time synchronisation" in problems[f"the clock is {how} the controller's"]
    assert f"clock {how}" in text(wrong.agent.status())
    assert right.agent.status().clock is not None
    assert not any("clock" in what for what, _ in right.agent.status().problems)
    (alert,) = standing_alerts(fleet)
    assert "1 of 2 devices" in alert.detail
    assert "cam-1 by" in alert.detail
    assert "cam-2" not in alert.detail
    assert "timedatectl" in alert.next_step

    placed = windows_of(fleet, "cam-1")
    assert placed
    late = [row for row in placed if not row.health["clock_synced"]]
    assert late, "windows sent after the skew was measured are marked"
    for row in late:
        assert row.start_at == pytest.approx(row.received_at - row.window_s, abs=4.0)
    assert all(row.health["clock_synced"] for row in windows_of(fleet, "cam-2"))

    wrong.clock_off_s = 0.0
    fleet.run(40)
    assert standing_alerts(fleet) == []
    assert abs(devices.get_device(fleet.ctx, "cam-1").clock_skew_s) < 1.5
    assert windows_of(fleet, "cam-1")[-1].health["clock_synced"]


def test_a_right_clock_asks_for_the_time_seldom(fleet):
    fleet.station("cam-1")
    fleet.run(1)
    fleet.broker.log.clear()
    fleet.run(3_000, step=10.0)
    asked = [
        message
        for topic, payload in fleet.broker.log
        if topic.endswith("/status")
        and (message := wire.decode_up("status", payload)).asks_time is True
    ]
    answers = [topic for topic, _ in fleet.broker.log if topic.endswith("/down/time")]
    assert len(asked) <= 1
    assert len(answers) == len(asked)


def test_an_older_agent_that_does_not_ask_gets_no_time(fleet):
    fleet.station("cam-1", start=False)
    status = wire.Status(
        device="cam-1", boot="b1", seq=0, sent_s=fleet.clock(), online=True, since_s=1.0,
        session="s1",
    )  # fmt: skip
    assert ingest(fleet.ctx, [("shoal/v1/cam-1/up/status", wire.encode(status))]) == {}
    asking = msgspec.structs.replace(status, asks_time=True)
    answers = ingest(fleet.ctx, [("shoal/v1/cam-1/up/status", wire.encode(asking))])
    assert answers == {"cam-1": [wire.Time(asked_s=status.sent_s, now_s=fleet.clock())]}


def window(fleet, start_s, **health):
    with fleet.ctx.store.read() as db:
        reference = window_validation.references_of(db, f"{MODEL}@1").id
    return wire.WindowReport(
        device="cam-1", boot="b1", seq=1, sent_s=0.0, model=MODEL, release=f"{MODEL}@1",
        reference=reference, window_start_s=start_s, window_s=10.0, rows=0,
        health=wire.Health(**health),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("claims_s", "health", "begins_s", "sure"),
    [
        (-10.0, {}, -10.0, True),
        (20.0, {}, 20.0, True),  # within what a clock may be off
        (3_600.0, {}, -10.0, False),  # from the future, of an agent that knows no better
        (-1_700_000_000.0, {}, -10.0, False),  # 1973
        (83.0, {"clock_synced": False, "clock": (93.0, 0.5)}, -10.0, False),
        (-7_210.0, {"clock_synced": False, "clock": (-7_200.0, 0.5)}, -10.0, False),
        (-10.0, {"clock": (0.2, 0.5)}, -10.0, True),
        (-3_600.0, {}, -3_600.0, True),  # was offline for an hour
    ],
)
def test_a_window_of_a_wrong_clock_is_stored_at_its_most_plausible_time(
    fleet, claims_s, health, begins_s, sure
):
    fleet.station("cam-1", start=False)
    fleet.release()
    if "clock" in health:
        skew_s, error_s = health["clock"]
        health = health | {"clock": wire.Skew(skew_s=skew_s, error_s=error_s)}
    report = window(fleet, fleet.clock() + claims_s, **health)
    answers = ingest(fleet.ctx, [("shoal/v1/cam-1/up/window", wire.encode(report))])
    assert [one.seqs for one in answers["cam-1"]] == [[1]]
    (kept,) = windows_of(fleet, "cam-1")
    assert kept.start_at == pytest.approx(fleet.clock() + begins_s, abs=0.01)
    assert kept.health["clock_synced"] is sure


def test_when_every_clock_of_a_site_is_off_the_controllers_own_is_suspected(fleet):
    for name in ("cam-1", "cam-2"):
        fleet.station(name, start=False)
    with fleet.ctx.store.write() as db:
        db.execute(tables.device.update().values(clock_skew_s=400.0, clock_error_s=0.1))
    clocks.look_again(fleet.ctx, drafts.draft)
    (alert,) = standing_alerts(fleet)
    assert "this controller's own clock" in alert.next_step
    clocks.look_again(fleet.ctx, drafts.draft)
    (again,) = standing_alerts(fleet)
    assert again.findings == alert.findings, "an unchanged alert is not raised again"


def test_an_alert_that_an_earlier_version_raised_about_clocks_ends_when_they_are_right(fleet):
    fleet.station("cam-1", start=False)
    old = Draft("clock/plant", "device", "warning", "Clocks at plant are wrong", "", "")
    with fleet.ctx.store.write() as db:
        alerts.raise_alert(db, fleet.ctx, old)
    clocks.look_again(fleet.ctx, drafts.draft)
    assert standing_alerts(fleet) == []


def test_one_clock_ahead_closes_no_bucket_of_its_site_early(fleet):
    """A wrong clock cannot close its site's bucket while other devices may still send windows."""
    late = fleet.station("cam-1", ring="canary")
    for name in ("cam-2", "cam-3"):
        fleet.station(name, ring="canary")
    one = fleet.roll_out(fleet.release())
    fleet.run(60, lambda: fleet.rollout(one.id).state == "FINISHED")
    late.clock_off_s = 3_600.0
    fleet.run(250)
    with fleet.ctx.store.read() as db:
        points = db.execute(
            select(drift_tables.drift_point.c.at).where(drift_tables.drift_point.c.scope == "site")
        ).all()
    assert points, "the site has a baseline of its own"
    assert max(point.at for point in points) <= fleet.clock()


@pytest.mark.parametrize("off_s", [7_200.0, -7_200.0])
def test_setting_the_clock_while_a_release_is_observed_neither_ends_nor_prolongs_the_observation(
    fleet, off_s
):
    fleet.observe_s = 30.0
    station = fleet.station("cam-1", ring="canary")
    one = fleet.roll_out(fleet.release())
    fleet.run(60, lambda: fleet.states(one.id)["cam-1"] == "OBSERVING")
    station.clock_off_s = off_s
    fleet.run(20)
    assert fleet.states(one.id)["cam-1"] == "OBSERVING"
    fleet.run(20, lambda: fleet.states(one.id)["cam-1"] == "SUCCEEDED")


DAY = 86_400.0


def rows_of(fleet, ident):
    rows = fleet.rows_of(rollout_tables.rollout_device)
    return [row for row in rows if row.rollout == ident]


def test_a_clock_a_little_ahead_installs_in_time_though_its_deadline_seems_to_have_passed(fleet):
    station = fleet.station("cam-1", ring="canary")
    station.clock_off_s = 7_200.0
    one = fleet.roll_out(fleet.release(), deadline_s=120.0)
    fleet.run(60, lambda: fleet.rollout(one.id).state == "FINISHED")
    assert fleet.states(one.id) == {"cam-1": "SUCCEEDED"}


def test_a_device_whose_clock_is_days_ahead_waits_until_it_is_set(fleet):
    station = fleet.station("cam-1", ring="canary")
    station.clock_off_s = 3 * DAY
    one = fleet.roll_out(fleet.release(), deadline_s=3_600.0)
    fleet.run(120)
    assert fleet.states(one.id) == {"cam-1": "QUEUED"}
    assert "ahead of the controller's; set it" in devices.get_device(fleet.ctx, "cam-1").error
    station.clock_off_s = 0.0
    fleet.run(400, lambda: fleet.rollout(one.id).state == "FINISHED", step=5.0)
    assert fleet.states(one.id) == {"cam-1": "SUCCEEDED"}
    assert fleet.serving() == {"cam-1": f"{MODEL}@1"}


@pytest.mark.parametrize("agent_tells", [True, False])
def test_a_clock_that_stays_wrong_is_named_and_does_not_count_against_the_release(
    fleet, agent_tells
):
    wrong, right = fleet.station("cam-1", ring="canary"), fleet.station("cam-2", ring="canary")
    wrong.clock_off_s = 3 * DAY
    one = fleet.roll_out(fleet.release(), deadline_s=300.0)
    fleet.run(100)
    if not agent_tells:
        wrong.crash()
    fleet.run(400, lambda: fleet.rollout(one.id).state == "FINISHED", step=5.0)
    assert fleet.states(one.id) == {"cam-1": "SKIPPED", "cam-2": "SUCCEEDED"}
    (stage, _) = fleet.rollout(one.id).stages
    assert (stage.failed, stage.skipped) == (0, 1)
    (skipped,) = [row for row in rows_of(fleet, one.id) if row.device == "cam-1"]
    assert skipped.cause == "clock"
    assert "clock is" in skipped.detail
    assert right.agent.serving[MODEL].engine is not None


def test_a_deadline_that_an_older_agent_finds_passed_at_once_is_a_failure_of_its_clock(fleet):
    fleet.station("cam-1", ring="canary", start=False)
    one = fleet.roll_out(fleet.release(), deadline_s=300.0)
    fleet.run(5)
    event = wire.UpdateEvent(
        device="cam-1", boot="b1", seq=1, sent_s=fleet.clock(), model=MODEL, release=f"{MODEL}@1",
        rollout=one.id, attempt=1, state="TIMED_OUT", cause="deadline", detail="it was QUEUED",
    )  # fmt: skip
    ingest(fleet.ctx, [("shoal/v1/cam-1/up/event", wire.encode(event))])
    (row,) = rows_of(fleet, one.id)
    assert (row.state, row.cause) == ("SKIPPED", "clock")
