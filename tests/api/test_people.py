"""Users, their passwords, sessions and tokens: what an admin and what each person can do."""

from typing import Any

import pytest

from api.controller_app import ORIGIN, PASSWORD, ControllerApp, is_problem
from shoal.controller.access import audit, users
from shoal.errors import AbsentError

OURS = {"Sec-Fetch-Site": "same-origin"}
OWN = "a password of my own"


def token_of(controller: ControllerApp, role: str, **more: Any) -> dict[str, str]:
    """Authorization header of a new token, made with the password."""
    body = {"user": role, "password": PASSWORD, "name": "ci", **more}
    made = controller.client.post("/api/v1/tokens", json=body)
    assert made.status_code == 201, made.json
    return {"Authorization": f"Bearer {made.json['secret']}"}


def works(controller: ControllerApp, headers: dict[str, str]) -> bool:
    return bool(controller.client.get("/api/v1/me", headers=headers).status_code == 200)


def test_a_reset_ends_everything_and_its_one_time_password_only_gives_another(
    controller: ControllerApp,
) -> None:
    bearer = token_of(controller, "operator")
    controller.sign_in("operator")
    made = controller.post("/api/v1/users/operator/reset", json={"reason": "forgot it"}).json
    once = made["one_time_password"]
    assert made["password_expires_at"] > controller.clock.now
    assert not works(controller, bearer)
    assert is_problem(controller.sign_in("operator"), 401)
    assert controller.sign_in("operator", once).json["one_time"]
    stuck = controller.client.get("/api/v1/devices", base_url=ORIGIN)
    assert is_problem(stuck, 403, "denied")
    assert controller.client.get("/", base_url=ORIGIN).headers["Location"] == "/password"
    body = {"user": "operator", "password": once, "name": "ci"}
    refused = controller.client.post("/api/v1/tokens", json=body, headers=OURS, base_url=ORIGIN)
    assert is_problem(refused, 401, "denied")
    change = {"old": once, "new": OWN}
    changed = controller.client.post(
        "/api/v1/me/password", json=change, headers=OURS, base_url=ORIGIN
    )
    assert changed.status_code == 200
    assert controller.client.get("/api/v1/devices", base_url=ORIGIN).status_code == 200
    assert once not in str(audit.list_audit(controller.ctx)[0])


def test_a_one_time_password_ends_after_a_day(controller: ControllerApp) -> None:
    made = controller.post("/api/v1/users", json={"name": "ana", "role": "viewer"}).json
    controller.clock.now += users.ONE_TIME_S + 1
    assert is_problem(controller.sign_in("ana", made["one_time_password"]), 401)


def test_a_disabled_user_is_out_until_enabled_and_the_password_stays(
    controller: ControllerApp,
) -> None:
    bearer = token_of(controller, "operator")
    controller.sign_in("operator")
    assert controller.post("/api/v1/users/operator/disable", json={}).status_code == 200
    assert not works(controller, bearer)
    assert is_problem(controller.client.get("/api/v1/me", base_url=ORIGIN), 401)
    assert is_problem(controller.sign_in("operator"), 401)
    assert controller.post("/api/v1/users/operator/enable", json={}).status_code == 200
    assert works(controller, bearer)
    assert controller.sign_in("operator").status_code == 201


def test_another_role_holds_for_the_next_request_of_a_session_and_of_a_token(
    controller: ControllerApp,
) -> None:
    bearer = token_of(controller, "approver")
    body = {"role": "viewer", "reason": "left the team"}
    assert controller.post("/api/v1/users/approver/role", json=body).json["role"] == "viewer"
    me = controller.client.get("/api/v1/me", headers=bearer).json
    assert me["role"] == "viewer"
    entry = audit.list_audit(controller.ctx, subject="approver")[0][0]
    assert entry.detail == {"before": "approver", "after": "viewer", "reason": "left the team"}


@pytest.mark.parametrize("verb", ["disable", "role", "remove"])
def test_the_last_admin_who_can_sign_in_stays_an_admin(
    controller: ControllerApp, verb: str
) -> None:
    users.add_user(controller.ctx, actor="t", name="second", role="admin", password=PASSWORD)
    assert controller.post("/api/v1/users/second/disable", json={}).status_code == 200
    path, body = f"/api/v1/users/admin/{verb}", {"role": "viewer"} if verb == "role" else {}
    if verb == "remove":
        answer = controller.request("DELETE", "/api/v1/users/admin")
    else:
        answer = controller.post(path, json=body)
    assert is_problem(answer, 409, "conflict")


def test_revoke_all_ends_sessions_and_tokens_and_says_how_many(controller: ControllerApp) -> None:
    bearer = token_of(controller, "viewer")
    controller.sign_in("viewer")
    ended = controller.post("/api/v1/users/viewer/revoke", json={"reason": "stolen"}).json
    assert ended == {"sessions": 1, "tokens": 1}
    assert not works(controller, bearer)
    assert controller.sign_in("viewer").status_code == 201


