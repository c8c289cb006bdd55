"""Groups over the API and on their pages: what they run, who deviates, what is decided by hand."""

from typing import Any

import pytest
from sqlalchemy import update

import tensor_releases
from api.controller_app import ORIGIN, ControllerApp, is_problem
from bench.controllers import add_devices
from shoal.controller.rollouts import convergence, trailing
from shoal.controller.store import rollout_tables, tables

MODEL = tensor_releases.MODEL


@pytest.fixture
def fleet(controller: ControllerApp) -> ControllerApp:
    """Three devices; two of them serve a release, which is signed."""
    ref = tensor_releases.released(controller.ctx)
    add_devices(controller.ctx, ["d-1", "d-2", "d-3"])
    with controller.ctx.store.write() as db:
        db.execute(update(tables.device).values(releases={MODEL: ref}, ring="stable"))
        db.execute(update(tables.device).where(tables.device.c.name == "d-3").values(releases={}))
    return controller


def send(fleet: ControllerApp, device: str, what: str, role: str = "operator", **body: Any) -> Any:
    return fleet.post(f"/api/v1/devices/{device}/{what}", role, json=body)


def test_a_group_is_named_shown_and_deleted(fleet: ControllerApp) -> None:
    body = {"name": "north", "select": {"site": "north", "line": "3"}}
    made = fleet.post("/api/v1/groups", "operator", json=body)
    assert made.status_code == 201
    assert made.headers["Location"] == "/api/v1/groups/north"
    assert made.json["selector"] == "site=north,line=3"
    assert [one["name"] for one in fleet.get("/api/v1/groups").json["items"]] == ["fleet", "north"]
    again = fleet.post("/api/v1/groups", "operator", json=body | {"name": "other"})
    assert is_problem(again, 409)
    assert fleet.request("DELETE", "/api/v1/groups/north", "operator").status_code == 204
    assert is_problem(fleet.get("/api/v1/groups/north"), 404)
    assert is_problem(fleet.request("DELETE", "/api/v1/groups/fleet", "operator"), 409)


@pytest.mark.parametrize(
    "body",
    [
        {"name": "north", "select": {}},
        {"name": "north", "select": {"site": "n", "percent": 10}},
        {"name": "North pole", "select": {"site": "n"}},
        {"name": "north", "select": {"planet": "mars"}},
    ],
)
def test_a_group_that_makes_no_sense_is_a_problem(
    fleet: ControllerApp, body: dict[str, Any]
) -> None:
    assert is_problem(fleet.post("/api/v1/groups", "operator", json=body), 422)


def test_a_pin_a_hold_and_an_exclusion_are_made_shown_and_ended(fleet: ControllerApp) -> None:
    ref = f"{MODEL}@1"
    assert is_problem(send(fleet, "d-3", "pin", release=f"{MODEL}@9"), 404)
    assert is_problem(send(fleet, "d-3", "unpin", model=MODEL), 404)
    assert send(fleet, "d-3", "pin", release=ref, reason="trial").status_code == 200
    convergence.step_all(fleet.ctx)
    found = fleet.get("/api/v1/devices/d-3/desired", "viewer").json
    [one] = found["releases"]
    assert (one["want"], one["by"], one["state"]) == (ref, "pin", "CONVERGING")
    assert found["overrides"][0]["reason"] == "trial"
    [listed] = fleet.get("/api/v1/deviations", "viewer").json["items"]
    assert (listed["device"], listed["want"], listed["serves"]) == ("d-3", ref, "")
    assert send(fleet, "d-3", "unpin", model=MODEL).status_code == 204
    assert send(fleet, "d-3", "hold", reason="audit").status_code == 200
    assert send(fleet, "d-3", "exclude", model=MODEL).status_code == 200
    kinds = [o["kind"] for o in fleet.get("/api/v1/devices/d-3/desired").json["overrides"]]
    assert kinds == ["exclude", "hold"]
    assert send(fleet, "d-3", "release").status_code == 204
    assert send(fleet, "d-3", "include", model=MODEL).status_code == 204
    convergence.step_all(fleet.ctx)
    assert fleet.get("/api/v1/deviations").json["items"] == []


def test_the_console_shows_groups_and_decides_about_a_device(fleet: ControllerApp) -> None:
    fleet.sign_in()

    def page(path: str, status: int = 200) -> str:
        answer = fleet.client.get(path, base_url=ORIGIN)
        assert answer.status_code == status
        return str(answer.get_data(as_text=True))

    def act(path: str, **form: str) -> int:
        headers = {"Origin": ORIGIN}
        answer = fleet.client.post(path, data=form, base_url=ORIGIN, headers=headers)
        return int(answer.status_code)

    assert "nothing of its own until a rollout targets it" in page("/groups")
    assert act("/groups", name="south", site="south") == 303
    assert "Devices of site=south" in page("/groups/south")
    assert act("/groups/south/delete") == 303
    page("/groups/south", 404)
    decide = "/devices/d-3/decide"
    assert act(f"{decide}/pin", release=f"{MODEL}@1", reason="trial") == 303
    convergence.step_all(fleet.ctx)
    shown = page("/devices/d-3")
    for words in (f"Pinned to {MODEL}@1", "trial", "by its pin", "Converging"):
        assert words in shown
    for action, form in [
        ("unpin", {"model": MODEL}), ("hold", {}), ("release", {}),
        ("exclude", {"model": MODEL}), ("include", {"model": MODEL}),
    ]:  # fmt: skip
        assert act(f"{decide}/{action}", **form) == 303
    assert act(f"{decide}/shrug") == 404


def test_a_trailing_stage_is_shown_paused_and_resumed(fleet: ControllerApp) -> None:
    plan = {"release": f"{MODEL}@1", "stages": [{"name": "all"}]}
    ident = fleet.post("/api/v1/rollouts", "operator", json=plan).json["id"]
    with fleet.ctx.store.write() as db:
        mine = rollout_tables.rollout.c.id == ident
        db.execute(update(rollout_tables.rollout).where(mine).values(state="FINISHED"))
        trailing.begin(db, ident, fleet.ctx.clock())
    where = f"/api/v1/rollouts/{ident}"
    assert fleet.get(where).json["trailing"]["state"] == "RUNNING"
    paused = fleet.post(f"{where}/pause", "operator").json["trailing"]
    assert (paused["state"], paused["reason"].startswith("paused by")) == ("PAUSED", True)
    assert is_problem(fleet.post(f"{where}/pause", "operator"), 409)
    fleet.sign_in()
    shown = fleet.client.get(f"/rollouts/{ident}", base_url=ORIGIN).get_data(as_text=True)
    for words in ("Trailing", "paused by", f"/rollouts/{ident}/resume"):
        assert words in shown
    resumed = fleet.post(f"{where}/resume", "operator").json
    assert (resumed["state"], resumed["trailing"]["state"]) == ("FINISHED", "RUNNING")
