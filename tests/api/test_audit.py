"""The audit log by API and console: who, from where, what, when; pages, filters, export."""

import csv
import io

import pytest

from api.controller_app import ORIGIN, ControllerApp, is_problem
from shoal.controller.access import audit

OURS = {"Sec-Fetch-Site": "same-origin"}


@pytest.fixture
def log(controller: ControllerApp) -> ControllerApp:
    """A log with a change by API, and three entries of another time."""
    assert controller.post("/api/v1/users/viewer/disable", json={"reason": "left"}).status_code
    for day in range(3):
        ctx = controller.ctx._replace(clock=lambda day=day: 1_700_000_000.0 + day * 86_400)
        with ctx.store.write() as db:
            audit.record(db, ctx, "ana", f"rollout.{('start', 'pause', 'abort')[day]}", "=r-1")
    return controller


def test_a_change_has_who_from_where_and_why(log: ControllerApp) -> None:
    [entry] = log.get("/api/v1/audit?verb=user.disable").json["items"]
    assert (entry["actor"], entry["address"], entry["subject"]) == ("admin", "127.0.0.1", "viewer")
    assert entry["detail"]["reason"] == "left"


@pytest.mark.parametrize(
    ("query", "verbs"),
    [
        ("actor=ana", ["rollout.abort", "rollout.pause", "rollout.start"]),
        ("verb=rollout.*&since=1700000001", ["rollout.abort", "rollout.pause"]),
        ("verb=rollout.start", ["rollout.start"]),
        ("subject=%3Dr-1&until=1700086400", ["rollout.start"]),
        ("actor=nobody", []),
    ],
)
def test_filters_and_their_count(log: ControllerApp, query: str, verbs: list[str]) -> None:
    found = log.get(f"/api/v1/audit?{query}").json
    assert [e["verb"] for e in found["items"]] == verbs
    assert found["page"]["total"] == len(verbs)
    first = log.get(f"/api/v1/audit?{query}&limit=1").json
    assert bool(first["page"]["next"]) == (len(verbs) > 1)


def test_an_export_for_a_spreadsheet_holds_no_formula(log: ControllerApp) -> None:
    text = log.get("/api/v1/audit/export.csv?actor=ana").text
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [row["subject"] for row in rows] == ["'=r-1"] * 3
    assert rows[0]["time"] == "2023-11-14T22:13:20+00:00"


def test_every_timestamp_signs_the_head_of_the_log(log: ControllerApp) -> None:
    before = log.get("/api/v1/audit/head", "operator").json["timestamp"]["signed"]
    log.ctx.signer.renew_timestamp(log.clock.now)
    signed = log.get("/api/v1/audit/head", "operator").json["timestamp"]["signed"]
    newest = audit.head(log.ctx.store)
    assert signed["shoal"]["audit"] == {"id": newest.id, "hash": newest.hash}
    assert signed["version"] == before["version"] + 1


def test_the_console_filters_exports_and_verifies(log: ControllerApp) -> None:
    log.sign_in("admin")

    def get(path: str) -> str:
        return str(log.client.get(path, base_url=ORIGIN).text)

    page = get("/audit?verb=rollout.*&since=2023-11-15&until=2023-11-15")
    assert "2023-11-15 22:13:20" in page
    assert "rollout.start" not in page
    assert "/api/v1/audit/export.csv?verb=rollout." in page
    assert "no day" in get("/audit?since=yesterday")
    said = log.client.post("/audit/verify", base_url=ORIGIN, headers=OURS).text
    assert "the chain is whole" in said


def test_a_wrong_cursor_is_refused(log: ControllerApp) -> None:
    assert is_problem(log.get("/api/v1/audit?cursor=x"), 422)
