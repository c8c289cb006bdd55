"""Devices that fall silent: one alert for a site, within the rhythm of each, closed by itself."""

import time

import pytest
from sqlalchemy import delete, event, insert, select, update

from fakes import memory_folder
from fleet import Fleet
from shoal import wire
from shoal.controller.alerts import actions, listing, members, silences, upkeep
from shoal.controller.conditions import certificates, drafts, offline
from shoal.controller.conditions.rhythm import DAY_S, Rhythm
from shoal.controller.fleet import enrolment
from shoal.controller.store import alert_tables, tables
from shoal.errors import ConflictError, InputError

pytestmark = pytest.mark.scenario


@pytest.fixture
def fleet():
    with memory_folder() as folder:
        yield Fleet(folder)


def settle(fleet):
    """Everything that is due now; the controller has been listening all the time."""
    with fleet.ctx.store.write() as db:
        db.execute(delete(tables.setting).where(tables.setting.c.name == "alerts.uptime"))
        value = {"at": fleet.clock(), "since": 1.0}
        db.execute(insert(tables.setting).values(name="alerts.uptime", value=value))
    while offline.step(fleet.ctx) or upkeep.upkeep(fleet.ctx):
        pass


def known(fleet, names, site="north"):
    """Devices that have been there for a month, steadily, up to now."""
    now = fleet.clock()
    rhythm = Rhythm.new(now - 30 * DAY_S)
    rhythm.spoke(now)
    rows = [
        {
            "name": n, "site": site, "labels": {}, "ring": "stable", "profile": "generic",
            "state": "enrolled", "enrolled_at": now - 30 * DAY_S, "releases": {}, "variants": {},
            "facts": {}, "seen_at": now,
        }
        for n in names
    ]  # fmt: skip
    with fleet.ctx.store.write() as db:
        db.execute(insert(tables.device), rows)
        states = [{"device": n, "state": rhythm.encode(), "due_at": now + 60} for n in names]
        db.execute(insert(alert_tables.device_rhythm), states)


def speak(fleet, *names):
    for name in names:
        status = wire.Status(
            device=name, boot="", seq=0, sent_s=fleet.clock(), online=True, since_s=fleet.clock(),
            session=f"s{fleet.clock():.0f}",
        )  # fmt: skip
        fleet.publish_as(name, status)
    fleet.settle()


def wait(fleet, seconds, talking=(), step=600.0):
    end = fleet.clock.now + seconds
    while fleet.clock.now < end:
        fleet.clock.now += step
        for name in talking:
            with fleet.ctx.store.write() as db:
                row = update(tables.device).where(tables.device.c.name == name)
                db.execute(row.values(seen_at=fleet.clock.now))
        settle(fleet)


def opened(fleet):
    return listing.page(fleet.ctx, state="open", kind="offline")[0]


def test_a_silent_device_is_one_alert_that_its_next_message_closes(fleet):
    known(fleet, ["cam-1", "cam-2"])
    wait(fleet, DAY_S / 2, talking=["cam-2"])
    [alert] = opened(fleet)
    assert (alert.title, alert.site, alert.members) == ("cam-1 is offline", "north", 1)
    assert "cam-1: silent for" in alert.detail
    assert alert.next_step.endswith("shoal device show cam-1")
    speak(fleet, "cam-1")
    assert opened(fleet) == []
    assert listing.get_alert(fleet.ctx, alert.id).state == "closed"
    assert [e.what for e in listing.history(fleet.ctx, alert.id)] == ["ended", "opened"]


def test_a_site_whose_link_is_down_is_one_alert_and_says_so(fleet):
    names = [f"cam-{i:03}" for i in range(300)]
    known(fleet, names)
    known(fleet, ["south-1"], "south")
    wait(fleet, DAY_S, talking=["south-1"])
    [alert] = opened(fleet)
    assert (alert.title, alert.severity) == ("Site north is offline", "critical")
    assert alert.members == 300
    assert alert.next_step.endswith("shoal device list --site north --state offline")
    first, page = listing.members(fleet.ctx, alert.id, limit=200)
    rest, _ = listing.members(fleet.ctx, alert.id, cursor=page.next, limit=200)
    assert sorted(m.device for m in [*first, *rest]) == names
    speak(fleet, *names)
    assert opened(fleet) == []


