"""What the console's pages of rounds say, without a browser: the words that a person looks for."""

import numpy as np
import pytest

from api.controller_app import ORIGIN, ControllerApp
from recorded_rounds import DEVICES, REFUSED, UPDATED, add_round, add_task
from shoal.controller.access import audit
from shoal.controller.federated.checkpoints import retention, round_quarantine
from shoal.controller.federated.records import Prepared, TaskPlan
from shoal.controller.host.settings import Rounds, Settings
from shoal.controller.releases import models


@pytest.fixture
def task(controller: ControllerApp) -> TaskPlan:
    prepared = Prepared(
        graph="ab" * 32, loss_graph="cd" * 32, inference="", theta="ef" * 32, size=3
    )
    controller.sign_in()
    return add_task(controller.ctx, "walk", "lot-codes@1", prepared)


def page(controller: ControllerApp, path: str) -> str:
    answer = controller.client.get(path, base_url=ORIGIN)
    assert answer.status_code == 200
    return str(answer.get_data(as_text=True))


def test_a_graph_that_a_device_has_not_pinned_is_named_with_what_to_do(
    controller: ControllerApp, task: TaskPlan
) -> None:
    marks = dict.fromkeys(DEVICES, UPDATED) | {"mill-1": REFUSED}
    add_round(
        controller.ctx, task, 1, np.zeros(3, np.float32), marks=marks, refusal="unknown-graph"
    )
    shown = page(controller, "/rounds/walk/1")
    assert "It does not allow this graph" in shown
    assert "add its SHA-256 to graphs on the device" in shown
    assert "/devices/mill-1" in shown


def test_a_task_shows_the_hashes_that_devices_pin(
    controller: ControllerApp, task: TaskPlan
) -> None:
    shown = page(controller, "/rounds/walk")
    assert "ab" * 32 in shown
    assert "cd" * 32 in shown


def test_an_admin_lifts_a_quarantine_on_the_page_of_the_round_that_was_put_into_it(
    controller: ControllerApp, task: TaskPlan
) -> None:
    for number in (1, 2):
        add_round(controller.ctx, task, number, np.full(3, number, np.float32))
    round_quarantine.quarantine_round(
        controller.ctx, actor="ana", task="walk", number=1, why="press-1 lied"
    )
    assert 'id="do-lift"' in page(controller, "/rounds/walk/1")
    assert 'id="do-lift"' not in page(controller, "/rounds/walk/2"), "it is lifted with round 1"
    assert "It was a mistake: press-1 lied" in page(controller, "/rounds/walk/lift?round=1")
    form = {"round": "1", "why": "it was mill-2"}
    here = {"base_url": ORIGIN, "headers": {"Sec-Fetch-Site": "same-origin"}}

    controller.sign_in("operator")
    assert 'id="do-lift"' not in page(controller, "/rounds/walk/1")
    assert controller.client.post("/rounds/walk/lift", data=form, **here).status_code == 403
    controller.sign_in()
    assert controller.client.post("/rounds/walk/lift", data=form, **here).status_code == 303

    assert "In quarantine" not in page(controller, "/rounds/walk/1")
    entries, _ = audit.list_audit(controller.ctx, subject="walk.1")
    assert (entries[0].actor, entries[0].detail["why"]) == ("admin", "it was mill-2")


def test_both_pages_show_that_a_rounds_checkpoint_is_pruned(
    controller: ControllerApp, task: TaskPlan
) -> None:
    for number in (1, 2):
        add_round(controller.ctx, task, number, np.full(3, number, np.float32))
    few = Settings(rounds=Rounds(checkpoints=1))
    retention.prune(controller.ctx._replace(settings=few))
    assert page(controller, "/rounds/walk").count("checkpoint pruned") == 1
    assert "Its checkpoint is pruned" in page(controller, "/rounds/walk/1")
    assert "Its checkpoint is pruned" not in page(controller, "/rounds/walk/2")
    assert controller.get("/api/v1/rounds/walk.1").json["pruned_at"] > 0


def test_a_model_shows_the_task_that_runs_when_it_drifts(
    controller: ControllerApp, task: TaskPlan
) -> None:
    with controller.ctx.store.write() as db:
        models.ensure_model(db, controller.ctx, actor="ana", name="lot-codes")
    body = {"retrain_on_drift": False, "task": "walk", "rounds": 5, "cooldown_s": 7200}
    assert (
        controller.request("PUT", "/api/v1/models/lot-codes/policy", json=body).status_code == 200
    )
    shown = " ".join(page(controller, "/models/lot-codes").split())
    assert 'When drift is detected, 5 rounds of <a href="/rounds/walk">walk</a> are run' in shown
    assert "at most every 2 h" in shown
    refused = controller.request(
        "PUT", "/api/v1/models/lot-codes/policy", json=body | {"rounds": 0}
    )
    assert refused.status_code == 422
