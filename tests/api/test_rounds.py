"""Federated tasks over HTTP: who may, what is refused, what is done once and written down."""

import msgspec
import pytest
from sqlalchemy import insert

from api.controller_app import ControllerApp, is_problem
from shoal.controller.access import audit
from shoal.controller.api.dispatch import IDEMPOTENCY_KEY
from shoal.controller.federated.records import Prepared, TaskPlan
from shoal.controller.store import changes
from shoal.controller.store.tables import federated_task

PLAN = {
    "name": "walk", "release": "lot-codes@1", "learning": {"lr": 0.1},
    "pace": {"goal": 3, "least": 2},
}  # fmt: skip


@pytest.fixture
def task(controller: ControllerApp) -> str:
    prepared = Prepared(graph="", loss_graph="", inference="", theta="0" * 64, size=3)
    with controller.ctx.store.write() as db:
        db.execute(
            insert(federated_task).values(
                name="walk", model="lot-codes", release="lot-codes@1", state="ready", spent=[],
                plan=msgspec.to_builtins(msgspec.convert(PLAN, TaskPlan)),
                prepared=msgspec.to_builtins(prepared), checkpoint="0" * 64,
            )
        )  # fmt: skip
    return "/api/v1/tasks/walk"


def test_rounds_are_requested_once_and_the_audit_log_names_the_user(
    controller: ControllerApp, task: str
) -> None:
    before = changes.newest(controller.ctx)
    for _ in range(2):
        answer = controller.post(
            f"{task}/start", json={"rounds": 5}, headers={IDEMPOTENCY_KEY: "k1"}
        )
        assert (answer.status_code, answer.json["asked"]) == (200, 5)
    entries, _ = audit.list_audit(controller.ctx, subject="walk")
    assert [(one.verb, one.actor, one.detail) for one in entries] == [
        ("round.start", "admin", {"rounds": 5})
    ]
    assert [one.kind for one in changes.since(controller.ctx, before)] == ["task"]
    assert controller.post(f"{task}/start", json={"rounds": 3}).json["asked"] == 8


def test_an_abort_is_audited_and_a_second_one_changes_nothing(
    controller: ControllerApp, task: str
) -> None:
    controller.post(f"{task}/start", json={})
    for _ in range(2):
        assert controller.post(f"{task}/abort", json={}).json["state"] == "stopped"
    entries, _ = audit.list_audit(controller.ctx, subject="walk")
    assert [one.verb for one in entries] == ["round.abort", "round.start"]


@pytest.mark.parametrize(
    ("plan", "status"),
    [
        (PLAN, 404),
        ({k: v for k, v in PLAN.items() if k != "pace"}, 422),
        (PLAN | {"speed": 3}, 422),
        (PLAN | {"learning": {"lr": 0.1, "speed": 3}}, 422),
        (PLAN | {"name": "No Name"}, 422),
        (PLAN | {"dataset": "parts@1"}, 422),
        (PLAN | {"strategy": "krum"}, 422),
        (PLAN | {"release": "lot-codes"}, 422),
    ],
)
def test_a_plan_that_cannot_be_is_a_problem(
    controller: ControllerApp, plan: dict, status: int
) -> None:
    assert is_problem(controller.post("/api/v1/tasks", json=plan), status)
    assert controller.get("/api/v1/tasks").json["items"] == []


def test_what_is_not_there_is_a_problem_that_names_it(controller: ControllerApp, task: str) -> None:
    for path in ("/api/v1/tasks/nobody", "/api/v1/rounds/walk.7", "/api/v1/rounds?task=nobody"):
        assert is_problem(controller.get(path), 404)
    assert controller.get("/api/v1/rounds?task=walk").json["items"] == []
    assert controller.get(f"{task}/participations").json["items"] == []
