"""What the console's pages of rounds say, without a browser: the words that a person looks for."""

import numpy as np
import pytest

from api.world import ORIGIN, World
from recorded_rounds import DEVICES, REFUSED, UPDATED, add_round, add_task
from shoal.controller.access import audit
from shoal.controller.federated.checkpoints import retention, round_quarantine
from shoal.controller.federated.records import Prepared, TaskPlan
from shoal.controller.host.settings import Rounds, Settings
from shoal.controller.releases import models


@pytest.fixture
def task(world: World) -> TaskPlan:
    prepared = Prepared(
        graph="ab" * 32, loss_graph="cd" * 32, inference="", theta="ef" * 32, size=3
    )
    world.sign_in()
    return add_task(world.ctx, "walk", "lot-codes@1", prepared)


def page(world: World, path: str) -> str:
    answer = world.client.get(path, base_url=ORIGIN)
    assert answer.status_code == 200
    return str(answer.get_data(as_text=True))


def test_a_graph_that_a_device_has_not_pinned_is_named_with_what_to_do(
    world: World, task: TaskPlan
) -> None:
    marks = dict.fromkeys(DEVICES, UPDATED) | {"mill-1": REFUSED}
    add_round(world.ctx, task, 1, np.zeros(3, np.float32), marks=marks, refusal="unknown-graph")
    shown = page(world, "/rounds/walk/1")
    assert "It does not allow this graph" in shown
    assert "add its SHA-256 to graphs on the device" in shown
    assert "/devices/mill-1" in shown


def test_a_task_shows_the_hashes_that_devices_pin(world: World, task: TaskPlan) -> None:
    shown = page(world, "/rounds/walk")
    assert "ab" * 32 in shown
    assert "cd" * 32 in shown


def test_an_admin_lifts_a_quarantine_on_the_page_of_the_round_that_was_put_into_it(
    world: World, task: TaskPlan
) -> None:
    for number in (1, 2):
        add_round(world.ctx, task, number, np.full(3, number, np.float32))
    round_quarantine.quarantine_round(
        world.ctx, actor="ana", task="walk", number=1, why="press-1 lied"
    )
    assert 'id="do-lift"' in page(world, "/rounds/walk/1")
    assert 'id="do-lift"' not in page(world, "/rounds/walk/2"), "it is lifted with round 1"
    assert "It was a mistake: press-1 lied" in page(world, "/rounds/walk/lift?round=1")
    form = {"round": "1", "why": "it was mill-2"}
    here = {"base_url": ORIGIN, "headers": {"Sec-Fetch-Site": "same-origin"}}

    world.sign_in("operator")
    assert 'id="do-lift"' not in page(world, "/rounds/walk/1")
    assert world.client.post("/rounds/walk/lift", data=form, **here).status_code == 403
    world.sign_in()
    assert world.client.post("/rounds/walk/lift", data=form, **here).status_code == 303

    assert "In quarantine" not in page(world, "/rounds/walk/1")
    entries, _ = audit.list_audit(world.ctx, subject="walk.1")
    assert (entries[0].actor, entries[0].detail["why"]) == ("admin", "it was mill-2")


def test_a_round_whose_checkpoint_is_gone_says_so_on_both_pages(
    world: World, task: TaskPlan
) -> None:
    for number in (1, 2):
        add_round(world.ctx, task, number, np.full(3, number, np.float32))
    few = Settings(rounds=Rounds(checkpoints=1))
    retention.prune(world.ctx._replace(settings=few))
    assert page(world, "/rounds/walk").count("checkpoint pruned") == 1
    assert "Its checkpoint is pruned" in page(world, "/rounds/walk/1")
    assert "Its checkpoint is pruned" not in page(world, "/rounds/walk/2")
    assert world.get("/api/v1/rounds/walk.1").json["pruned_at"] > 0


def test_a_model_shows_the_task_that_runs_when_it_drifts(world: World, task: TaskPlan) -> None:
    with world.ctx.store.write() as db:
        models.ensure_model(db, world.ctx, actor="ana", name="lot-codes")
    body = {"retrain_on_drift": False, "task": "walk", "rounds": 5, "cooldown_s": 7200}
    assert world.ask("PUT", "/api/v1/models/lot-codes/policy", json=body).status_code == 200
    shown = " ".join(page(world, "/models/lot-codes").split())
    assert 'When drift is detected, 5 rounds of <a href="/rounds/walk">walk</a> are run' in shown
    assert "at most every 2 h" in shown
    refused = world.ask("PUT", "/api/v1/models/lot-codes/policy", json=body | {"rounds": 0})
    assert refused.status_code == 422
