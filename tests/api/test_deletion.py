"""Deletion over the API and on its pages: who may, what is named, what goes."""

from typing import Any

import pytest
from sqlalchemy import update

import tensor_releases
from api.controller_app import ORIGIN, ControllerApp, is_problem
from bench.controllers import add_devices
from shoal.controller.releases import releases
from shoal.controller.store import tables

MODEL = tensor_releases.MODEL


@pytest.fixture
def fleet(controller: ControllerApp) -> ControllerApp:
    """Two releases; a device serves the second."""
    tensor_releases.released(controller.ctx)
    two = tensor_releases.released(controller.ctx)
    add_devices(controller.ctx, ["d-1"])
    with controller.ctx.store.write() as db:
        db.execute(update(tables.device).values(releases={MODEL: two}))
    return controller


def delete(fleet: ControllerApp, path: str, role: str = "approver") -> Any:
    return fleet.request("DELETE", f"/api/v1/{path}", role)


def test_a_release_that_nothing_needs_is_deleted_by_an_approver(fleet: ControllerApp) -> None:
    assert is_problem(delete(fleet, f"releases/{MODEL}@1", "operator"), 403)
    assert fleet.get(f"/api/v1/releases/{MODEL}@1/dependents", "viewer").json["items"] == []
    assert delete(fleet, f"releases/{MODEL}@1").json == {"deleted": [f"release {MODEL}@1"]}
    assert is_problem(delete(fleet, f"releases/{MODEL}@1"), 404)


def test_what_depends_on_it_is_in_the_problem_with_the_next_step(fleet: ControllerApp) -> None:
    for path in (f"releases/{MODEL}@2", f"releases/{MODEL}@2?with_dependents=true"):
        answer = delete(fleet, path)
        assert is_problem(answer, 409)
        [one] = answer.json["dependents"]
        assert one["next_step"] == f"shoal model undeploy {MODEL} --device d-1"
    listed = fleet.get(f"/api/v1/releases/{MODEL}@2/dependents", "viewer").json["items"]
    assert [item["kind"] for item in listed] == ["devices"]
    assert is_problem(delete(fleet, f"models/{MODEL}"), 409)


def test_a_model_goes_with_its_releases(fleet: ControllerApp) -> None:
    with fleet.ctx.store.write() as db:
        db.execute(update(tables.device).values(releases={}))
    gone = delete(fleet, f"models/{MODEL}").json["deleted"]
    assert gone == [f"release {MODEL}@1", f"release {MODEL}@2", f"model {MODEL}"]
    assert is_problem(fleet.get(f"/api/v1/models/{MODEL}"), 404)


@pytest.mark.parametrize("path", ["releases/x@1", "models/x", "datasets/x@1"])
def test_what_does_not_exist_is_absent(controller: ControllerApp, path: str) -> None:
    assert is_problem(delete(controller, path), 404)
    assert is_problem(controller.get(f"/api/v1/{path}/dependents"), 404)


def test_the_console_shows_what_comes_first_and_then_deletes(fleet: ControllerApp) -> None:
    fleet.sign_in()

    def page(path: str, status: int = 200) -> str:
        answer = fleet.client.get(path, base_url=ORIGIN)
        assert answer.status_code == status, answer.get_data(as_text=True)
        return str(answer.get_data(as_text=True))

    def send(path: str) -> Any:
        return fleet.client.post(path, base_url=ORIGIN, headers={"Origin": ORIGIN})

    two = f"/delete/releases/{MODEL}@2"
    assert two in page(f"/releases/{MODEL}@2")
    assert "is still needed" in page(two)
    assert f"shoal model undeploy {MODEL} --device d-1" in page(two)
    assert send(two).status_code == 409
    one = f"/delete/releases/{MODEL}@1"
    assert f"Delete {MODEL}@1?" in page(one)
    assert send(one).headers["Location"].endswith(f"/models/{MODEL}")
    with fleet.ctx.store.write() as db:
        db.execute(update(tables.release).values(parent=f"{MODEL}@1"))
    assert f"{MODEL}@1, deleted" in page(f"/releases/{MODEL}@2")
    with fleet.ctx.store.write() as db:
        db.execute(update(tables.device).values(releases={}))
    assert f"Delete {MODEL}?" in page(f"/delete/models/{MODEL}")
    assert send(f"/delete/models/{MODEL}").headers["Location"].endswith("/models")
    assert releases.list_releases(fleet.ctx) == []
    page(f"/delete/things/{MODEL}", 404)
    page("/datasets")
