"""Alerts by API and console: pages, filters, counts, and what people do with them."""

import re
import time

import pytest
from sqlalchemy import insert

from api.controller_app import ORIGIN, ControllerApp, is_problem
from shoal.controller.store.alert_tables import alert_member
from shoal.controller.store.tables import alert

MANY = 3_000


def stored(controller: ControllerApp, number: int, **change: object) -> None:
    plain = {
        "kind": "disk", "severity": "warning", "state": "open", "site": "north", "model": "",
        "release": "", "title": "Disk", "detail": "", "next_step": "shoal device list",
        "features": [], "updated_at": 1.0,
    }  # fmt: skip
    rows = [plain | {"key": f"k{i}", "opened_at": float(i + 1)} | change for i in range(number)]
    with controller.ctx.store.write() as db:
        db.execute(insert(alert), rows)


def page(controller: ControllerApp, path: str) -> str:
    controller.sign_in()
    answer = controller.client.get(path, base_url=ORIGIN)
    assert answer.status_code == 200, answer.get_data(as_text=True)
    return str(answer.get_data(as_text=True))


@pytest.fixture
def many(controller: ControllerApp) -> ControllerApp:
    stored(controller, MANY)
    stored(controller, 2, kind="offline", severity="critical", title="Site south is offline")
    return controller


def test_three_thousand_open_alerts_are_pages_and_counts(many: ControllerApp) -> None:
    seen, cursor = 0, ""
    while True:
        page = many.get(f"/api/v1/alerts?state=open&limit=500&cursor={cursor}").json
        seen += len(page["items"])
        cursor = page["page"]["next"]
        if not cursor:
            break
    assert seen == page["page"]["total"] == MANY + 2
    counts = many.get("/api/v1/alerts/counts").json
    assert counts["severity"] == {"critical": 2, "warning": MANY}
    found = many.get("/api/v1/alerts?severity=critical&q=south").json
    assert {one["kind"] for one in found["items"]} == {"offline"}
    assert found["page"]["total"] == 2
    began = time.process_time()
    assert many.get("/api/v1/alerts/counts").status_code == 200
    assert time.process_time() - began < 0.25
    assert many.get("/api/v1/alerts?state=lost").status_code in (400, 422)


def test_an_alert_is_taken_snoozed_and_resolved_with_its_history(
    controller: ControllerApp,
) -> None:
    stored(controller, 1)
    [one] = controller.get("/api/v1/alerts").json["items"]
    at = f"/api/v1/alerts/{one['id']}"
    with controller.ctx.store.write() as db:
        row = {"device": "cam-1", "kind": "disk", "part": "", "alert_key": "k0", "site": "north"}
        db.execute(insert(alert_member).values(**row, state="standing", severity="warning"))
    assert controller.get(f"{at}/members").json["items"][0]["device"] == "cam-1"
    for verb, body, state in (
        ("acknowledge", {}, "acknowledged"), ("snooze", {"for_s": 60}, "snoozed"),
        ("wake", {}, "open"), ("resolve", {"note": "cleaned"}, "closed"),
    ):  # fmt: skip
        assert controller.post(f"{at}/{verb}", "operator", json=body).json["state"] == state
    history = controller.get(f"{at}/history").json["items"]
    assert [e["what"] for e in history] == ["resolved", "woken", "snoozed", "acknowledged"]
    assert controller.get(f"{at}/members").json["items"] == []
    assert is_problem(controller.post(f"{at}/wake", "operator", json={}), 409, "conflict")
    assert is_problem(controller.get("/api/v1/alerts/999"), 404, "not-found")


def test_a_silence_begins_and_ends(controller: ControllerApp) -> None:
    stored(controller, 1)
    made = controller.post("/api/v1/silences", "operator", json={"lasts_s": 60, "site": "north"})
    assert made.status_code == 201
    assert controller.get("/api/v1/alerts").json["items"][0]["state"] == "snoozed"
    assert len(controller.get("/api/v1/silences").json["items"]) == 1
    path = f"/api/v1/silences/{made.json['id']}"
    assert controller.request("DELETE", path, "operator").status_code == 204
    assert is_problem(controller.request("DELETE", path, "operator"), 404, "not-found")


def test_the_console_shows_a_page_of_alerts_with_filters_and_one_with_its_devices(
    many: ControllerApp,
) -> None:
    text = page(many, "/alerts?state=open&severity=critical")
    assert text.count('class="alert ') == 2
    assert "Site south is offline" in text
    assert f"Warning {MANY}" in text
    text = page(many, "/alerts?state=open")
    assert text.count('class="alert ') == 50
    [more] = re.findall(r'href="(/alerts[^"]*cursor=[^"&]+[^"]*)" rel="next">Next page', text)
    assert "Disk" in page(many, more.replace("&amp;", "&"))
    ident = many.get("/api/v1/alerts?kind=offline").json["items"][0]["id"]
    assert "History" in page(many, f"/alerts/{ident}")


def test_channels_are_kept_tested_and_removed_by_api_and_console(controller: ControllerApp) -> None:
    body = {"name": "hook", "kind": "webhook", "url": "https://hooks.example.org/secret-path"}
    made = controller.post("/api/v1/channels", "admin", json=body)
    assert made.json["secret"].startswith("whsec_")
    [shown] = controller.get("/api/v1/channels", "viewer").json["items"]
    assert (shown["target"], shown["secret"]) == ("https://hooks.example.org", "")
    assert is_problem(controller.post("/api/v1/channels", "admin", json=body), 409, "conflict")
    queued = controller.post("/api/v1/channels/hook/test", "operator", json={})
    assert (queued.status_code, queued.json["state"]) == (202, "pending")
    text = page(controller, "/notifications")
    assert "https://hooks.example.org" in text
    assert "Test of Shoal" in text
    assert "secret-path" not in text
    assert controller.request("DELETE", "/api/v1/channels/hook").status_code == 204
    assert controller.get("/api/v1/deliveries").json["items"] == []
    assert is_problem(controller.post("/api/v1/channels/hook/test", json={}), 404, "not-found")
