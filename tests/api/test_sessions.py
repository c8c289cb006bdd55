"""Signing in, staying in, being thrown out."""

import logging
from typing import Any

import msgspec
import pytest

from api.controller_app import ORIGIN, PASSWORD, ControllerApp, is_problem
from shoal.controller.access import audit, sessions, users
from shoal.controller.app import create_app
from shoal.controller.store.tables import api_token, session, user
from shoal.errors import ConflictError, SettingError

TOKEN = {"name": "ci", "password": PASSWORD}
OURS = {"Sec-Fetch-Site": "same-origin"}


def sign_out(controller: ControllerApp, headers: dict[str, str]) -> Any:
    return controller.client.delete("/api/v1/session", base_url=ORIGIN, headers=headers)


def me(controller: ControllerApp) -> Any:
    return controller.client.get("/api/v1/me", base_url=ORIGIN)


def test_signing_in_gives_a_cookie_that_only_our_own_pages_send(controller: ControllerApp) -> None:
    response = controller.sign_in("operator")
    cookie = response.headers["Set-Cookie"]
    assert response.status_code == 201
    assert cookie.startswith("__Host-shoal=")
    for flag in ("Secure", "HttpOnly", "SameSite=Strict", "Path=/", "Max-Age=43200"):
        assert flag in cookie
    assert "Domain" not in cookie
    assert me(controller).json | {"name": "operator", "role": "operator", "via": "session"} == (
        me(controller).json
    )


def test_a_wrong_address_is_an_error_screen_for_a_browser_and_a_problem_for_a_program(
    controller: ControllerApp,
) -> None:
    def ask(path: str, accept: str) -> Any:
        return controller.client.get(path, base_url=ORIGIN, headers={"Accept": accept})

    browser = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"
    assert ask("/device/cam-1", browser).headers["Location"].startswith("/sign-in?next=")
    controller.sign_in()
    shown = ask("/device/cam-1", browser)
    assert (shown.status_code, shown.mimetype) == (404, "text/html")
    assert "No screen at &#39;/device/cam-1&#39;." in shown.text
    assert shown.headers["Cache-Control"] == "no-store"
    assert is_problem(ask("/device/cam-1", "*/*"), 404)
    assert is_problem(ask("/api/v1/device", browser), 404)


def test_what_is_stored_of_a_secret_does_not_open_the_door(controller: ControllerApp) -> None:
    secret = controller.sign_in().headers["Set-Cookie"].split("=", 1)[1].split(";")[0]
    bearer = controller.post("/api/v1/tokens", json=TOKEN).json["secret"]
    with controller.ctx.store.read() as db:
        stored = str([db.execute(t.select()).all() for t in (session, api_token, user)])
    assert secret not in stored
    assert bearer.rpartition("_")[2] not in stored
    assert PASSWORD not in stored


@pytest.mark.parametrize(("name", "password"), [("admin", "wrong"), ("nobody", PASSWORD), ("", "")])
def test_a_wrong_password_and_an_unknown_user_get_the_same_problem(
    controller: ControllerApp, name: str, password: str
) -> None:
    response = controller.sign_in(name, password)
    assert is_problem(response, 401, "denied")
    assert response.json["detail"] == "user or password is wrong"


def test_after_five_wrong_passwords_even_the_right_one_has_to_wait(
    controller: ControllerApp,
) -> None:
    for _ in range(5):
        assert is_problem(controller.sign_in("admin", "wrong"), 401)
    response = controller.sign_in()
    assert is_problem(response, 429)
    assert 0 < int(response.headers["Retry-After"]) <= 60
    assert controller.sign_in("viewer").status_code == 201
    controller.clock.now += 61
    assert controller.sign_in().status_code == 201


