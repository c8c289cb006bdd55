"""Finding a device, and what is known of it."""

from typing import Any

import pytest

from api.controller_app import ControllerApp, is_problem
from shoal.controller.store.tables import device, device_event
from shoal.sketch import Latency
from stored_windows import new_window

DAY = 86_400


def put(controller: ControllerApp, name: str, **more: Any) -> None:
    row = {
        "name": name, "site": "north", "line": "a", "labels": {}, "ring": "stable",
        "profile": "rpi4", "state": "enrolled", "online": True, "seen_at": controller.clock.now,
        "releases": {}, "variants": {}, "facts": {}, **more,
    }  # fmt: skip
    with controller.ctx.store.write() as db:
        db.execute(device.insert().values(row))


def names(controller: ControllerApp, query: str) -> list[str]:
    return [item["name"] for item in controller.get(f"/api/v1/devices?{query}").json["items"]]


@pytest.fixture
def fleet(controller: ControllerApp) -> ControllerApp:
    put(controller, "press-1", labels={"camera": "Basler"}, releases={"lot": "lot@2"})
    put(controller, "press-2", site="south", ring="canary", releases={"lot": "lot@12"})
    put(
        controller,
        "press-3",
        profile="rpi5",
        error="unhealthy: too hot",
        releases={"slot": "slot@2"},
    )
    put(controller, "press-4", online=False)
    put(controller, "press-5", seen_at=controller.clock.now - 301)
    put(controller, "press-6", state="decommissioned", online=False)
    return controller


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("", "123456"),
        ("q=PRESS-2", "2"),
        ("q=basler", "1"),
        ("q=south", "2"),
        ("site=north&profile=rpi5", "3"),
        ("ring=canary", "2"),
        ("release=lot@2", "1"),
        ("release=lot", "12"),
        ("problem=true", "3"),
        ("state=online", "123"),
        ("state=offline", "45"),
        ("state=decommissioned", "6"),
        ("q=_", ""),
    ],
)
def test_a_filter_finds_exactly_what_it_names(fleet: ControllerApp, query: str, found: str) -> None:
    assert names(fleet, query) == [f"press-{digit}" for digit in found]


def test_devices_whose_certificate_ends_soon_or_has_ended_are_found(
    controller: ControllerApp,
) -> None:
    for number, days in enumerate((-30, 6, 20, 40)):
        put(controller, f"press-{number}", certificate_expires_at=controller.clock.now + days * DAY)
    put(controller, "gone", state="decommissioned", certificate_expires_at=controller.clock.now)
    put(controller, "unknown")
    assert names(controller, f"expiring_s={7 * DAY}") == ["press-0", "press-1"]
    assert names(controller, f"expiring_s={30 * DAY}") == ["press-0", "press-1", "press-2"]
    assert len(names(controller, "")) == 6
    assert is_problem(controller.get("/api/v1/devices?expiring_s=-1"), 422)


def test_pages_go_on_where_the_last_one_ended(controller: ControllerApp) -> None:
    for number in range(7):
        put(controller, f"press-{number}")
    seen, cursor = [], ""
    for _ in range(3):
        answer = controller.get(f"/api/v1/devices?limit=3&cursor={cursor}").json
        seen += [item["name"] for item in answer["items"]]
        cursor = answer["page"]["next"]
        assert answer["page"]["total"] == 7
    assert seen == [f"press-{number}" for number in range(7)]
    assert cursor == ""


@pytest.mark.parametrize("query", ["cursor=zzz", "cursor=WzFd", "limit=0", "limit=501", "state=x"])
def test_a_page_that_cannot_be_is_refused(controller: ControllerApp, query: str) -> None:
    assert is_problem(controller.get(f"/api/v1/devices?{query}"), 422, "bad-input")


def test_a_device_silent_for_long_is_offline_whatever_its_last_status(
    fleet: ControllerApp,
) -> None:
    assert not fleet.get("/api/v1/devices/press-5").json["online"]


def test_an_unchanged_answer_is_not_sent_twice(fleet: ControllerApp) -> None:
    first = fleet.get("/api/v1/devices")
    again = fleet.get("/api/v1/devices", headers={"If-None-Match": first.headers["ETag"]})
    assert again.status_code == 304
    assert again.data == b""
    put(fleet, "press-7")
    changed = fleet.get("/api/v1/devices", headers={"If-None-Match": first.headers["ETag"]})
    assert changed.status_code == 200


def test_the_timeline_is_newest_first(fleet: ControllerApp) -> None:
    rows = [
        {"device": "press-1", "boot": "b", "seq": n, "at": 100.0 + n, "kind": kind, "facts": {}}
        for n, kind in enumerate(("update", "fault", "update"), 1)
    ]
    with fleet.ctx.store.write() as db:
        db.execute(device_event.insert(), rows)
    told = fleet.get("/api/v1/devices/press-1/timeline?limit=2").json["items"]
    assert [(e["at"], e["kind"]) for e in told] == [(103.0, "update"), (102.0, "fault")]
    assert is_problem(fleet.get("/api/v1/devices/nobody/timeline"), 404, "not-found")


def test_a_window_has_latency_quantiles_and_no_sketch(fleet: ControllerApp) -> None:
    latency = Latency()
    latency.add(100e-6, 98)
    latency.add(10e-3, 2)
    rows = [
        new_window("press-1", 1, start_at=10.0, rows=100, latency=latency.trimmed()),
        new_window("press-1", 2, start_at=20.0, rows=0, latency=[]),
    ]
    with fleet.ctx.store.write() as db:
        fleet.ctx.store.windows.add(db, rows)
    empty, busy = fleet.get("/api/v1/devices/press-1/windows").json["items"]
    assert (empty["p50_us"], empty["p99_us"]) == (0, 0)
    assert busy["p50_us"] == pytest.approx(100, rel=0.2)
    assert busy["p99_us"] == pytest.approx(10_000, rel=0.2)
    assert len(fleet.get("/api/v1/devices/press-1/windows?since=15").json["items"]) == 1
