"""Retirement over the API and on its pages."""

from typing import Any

import tensor_releases
from api.controller_app import ORIGIN, ControllerApp, is_problem

MODEL = tensor_releases.MODEL


def listed(controller: ControllerApp, path: str) -> int:
    return len(controller.get(path, "viewer").json["items"])


def test_a_retired_release_is_listed_only_on_request(controller: ControllerApp) -> None:
    ref = tensor_releases.released(controller.ctx)
    path = f"/api/v1/releases/{ref}"
    after = controller.post(f"{path}/retire", "operator", json={"reason": "old"}).json
    assert (after["retired_by"], after["retired_at"] > 0) == ("operator", True)
    assert listed(controller, "/api/v1/releases") == 0
    assert listed(controller, "/api/v1/releases?all=true") == 1
    assert is_problem(controller.post(f"{path}/publish", json={}), 409)
    plan = {"release": ref, "stages": [{"name": "all"}]}
    assert is_problem(controller.post("/api/v1/rollouts", json=plan), 409)
    assert controller.post(f"{path}/unretire", "operator").json["retired_at"] == 0
    assert listed(controller, "/api/v1/releases") == 1


def test_a_retired_model_is_listed_only_on_request(controller: ControllerApp) -> None:
    tensor_releases.released(controller.ctx)
    path = f"/api/v1/models/{MODEL}"
    assert controller.post(f"{path}/retire", "operator", json={}).json["retired_by"] == "operator"
    assert listed(controller, "/api/v1/models") == listed(controller, "/api/v1/releases") == 0
    assert listed(controller, "/api/v1/models?all=true") == 1
    assert controller.post(f"{path}/unretire", "operator").json["retired_at"] == 0


def test_the_console_asks_shows_and_takes_back(controller: ControllerApp) -> None:
    ref = tensor_releases.released(controller.ctx)
    controller.sign_in()

    def page(path: str) -> str:
        answer = controller.client.get(path, base_url=ORIGIN)
        assert answer.status_code == 200
        return str(answer.get_data(as_text=True))

    def send(path: str, **form: str) -> Any:
        return controller.client.post(path, data=form, base_url=ORIGIN, headers={"Origin": ORIGIN})

    for thing, name in (("releases", ref), ("models", MODEL)):
        here = f"/{thing}/{name}"
        assert f"Retire {name}?" in page(f"{here}/retire")
        assert send(f"{here}/retire", reason="old").status_code == 303
        assert "Retired by admin" in page(here)
        assert "Take back" in page(here)
        assert send(f"{here}/shrug").status_code == 404
        if thing == "models":
            assert MODEL not in page("/models").split("<main")[1]
            assert MODEL in page("/models?all=true").split("<main")[1]
        assert send(f"{here}/unretire").status_code == 303
        assert "Retired by" not in page(here)