def test_a_guesser_of_tokens_and_of_the_old_password_waits_as_well(
    controller: ControllerApp,
) -> None:
    guess = {"user": "admin", "password": "wrong", "name": "x"}
    for _ in range(5):
        assert is_problem(controller.client.post("/api/v1/tokens", json=guess), 401)
    assert is_problem(controller.client.post("/api/v1/tokens", json=guess), 429)
    old = {"user": "admin", "old": "wrong", "new": "another long password"}
    assert is_problem(controller.client.post("/api/v1/me/password", json=old), 429)


def test_each_further_wrong_password_waits_twice_as_long(controller: ControllerApp) -> None:
    for _ in range(5):
        controller.sign_in("admin", "wrong")
    waits = []
    for _ in range(4):
        waits.append(int(controller.sign_in().headers["Retry-After"]))
        controller.clock.now += waits[-1] + 1
        assert is_problem(controller.sign_in("admin", "wrong"), 401)
    assert waits == [60, 120, 240, 480]


def test_a_session_ends_when_one_signs_out_and_by_itself_after_twelve_hours(
    controller: ControllerApp,
) -> None:
    controller.sign_in()
    kept = controller.client.get_cookie(sessions.COOKIE)
    assert kept is not None
    assert sign_out(controller, OURS).status_code == 204
    controller.client.set_cookie(sessions.COOKIE, kept.value, secure=True)
    assert is_problem(me(controller), 401)
    controller.sign_in()
    controller.clock.now += sessions.SESSION_S + 1
    assert is_problem(me(controller), 401)


FORGED = [
    ({}, False),
    ({"Origin": ORIGIN}, True),
    ({"Origin": "https://evil.example"}, False),
    ({"Origin": "http://localhost"}, False),
    ({"Origin": "null"}, False),
    ({"Sec-Fetch-Site": "same-origin"}, True),
    ({"Sec-Fetch-Site": "none"}, True),
    ({"Sec-Fetch-Site": "same-site"}, False),
    ({"Sec-Fetch-Site": "cross-site"}, False),
    ({"Sec-Fetch-Site": "cross-site", "Origin": ORIGIN}, False),
]


@pytest.mark.parametrize(("headers", "passes"), FORGED)
def test_a_session_acts_only_from_our_own_pages(
    controller: ControllerApp, headers: dict[str, str], passes: bool
) -> None:
    controller.sign_in("admin")
    response = controller.client.post(
        "/api/v1/join-tokens", base_url=ORIGIN, json={"site": "north"}, headers=headers
    )
    if passes:
        assert response.status_code == 201
    else:
        assert is_problem(response, 403, "denied")
    assert me(controller).status_code == 200


def test_another_site_cannot_sign_a_visitor_in_as_another_user(controller: ControllerApp) -> None:
    assert is_problem(controller.sign_in(headers={"Origin": "https://evil.example"}), 403)


def test_a_request_with_a_token_needs_no_browser_headers(controller: ControllerApp) -> None:
    response = controller.post(
        "/api/v1/join-tokens", json={"site": "n"}, headers={"Origin": "https://elsewhere.example"}
    )
    assert response.status_code == 201


def test_a_revoked_token_ends_at_once(controller: ControllerApp) -> None:
    made = controller.post("/api/v1/tokens", "viewer", json=TOKEN).json
    bearer = {"Authorization": f"Bearer {made['secret']}"}
    assert controller.client.get("/api/v1/me", headers=bearer).status_code == 200
    assert is_problem(controller.request("DELETE", f"/api/v1/tokens/{made['id']}", "operator"), 404)
    assert controller.request("DELETE", f"/api/v1/tokens/{made['id']}", "viewer").status_code == 204
    assert is_problem(controller.client.get("/api/v1/me", headers=bearer), 401)


def test_a_token_expires(controller: ControllerApp) -> None:
    made = controller.post("/api/v1/tokens", "viewer", json={**TOKEN, "ttl_s": 60}).json
    controller.clock.now += 61
    bearer = {"Authorization": f"Bearer {made['secret']}"}
    assert is_problem(controller.client.get("/api/v1/me", headers=bearer), 401)