def test_the_controllers_own_outage_is_nobodys_silence(fleet):
    known(fleet, ["cam-1"])
    fleet.engine.work()
    fleet.clock.now += DAY_S  # the engine did not run for a day
    fleet.engine.work()
    assert offline.step(fleet.ctx) == 0
    assert opened(fleet) == []
    speak(fleet, "cam-1")
    with fleet.ctx.store.read() as db:
        state = db.scalar(select(alert_tables.device_rhythm.c.state))
    assert Rhythm.decode(state, 0.0).gaps.sum() == 0, "and nothing is learnt from it"


def test_an_alert_that_comes_and_goes_is_one_that_waits_longer_each_time(fleet):
    known(fleet, ["cam-1"])
    wait(fleet, DAY_S / 2)
    [first] = opened(fleet)
    for _ in range(3):
        speak(fleet, "cam-1")
        with fleet.ctx.store.write() as db:  # overdue again at once
            db.execute(update(alert_tables.device_rhythm).values(due_at=fleet.clock.now))
            db.execute(update(tables.device).values(seen_at=fleet.clock.now - 2 * DAY_S))
        settle(fleet)
    [again] = opened(fleet)
    assert again.id == first.id
    assert again.reopened == 1, "after the first return it waits before it closes"
    speak(fleet, "cam-1")
    assert opened(fleet)[0].members == 0
    wait(fleet, 600, talking=["cam-1"], step=60)
    assert opened(fleet) == []


def test_people_take_assign_snooze_and_resolve_an_alert(fleet):
    known(fleet, ["cam-1"])
    with fleet.ctx.store.write() as db:
        db.execute(
            insert(tables.user).values(name="bo", password_hash="x", role="operator", created_at=1)
        )
    wait(fleet, DAY_S / 2)
    [alert] = opened(fleet)
    act = {"actor": "ana", "id": alert.id}
    assert actions.acknowledge(fleet.ctx, **act).acknowledged_by == "ana"
    assert actions.assign(fleet.ctx, **act, to="bo").assigned_to == "bo"
    assert listing.page(fleet.ctx, assigned="bo")[1].total == 1
    assert actions.snooze(fleet.ctx, **act, for_s=3600).state == "snoozed"
    assert listing.counts(fleet.ctx).state == {"snoozed": 1}
    wait(fleet, 2 * 3600)
    assert opened(fleet)[0].id == alert.id, "it is open again when the snooze ends"
    closed = actions.resolve(fleet.ctx, **act, note="stolen")
    assert "Resolved by ana: stolen." in closed.detail
    wait(fleet, DAY_S)
    assert opened(fleet) == [], "it is not raised again until it has spoken"
    for refused in (actions.acknowledge, actions.wake):
        with pytest.raises(ConflictError, match=f"alert {alert.id} is closed"):
            refused(fleet.ctx, **act)


def test_nobody_who_takes_a_critical_alert_for_an_hour_escalates_it(fleet):
    known(fleet, ["cam-1", "cam-2", "cam-3"])
    wait(fleet, DAY_S)
    [alert] = opened(fleet)
    assert alert.severity == "critical"
    assert alert.escalated_at > 0
    assert "escalated" in [e.what for e in listing.history(fleet.ctx, alert.id)]


def test_maintenance_silences_alerts_of_a_site_and_what_one_device_shows(fleet):
    known(fleet, ["cam-1"])
    known(fleet, ["cam-2"], "south")
    silences.create(fleet.ctx, actor="ana", lasts_s=DAY_S, site="north")
    one = silences.create(fleet.ctx, actor="ana", lasts_s=DAY_S, device="cam-2")
    wait(fleet, DAY_S / 2)
    assert opened(fleet) == []
    [quiet] = listing.page(fleet.ctx, state="snoozed")[0]
    assert quiet.title == "cam-1 is offline"
    assert len(silences.list_silences(fleet.ctx)) == 2
    silences.end(fleet.ctx, actor="ana", id=quiet.silence)
    settle(fleet)
    assert [a.title for a in opened(fleet)] == ["cam-1 is offline"]
    assert one.ends_at > fleet.clock()
    fleet.clock.now += DAY_S
    members.step(fleet.ctx, drafts.draft)
    assert len(opened(fleet)) == 2, "what still lasts after the silence is raised"
    with pytest.raises(InputError, match="everything"):
        silences.create(fleet.ctx, actor="ana", lasts_s=60)


