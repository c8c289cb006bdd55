"""Revocation over the API, on its page and by the command."""

from typing import Any

import tensor_releases
from api.controller_app import ORIGIN, ControllerApp, is_problem


def test_a_release_is_revoked_once_and_for_good(controller: ControllerApp) -> None:
    ref = tensor_releases.released(controller.ctx)
    path = f"/api/v1/releases/{ref}"
    for body in ({}, {"reason": " "}):
        assert controller.post(f"{path}/revoke", json=body).status_code == 422
    assert is_problem(controller.post(f"{path}9/revoke", json={"reason": "no"}), 404)
    done = controller.post(f"{path}/revoke", json={"reason": "it leaks"}).json
    assert (done["release"], done["epoch"], done["serving"]) == (ref, 2, 0)
    assert controller.post(f"{path}/revoke", json={"reason": "again"}).json["epoch"] == 2
    found = controller.get(path, "viewer").json
    assert (found["quarantined"], found["revoked_at"] > 0) == ("revoked by admin: it leaks", True)
    model = controller.get(f"/api/v1/models/{ref.partition('@')[0]}", "viewer").json
    assert model["released"] == ""
    listed = controller.get("/api/v1/releases", "viewer").json["items"]
    assert [one["revoked_at"] for one in listed] == [found["revoked_at"]]
    plan = {"release": ref, "stages": [{"name": "all"}]}
    assert is_problem(controller.post("/api/v1/rollouts", json=plan), 409)
    said = [one["verb"] for one in controller.get("/api/v1/audit").json["items"]]
    assert said.count("release.revoke") == 1


def test_the_console_asks_and_shows_it(controller: ControllerApp) -> None:
    ref = tensor_releases.released(controller.ctx)
    controller.sign_in()

    def page(path: str) -> str:
        answer = controller.client.get(path, base_url=ORIGIN)
        assert answer.status_code == 200
        return str(answer.get_data(as_text=True))

    def send(path: str, **form: str) -> Any:
        return controller.client.post(path, data=form, base_url=ORIGIN, headers={"Origin": ORIGIN})

    here = f"/releases/{ref}"
    assert "Revoke…" in page(here)
    assert f"Revoke {ref} for good?" in page(f"{here}/revoke")
    assert send(f"{here}/revoke", reason="it <b>leaks</b>").status_code == 303
    shown = page(here)
    assert "it must never run again" in shown
    assert "revoked by admin: it &lt;b&gt;leaks&lt;/b&gt;" in shown
    assert "Revoke…" not in shown