@pytest.mark.parametrize(
    "header", ["Bearer", "Bearer x", "Basic YWRtaW46eA==", "Bearer shoal_000000000000_" + "A" * 43]
)
def test_an_invalid_token_is_refused_even_by_a_public_route(
    controller: ControllerApp, header: str
) -> None:
    assert is_problem(controller.client.get("/ca.pem", headers={"Authorization": header}), 401)


def test_a_removed_user_is_out_everywhere(controller: ControllerApp) -> None:
    controller.sign_in("operator")
    bearer = controller.bearer("operator")
    assert controller.request("DELETE", "/api/v1/users/operator").status_code == 204
    assert is_problem(me(controller), 401)
    assert is_problem(controller.client.get("/api/v1/me", headers=bearer), 401)


def test_the_last_admin_stays(controller: ControllerApp) -> None:
    assert is_problem(controller.request("DELETE", "/api/v1/users/admin"), 409)


def test_a_new_password_ends_the_other_sessions(controller: ControllerApp) -> None:
    controller.sign_in("viewer")
    other = controller.app.test_client()
    body = {"user": "viewer", "password": PASSWORD}
    assert other.post("/api/v1/session", json=body, base_url=ORIGIN).status_code == 201
    change = {"old": PASSWORD, "new": "another long password"}
    response = controller.client.post(
        "/api/v1/me/password", json=change, base_url=ORIGIN, headers=OURS
    )
    assert (response.status_code, response.json) == (200, {"sessions": 1, "tokens": 0})
    assert me(controller).status_code == 200
    assert is_problem(other.get("/api/v1/me", base_url=ORIGIN), 401)
    assert is_problem(controller.sign_in("viewer"), 401)


@pytest.mark.parametrize(
    ("name", "role", "password"),
    [("x y", "viewer", PASSWORD), ("x", "boss", PASSWORD), ("x", "viewer", "short"), ("", "", "")],
)
def test_an_invalid_user_is_refused(
    controller: ControllerApp, name: str, role: str, password: str
) -> None:
    with pytest.raises(SettingError):
        users.add_user(controller.ctx, actor="test", name=name, role=role, password=password)


def test_the_first_admin_is_made_once(controller: ControllerApp) -> None:
    with pytest.raises(ConflictError, match="user exists already"):
        users.first_admin(controller.ctx)


def test_no_secret_reaches_the_log_or_the_audit(
    controller: ControllerApp, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        secret = controller.sign_in().headers["Set-Cookie"].split("=", 1)[1].split(";")[0]
        token = controller.post("/api/v1/tokens", json=TOKEN).json["secret"]
        joining = controller.join_token()
        controller.sign_in("admin", "a wrong guess")
    entries = str(audit.list_audit(controller.ctx)[0])
    for hidden in (PASSWORD, secret, token, joining, "a wrong guess"):
        assert hidden not in caplog.text
        assert hidden not in entries
    assert audit.verify(controller.ctx) > 0


def test_every_response_has_the_security_headers(controller: ControllerApp) -> None:
    network = msgspec.structs.replace(controller.ctx.settings.network, hosts=["shoal.example"])
    settings = msgspec.structs.replace(controller.ctx.settings, network=network)
    client = create_app(controller.ctx._replace(settings=settings)).test_client()
    for path in ("/healthz", "/api/v1/me", "/api/v1/nothing"):
        headers = client.get(path, base_url="https://shoal.example:8443").headers
        policy = headers["Content-Security-Policy"]
        assert "default-src 'self'" in policy
        assert "script-src 'self'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert "max-age" in headers["Strict-Transport-Security"]
        assert headers["Referrer-Policy"] == "same-origin"
        assert "camera=()" in headers["Permissions-Policy"]


def test_a_controller_on_localhost_does_not_bind_other_servers_there_to_https(
    controller: ControllerApp,
) -> None:
    answer = controller.client.get("/healthz", base_url="https://localhost:8443")
    assert "Strict-Transport-Security" not in answer.headers