def test_a_decommissioned_device_is_not_missed(fleet):
    known(fleet, ["cam-1"])
    wait(fleet, DAY_S / 2)
    assert len(opened(fleet)) == 1
    enrolment.decommission(fleet.ctx, actor="ana", device="cam-1")
    assert opened(fleet) == []
    assert fleet.rows_of(alert_tables.device_rhythm) == []


def test_a_certificate_that_ends_soon_is_an_alert_until_it_is_renewed(fleet):
    known(fleet, ["cam-1", "cam-2", "cam-3"])
    ends = {"cam-1": 10, "cam-2": -1, "cam-3": 60}
    names = tables.device.c

    def renew(name, days):
        at = fleet.clock() + days * DAY_S
        with fleet.ctx.store.write() as db:
            row = update(tables.device).where(names.name == name)
            db.execute(row.values(certificate_expires_at=at))
        certificates.step(fleet.ctx)

    for name, days in ends.items():
        renew(name, days)
    [alert] = listing.page(fleet.ctx, kind="certificate")[0]
    assert alert.title == "Certificates of 2 devices at north end soon"
    assert alert.severity == "critical"
    assert "cam-2: ended 24 h ago" in alert.detail
    renew("cam-2", 90)
    alert = listing.get_alert(fleet.ctx, alert.id)
    assert (alert.severity, alert.members) == ("warning", 1)
    renew("cam-1", 90)
    assert listing.get_alert(fleet.ctx, alert.id).state == "closed"


def test_one_bad_rhythm_or_draft_does_not_stop_the_others(fleet, monkeypatch):
    known(fleet, ["cam-1"])
    known(fleet, ["cam-2"], "south")
    real = drafts.draft

    def breaks(db, ctx, group):
        if group.site == "north":
            raise ZeroDivisionError
        return real(db, ctx, group)

    monkeypatch.setattr(offline, "draft", breaks)
    wait(fleet, DAY_S)
    assert [a.title for a in opened(fleet)] == ["cam-2 is offline"]


def test_a_tick_without_anything_due_reads_an_index_and_writes_nothing(fleet):
    known(fleet, [f"cam-{i}" for i in range(3000)])
    statements = []
    engine = fleet.ctx.store._reader
    listen = lambda *args: statements.append(args[2])  # noqa: E731
    event.listen(engine, "before_cursor_execute", listen)
    assert offline.step(fleet.ctx) == upkeep.upkeep(fleet.ctx) == 0
    event.remove(engine, "before_cursor_execute", listen)
    statements = [text for text in statements if text.startswith("SELECT")]
    assert len(statements) == 2
    with fleet.ctx.store.read() as db:
        for text in statements:
            given = (0.0, 1.0, 9, 9)[: text.count("?")]
            plan = db.exec_driver_sql("EXPLAIN QUERY PLAN " + text, given)
            assert all("SCAN" not in row[3] for row in plan), text


def test_a_batch_of_overdue_devices_holds_the_write_lock_briefly(fleet):
    known(fleet, [f"cam-{i}" for i in range(offline.BATCH)])
    settle(fleet)
    with fleet.ctx.store.write() as db:  # all of them at once
        db.execute(update(alert_tables.device_rhythm).values(due_at=fleet.clock.now))
        db.execute(update(tables.device).values(seen_at=fleet.clock.now - 3 * DAY_S))
    began = time.process_time()
    assert offline.step(fleet.ctx) == offline.BATCH
    assert time.process_time() - began < 0.2, "50 ms on a quiet machine"
    assert len(opened(fleet)) == 1