def test_a_new_password_ends_other_tokens_unless_they_are_kept(controller: ControllerApp) -> None:
    mine, other = token_of(controller, "operator"), token_of(controller, "operator")
    change = {"old": PASSWORD, "new": OWN, "keep_tokens": True}
    answer = controller.client.post("/api/v1/me/password", json=change, headers=mine)
    assert answer.json == {"sessions": 0, "tokens": 0}
    change = {"old": OWN, "new": PASSWORD}
    answer = controller.client.post("/api/v1/me/password", json=change, headers=mine)
    assert answer.json["tokens"] == 1
    assert works(controller, mine)
    assert not works(controller, other)


def test_sessions_are_listed_with_where_they_come_from_and_ended_by_their_owner(
    controller: ControllerApp,
) -> None:
    controller.sign_in("viewer", headers={**OURS, "User-Agent": "Tablet"})
    [found] = controller.get("/api/v1/sessions", "viewer").json["items"]
    assert (found["user"], found["address"], found["agent"]) == ("viewer", "127.0.0.1", "Tablet")
    path = f"/api/v1/sessions/{found['id']}"
    assert is_problem(controller.request("DELETE", path, "operator"), 404)
    assert controller.request("DELETE", path, "viewer").status_code == 204
    assert is_problem(controller.client.get("/api/v1/me", base_url=ORIGIN), 401)


def test_an_admin_sees_every_user_with_sessions_and_tokens(controller: ControllerApp) -> None:
    token_of(controller, "viewer")
    controller.sign_in("viewer")
    found = {u["name"]: u for u in controller.get("/api/v1/users").json["items"]}
    assert (found["viewer"]["sessions"], found["viewer"]["tokens"]) == (1, 1)
    assert found["viewer"]["seen_at"] == controller.clock.now


def test_a_token_with_a_scope_is_for_its_models_and_sites_and_nothing_else(
    controller: ControllerApp,
) -> None:
    controller.enrol("cam-1", controller.join_token(site="north"))
    controller.enrol("cam-2", controller.join_token(site="south"))
    site = token_of(controller, "admin", sites=["north"])
    model = token_of(controller, "admin", models=["parts"])

    def status(headers: dict[str, str], method: str, path: str, body: Any = None) -> int:
        more = {"json": body} if body is not None else {}
        return controller.client.open(path, method=method, headers=headers, **more).status_code

    assert status(site, "GET", "/api/v1/devices/cam-1") == 200
    assert status(site, "GET", "/api/v1/devices/cam-2") == 403
    assert status(site, "GET", "/api/v1/devices") == 403
    assert status(site, "GET", "/api/v1/devices?site=north") == 200
    assert status(site, "POST", "/api/v1/join-tokens", {"site": "north"}) == 201
    assert status(site, "POST", "/api/v1/join-tokens", {"site": "south"}) == 403
    assert status(site, "POST", "/api/v1/folders", {"site": "north", "devices": ["cam-2"]}) == 403
    assert status(site, "POST", "/api/v1/rollouts", {"release": "parts@1", "stages": []}) == 403
    assert status(model, "GET", "/api/v1/releases?model=parts") == 200
    assert status(model, "GET", "/api/v1/releases?model=other") == 403
    assert status(model, "GET", "/api/v1/releases/parts@1") == 404
    assert status(model, "GET", "/api/v1/releases/other@1") == 403
    assert status(model, "POST", "/api/v1/models/other/retire", {}) == 403
    for path in ("/api/v1/users", "/api/v1/audit", "/api/v1/stream", "/", "/people"):
        assert status(model, "GET", path) == 403, path
    me = controller.client.get("/api/v1/me", headers=model).json
    assert (me["models"], me["sites"]) == (["parts"], [])


def test_an_unknown_user_or_session_is_an_error_that_names_the_next_step(
    controller: ControllerApp,
) -> None:
    with pytest.raises(AbsentError, match="shoal user list"):
        users.set_role(controller.ctx, actor="t", name="nobody", role="viewer")
    assert is_problem(controller.request("DELETE", "/api/v1/sessions/0"), 404)


def test_people_in_the_console_for_an_admin_and_for_a_viewer(controller: ControllerApp) -> None:
    controller.sign_in("viewer", "wrong")
    controller.sign_in("viewer")
    page = controller.client.get("/people", base_url=ORIGIN).text
    assert "wrong password" in page
    assert "Add a user" not in page
    assert is_problem_page(controller.client.post("/people/users", base_url=ORIGIN, headers=OURS))
    controller.sign_in("admin")
    form = {"name": "ana", "role": "operator"}
    page = controller.client.post("/people/users", data=form, base_url=ORIGIN, headers=OURS).text
    once = page.partition('id="shown-secret" tabindex="0">')[2].partition("<")[0]
    assert controller.sign_in("ana", once).json["one_time"]


def is_problem_page(response: Any) -> bool:
    return response.status_code == 403 and response.mimetype == "text/html"
