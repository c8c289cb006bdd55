"""Undeployment over the API and on its pages: who may, what is said, what is shown."""

from typing import Any

import pytest
from sqlalchemy import update

import tensor_releases
from api.controller_app import ORIGIN, ControllerApp, is_problem
from bench.controllers import add_devices
from shoal import topics, wire
from shoal.controller.ingest.ingest import ingest
from shoal.controller.rollouts import undeployments
from shoal.controller.store import tables

MODEL = tensor_releases.MODEL


@pytest.fixture
def fleet(controller: ControllerApp) -> ControllerApp:
    """Three devices that serve a release; one of them has an old agent."""
    ref = tensor_releases.released(controller.ctx)
    add_devices(controller.ctx, ["d-1", "d-2", "d-3"])
    serving = update(tables.device).values(releases={MODEL: ref}, facts={"removes": True})
    with controller.ctx.store.write() as db:
        db.execute(serving)
        db.execute(update(tables.device).where(tables.device.c.name == "d-3").values(facts={}))
    return controller


def undeploy(fleet: ControllerApp, role: str = "operator", **body: Any) -> Any:
    return fleet.post(f"/api/v1/models/{MODEL}/undeploy", role, json=body)


def test_the_answer_names_the_undeployment_and_its_devices_follow(fleet: ControllerApp) -> None:
    answer = undeploy(fleet, all=True)
    assert answer.status_code == 201
    where = answer.headers["Location"]
    undeployments.step_all(fleet.ctx)
    now = fleet.get(where, "viewer").json
    assert (now["state"], now["devices"], now["waiting"], now["cannot"]) == ("RUNNING", 3, 2, 1)
    [one] = fleet.get(f"{where}/devices?state=CANNOT", "viewer").json["items"]
    assert (one["device"], "update the agent" in one["detail"]) == ("d-3", True)
    [listed] = fleet.get(f"/api/v1/undeployments?model={MODEL}", "viewer").json["items"]
    assert listed["id"] == now["id"]
    assert fleet.get("/api/v1/undeployments?model=other", "viewer").json["items"] == []


def test_a_viewer_may_look_and_not_undeploy(fleet: ControllerApp) -> None:
    assert is_problem(undeploy(fleet, "viewer", all=True), 403)
    ident = undeploy(fleet, all=True).json["id"]
    assert is_problem(fleet.post(f"/api/v1/undeployments/{ident}/cancel", "viewer"), 403)
    assert fleet.post(f"/api/v1/undeployments/{ident}/cancel", "operator").status_code == 200
    assert is_problem(fleet.post(f"/api/v1/undeployments/{ident}/cancel", "operator"), 409)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({}, 422),
        ({"all": True, "devices": ["d-1"]}, 422),
        ({"devices": ["nobody"]}, 404),
        ({"select": {"percent": 10}}, 422),
        ({"select": {"site": "elsewhere"}}, 422),
        ({"site": "typo"}, 422),
    ],
)
def test_a_choice_of_devices_that_makes_no_sense_is_a_problem(
    fleet: ControllerApp, body: dict[str, Any], status: int
) -> None:
    assert is_problem(undeploy(fleet, **body), status)
    assert undeployments.page(fleet.ctx)[0] == []


def test_an_unknown_model_or_undeployment_is_absent(fleet: ControllerApp) -> None:
    assert is_problem(fleet.post("/api/v1/models/x/undeploy", json={"all": True}), 404)
    for path in ("", "/devices"):
        assert is_problem(fleet.get(f"/api/v1/undeployments/u-0{path}"), 404)


def test_the_console_asks_first_and_shows_each_device(fleet: ControllerApp) -> None:
    fleet.sign_in()

    def page(path: str, status: int = 200) -> str:
        answer = fleet.client.get(path, base_url=ORIGIN)
        assert answer.status_code == status
        return str(answer.get_data(as_text=True))

    def send(path: str, **form: str) -> Any:
        return fleet.client.post(path, data=form, base_url=ORIGIN, headers={"Origin": ORIGIN})

    assert "Undeploy…" in page(f"/models/{MODEL}")
    assert f"Undeploy {MODEL}?" in page(f"/models/{MODEL}/undeploy")
    started = send(f"/models/{MODEL}/undeploy", device="d-3")
    assert started.status_code == 303
    where = started.headers["Location"].removeprefix(ORIGIN)
    undeployments.step_all(fleet.ctx)
    undeployments.step_all(fleet.ctx)
    shown = page(where)
    for words in ("Cannot yet", "update the agent", "0 of 1 device", "Order no further device"):
        assert words in shown
    assert "No device in this state" in page(f"{where}?state=REMOVED")
    assert where in page(f"/models/{MODEL}")
    assert send(f"{where}/cancel").status_code == 303
    assert "canceled by admin" in page(where)
    assert send(f"{where}/shrug").status_code == 404
    assert send(f"/models/{MODEL}/undeploy", site="elsewhere").status_code == 422


def test_a_devices_timeline_says_what_was_removed(fleet: ControllerApp) -> None:
    ident = undeploy(fleet, devices=["d-1"]).json["id"]
    undeployments.step_all(fleet.ctx)
    undeployments.step_all(fleet.ctx)
    event = wire.UpdateEvent(
        device="d-1", boot="b", seq=1, sent_s=fleet.ctx.clock(), model=MODEL, release="",
        rollout=ident, attempt=1, state="SUCCEEDED", facts={"removed": f"{MODEL}@1"},
    )  # fmt: skip
    ingest(fleet.ctx, [(topics.up("d-1", "event"), wire.encode(event))])
    done = fleet.get(f"/api/v1/undeployments/{ident}").json
    assert (done["removed"], done["waiting"]) == (1, 0)
    fleet.sign_in()
    shown = fleet.client.get("/devices/d-1", base_url=ORIGIN).get_data(as_text=True)
    assert "removal of" in shown
    assert f"/undeployments/{ident}" in shown
