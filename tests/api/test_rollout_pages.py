"""The console's pages of a rollout, without a browser: affected devices, and its actions."""

import pytest
from sqlalchemy import select

from api.controller_app import ORIGIN, ControllerApp
from bench.controllers import add_devices
from shoal.controller.rollouts import behaviour_looks, device_rows, rollouts
from shoal.controller.rollouts.behaviour_records import Evidence, MetricEvidence, Receipt, Side
from shoal.controller.store.rollout_tables import rollout, rollout_device

STATES = {"d-0": "WAITING", "d-1": "WAITING", "d-2": "OBSERVING", "d-3": "FAILED"}


@pytest.fixture
def running(controller: ControllerApp) -> ControllerApp:
    """A rollout "r-1" that runs, and a signed-in admin."""
    ctx = controller.ctx
    add_devices(ctx, list(STATES))
    counts = {"devices": 4, "succeeded": 0, "failed": 1, "skipped": 0, "unseen": 0}
    stage = {"name": "all", "state": "RUNNING", "started_at": 0.0, "finished_at": 0.0, **counts}
    plan = {"release": "lot-codes@2", "stages": [{"name": "all"}]}
    with ctx.store.write() as db:
        db.execute(
            rollout.insert().values(
                id="r-1", release="lot-codes@2", model="lot-codes", plan=plan, state="RUNNING",
                stages=[stage], created_at=ctx.clock(), created_by="operator",
            )
        )  # fmt: skip
        device_rows.add(db, ctx, "r-1", dict.fromkeys(STATES, "all"))
        for row in db.execute(rollout_device.select()).all():
            device_rows.change(db, ctx, [device_rows.Change(row, {"state": STATES[row.device]})])
    controller.sign_in()
    return controller


def page(controller: ControllerApp, path: str, status: int = 200) -> str:
    response = controller.client.get(path, base_url=ORIGIN)
    assert response.status_code == status
    return str(response.get_data(as_text=True))


def act(controller: ControllerApp, action: str) -> int:
    response = controller.client.post(
        f"/rollouts/r-1/{action}", base_url=ORIGIN, headers={"Origin": ORIGIN}
    )
    return int(response.status_code)


def test_a_confirmation_counts_the_devices_that_the_action_affects(running: ControllerApp) -> None:
    affected = rollouts.affected_devices(running.ctx, "r-1")
    assert affected[:6] == (2, 0, 1, 0, 1, 0)
    assert (affected.all, affected.count("pause"), affected.count("resume")) == (4, 2, 3)
    assert "2 devices" in page(running, "/rollouts/r-1/pause")
    assert rollouts.affected_devices(running.ctx, "r-9").all == 0


def test_a_rollout_is_paused_on_its_page(running: ControllerApp) -> None:
    assert "Pause" in page(running, "/rollouts/r-1")
    assert act(running, "pause") == 303
    paused = rollouts.get_rollout(running.ctx, "r-1")
    assert (paused.state, paused.reason) == ("PAUSED", "paused by admin")
    assert act(running, "pause") == 409


def test_an_unknown_action_on_a_rollout_is_an_error_screen(running: ControllerApp) -> None:
    page(running, "/rollouts/r-1/retire", 404)
    assert act(running, "retire") == 404


def test_the_fleets_page_filters_its_devices(running: ControllerApp) -> None:
    assert "/devices/d-2" in page(running, "/fleet")
    assert "/devices/d-2" not in page(running, "/fleet?q=d-1")
    assert "/devices/d-2" not in page(running, "/fleet?problem=1")


def test_join_tokens_are_made_and_revoked_on_their_pages(running: ControllerApp) -> None:
    origin = {"Origin": ORIGIN}
    form = {"site": "north", "ring": "stable", "uses": "2"}
    made = running.client.post("/enrol", base_url=ORIGIN, headers=origin, data=form)
    assert "shoal-agent enroll" in made.get_data(as_text=True)
    (token,) = running.get("/api/v1/join-tokens").json["items"]
    assert (token["site"], token["uses_left"], token["secret"]) == ("north", 2, "")
    path = f"/settings/join-tokens/{token['id']}/revoke"
    assert running.client.post(path, base_url=ORIGIN, headers=origin).status_code == 303
    assert running.get("/api/v1/join-tokens").json["items"] == []


def test_the_behaviour_of_the_canaries_is_on_the_rollouts_page(running: ControllerApp) -> None:
    ctx = running.ctx
    side = Side(
        devices=2, reporting=1, trials=100, events=7, expected=2.0, past_pct=2.0, now_pct=7.0
    )
    metric = MetricEvidence(
        metric="latency", state="OPEN", tolerance=1.25, canary=side, control=side, ratio=1.5,
        ln_worse=2.5, worse_at=4.6, ln_safe=-3.0, safe_at=3.0, dispersion=1.0, missing="3 h more",
    )  # fmt: skip
    seen = Evidence(stage="all", at=ctx.clock(), outcome="WAIT", why="", metrics=[metric])
    empty = Receipt(formula="", version="", gates=[], running=[], expired=False, panel="", hours=[])
    plan = {
        "release": "lot-codes@2", "stages": [{"name": "all"}], "gates": [{"metric": "latency"}]
    }  # fmt: skip
    with ctx.store.write() as db:
        stages = db.scalar(select(rollout.c.stages))
        stages[0]["started_at"] = 5.0
        db.execute(rollout.update().values(plan=plan, stages=stages))
        behaviour_looks.store(db, behaviour_looks.Look("r-1", 5.0, seen, empty, {"a": b"{}"}))
    shown = page(running, "/rollouts/r-1")
    for text in ("Slow calls", "Not decided", "3 h more", "2.5 of 4.6", "7 of 100"):
        assert text in shown
    found = running.client.get("/api/v1/rollouts/r-1/evidence?stage=all", base_url=ORIGIN)
    assert found.get_json()["items"][0]["metrics"][0]["canary"]["now_pct"] == 7.0
