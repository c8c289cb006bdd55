"""What rounds learned, over HTTP: a release is asked for, and a poisoned round is stopped."""

import numpy as np
import pytest

from api.controller_app import ControllerApp, is_problem
from recorded_rounds import DEVICES, add_round, add_task
from shoal.controller.access import audit
from shoal.controller.api.dispatch import IDEMPOTENCY_KEY
from shoal.controller.federated.records import Prepared, TaskPlan
from shoal.controller.releases import models
from shoal.controller.store.tables import release


@pytest.fixture
def task(controller: ControllerApp) -> TaskPlan:
    """Of a task with three rounds done; its release is a row and nothing more."""
    ctx = controller.ctx
    theta = np.zeros(3, np.float32)
    sha256 = ctx.blobs.put_bytes(theta.tobytes()).sha256
    prepared = Prepared(
        graph=sha256, loss_graph=sha256, inference=sha256, theta=sha256, size=theta.size
    )
    plan = add_task(ctx, "walk", "lot-codes@1", prepared)
    for number in (1, 2, 3):
        add_round(ctx, plan, number, theta + number)
    return plan


def add_release(controller: ControllerApp, number: int) -> None:
    """A release of the checkpoint of this round."""
    devices = [{"device": n, "site": s, "rounds": 1, "examples": 1} for n, s in DEVICES.items()]
    origin = {
        "task": "walk", "number": number, "rounds": list(range(1, number + 1)),
        "release": "lot-codes@1", "strategy": "fedavg",
        "devices": devices,
    }  # fmt: skip
    report: dict[str, object] = {
        "variants": [], "verdicts": [], "signatures": [], "labels": [], "features": [],
        "metrics": {}, "by_site": {}, "params": {},
    }  # fmt: skip
    report |= {"task": "classification", "estimator": "imported", "origin": origin}
    with controller.ctx.store.write() as db:
        models.ensure_model(db, controller.ctx, actor="ana", name="lot-codes")
        db.execute(
            release.insert().values(
                model="lot-codes", version=10 + number, state="validated", dataset="d@1",
                dataset_sha256="", operation="", trigger="manual", parent="", created_at=1.0,
                created_by="ana", report=report, manifest=b"{}", references=b"",
            )
        )  # fmt: skip


def test_a_poisoned_round_is_marked_and_what_came_of_it_cannot_be_published(
    controller: ControllerApp, task: TaskPlan
) -> None:
    add_release(controller, 1)
    add_release(controller, 3)
    body = {"round": 2, "why": "press-1 was tampered with"}

    for _ in range(2):
        answer = controller.post("/api/v1/tasks/walk/quarantine", json=body)
        assert (answer.status_code, answer.json["parent"]) == (200, 1)

    told = {
        one["number"]: one["poisoned"] for one in controller.get("/api/v1/rounds").json["items"]
    }
    assert told[1] == ""
    assert told[2] == "press-1 was tampered with"
    assert told[3] == "it came of round 2: press-1 was tampered with"
    shown = controller.get("/api/v1/releases/lot-codes@13").json
    assert "round 2 of walk is poisoned" in shown["quarantined"]
    assert controller.get("/api/v1/releases/lot-codes@11").json["quarantined"] == ""
    refused = controller.post(
        "/api/v1/releases/lot-codes@13/publish", json={"override": "I insist"}
    )
    assert is_problem(refused, 409)
    assert "shoal round release" in refused.json["detail"] + refused.json.get("hint", "")
    entries, _ = audit.list_audit(controller.ctx, subject="walk.2")
    assert {one.verb for one in entries} == {"round.quarantine"}


def test_a_quarantine_is_lifted_by_an_admin_with_a_reason_and_then_there_is_nothing_to_lift(
    controller: ControllerApp, task: TaskPlan
) -> None:
    add_release(controller, 3)
    controller.post("/api/v1/tasks/walk/quarantine", json={"round": 2, "why": "press-1 lied"})
    path, body = "/api/v1/tasks/walk/quarantine/lift", {"round": 2, "why": "it was mill-1"}
    assert is_problem(controller.post(path, role="operator", json=body), 403)
    assert is_problem(controller.post(path, json=body | {"round": 3}), 409)
    assert is_problem(controller.post(path, json={"round": 2}), 422)

    told = controller.post(path, json=body).json

    assert (told["parent"], told["releases"]) == (3, ["lot-codes@13"])
    assert (told["cleared"], told["rounds_left"]) == (["walk.2", "walk.3"], [])
    assert controller.get("/api/v1/rounds/walk.2").json["charge"] == ""
    assert controller.get("/api/v1/releases/lot-codes@13").json["quarantined"] == ""
    assert is_problem(controller.post(path, json=body), 409)
    entries, _ = audit.list_audit(controller.ctx, subject="walk.2")
    assert [one.verb for one in entries] == ["round.lift", "round.quarantine"]


@pytest.mark.parametrize(
    ("body", "status"),
    [({"round": 2}, 422), ({"round": 2, "why": ""}, 422), ({"round": 9, "why": "lies"}, 404)],
)
def test_a_quarantine_needs_a_reason_and_a_round_that_made_a_checkpoint(
    controller: ControllerApp, task: TaskPlan, body: dict, status: int
) -> None:
    answer = controller.post("/api/v1/tasks/walk/quarantine", json=body)
    assert answer.status_code in (status, 400) if status == 422 else answer.status_code == status


def test_a_release_of_a_checkpoint_is_refused_where_there_is_none_or_it_is_poisoned(
    controller: ControllerApp, task: TaskPlan
) -> None:
    assert is_problem(controller.post("/api/v1/tasks/walk/release", json={"round": 9}), 404)
    assert is_problem(controller.post("/api/v1/tasks/nobodys/release", json={}), 404)
    controller.post("/api/v1/tasks/walk/quarantine", json={"round": 2, "why": "lies"})
    answer = controller.post(
        "/api/v1/tasks/walk/release", json={"round": 3}, headers={IDEMPOTENCY_KEY: "k"}
    )
    assert is_problem(answer, 409)
    assert "round 2 of walk is poisoned" in answer.json["detail"]
