"""Signing in, staying in, being thrown out."""

import logging
from typing import Any

import pytest

from api.world import ORIGIN, PASSWORD, World, is_problem
from shoal.controller.access import audit, sessions, users
from shoal.controller.store.tables import api_token, session, user
from shoal.errors import ConflictError, SettingError

OURS = {"Sec-Fetch-Site": "same-origin"}


def sign_out(world: World, headers: dict[str, str]) -> Any:
    return world.client.delete("/api/v1/session", base_url=ORIGIN, headers=headers)


def me(world: World) -> Any:
    return world.client.get("/api/v1/me", base_url=ORIGIN)


def test_signing_in_gives_a_cookie_that_only_our_own_pages_send(world: World) -> None:
    response = world.sign_in("operator")
    cookie = response.headers["Set-Cookie"]
    assert response.status_code == 201
    assert cookie.startswith("__Host-shoal=")
    for flag in ("Secure", "HttpOnly", "SameSite=Strict", "Path=/", "Max-Age=43200"):
        assert flag in cookie
    assert "Domain" not in cookie
    assert me(world).json == {"name": "operator", "role": "operator", "via": "session"}


def test_at_a_wrong_address_a_browser_is_shown_a_screen_and_a_program_is_told_a_problem(
    world: World,
) -> None:
    def ask(path: str, accept: str) -> Any:
        return world.client.get(path, base_url=ORIGIN, headers={"Accept": accept})

    browser = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"
    assert ask("/device/cam-1", browser).headers["Location"].startswith("/sign-in?next=")
    world.sign_in()
    shown = ask("/device/cam-1", browser)
    assert (shown.status_code, shown.mimetype) == (404, "text/html")
    assert "No screen at &#39;/device/cam-1&#39;." in shown.text
    assert shown.headers["Cache-Control"] == "no-store"
    assert is_problem(ask("/device/cam-1", "*/*"), 404)
    assert is_problem(ask("/api/v1/device", browser), 404)


def test_what_is_stored_of_a_secret_does_not_open_the_door(world: World) -> None:
    secret = world.sign_in().headers["Set-Cookie"].split("=", 1)[1].split(";")[0]
    bearer = world.post("/api/v1/tokens", json={"name": "ci"}).json["secret"]
    with world.ctx.store.read() as db:
        stored = str([db.execute(t.select()).all() for t in (session, api_token, user)])
    assert secret not in stored
    assert bearer.rpartition("_")[2] not in stored
    assert PASSWORD not in stored


@pytest.mark.parametrize(("name", "password"), [("admin", "wrong"), ("nobody", PASSWORD), ("", "")])
def test_a_wrong_password_and_an_unknown_user_are_told_alike(
    world: World, name: str, password: str
) -> None:
    response = world.sign_in(name, password)
    assert is_problem(response, 401, "denied")
    assert response.json["detail"] == "user or password is wrong"


def test_after_five_wrong_passwords_even_the_right_one_has_to_wait(world: World) -> None:
    for _ in range(5):
        assert is_problem(world.sign_in("admin", "wrong"), 401)
    response = world.sign_in()
    assert is_problem(response, 429)
    assert 0 < int(response.headers["Retry-After"]) <= 60
    assert world.sign_in("viewer").status_code == 201
    world.clock.now += 61
    assert world.sign_in().status_code == 201


def test_a_guesser_of_tokens_and_of_the_old_password_waits_as_well(world: World) -> None:
    guess = {"user": "admin", "password": "wrong", "name": "x"}
    for _ in range(5):
        assert is_problem(world.client.post("/api/v1/tokens", json=guess), 401)
    assert is_problem(world.client.post("/api/v1/tokens", json=guess), 429)
    old = {"old": "wrong", "new": "another long password"}
    assert is_problem(world.post("/api/v1/me/password", json=old), 429)


def test_a_session_ends_when_one_signs_out_and_by_itself_after_twelve_hours(world: World) -> None:
    world.sign_in()
    kept = world.client.get_cookie(sessions.COOKIE)
    assert kept is not None
    assert sign_out(world, OURS).status_code == 204
    world.client.set_cookie(sessions.COOKIE, kept.value, secure=True)
    assert is_problem(me(world), 401)
    world.sign_in()
    world.clock.now += sessions.SESSION_S + 1
    assert is_problem(me(world), 401)


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
    world: World, headers: dict[str, str], passes: bool
) -> None:
    world.sign_in("admin")
    response = world.client.post(
        "/api/v1/join-tokens", base_url=ORIGIN, json={"site": "north"}, headers=headers
    )
    if passes:
        assert response.status_code == 201
    else:
        assert is_problem(response, 403, "denied")
    assert me(world).status_code == 200


def test_another_site_cannot_sign_a_visitor_in_as_somebody_else(world: World) -> None:
    assert is_problem(world.sign_in(headers={"Origin": "https://evil.example"}), 403)


def test_a_token_needs_no_word_from_a_browser(world: World) -> None:
    response = world.post(
        "/api/v1/join-tokens", json={"site": "n"}, headers={"Origin": "https://elsewhere.example"}
    )
    assert response.status_code == 201


def test_a_revoked_token_ends_at_once(world: World) -> None:
    made = world.post("/api/v1/tokens", "viewer", json={"name": "ci"}).json
    bearer = {"Authorization": f"Bearer {made['secret']}"}
    assert world.client.get("/api/v1/me", headers=bearer).status_code == 200
    assert is_problem(world.ask("DELETE", f"/api/v1/tokens/{made['id']}", "operator"), 404)
    assert world.ask("DELETE", f"/api/v1/tokens/{made['id']}", "viewer").status_code == 204
    assert is_problem(world.client.get("/api/v1/me", headers=bearer), 401)


def test_a_token_expires(world: World) -> None:
    made = world.post("/api/v1/tokens", "viewer", json={"name": "ci", "ttl_s": 60}).json
    world.clock.now += 61
    bearer = {"Authorization": f"Bearer {made['secret']}"}
    assert is_problem(world.client.get("/api/v1/me", headers=bearer), 401)


@pytest.mark.parametrize(
    "header", ["Bearer", "Bearer x", "Basic YWRtaW46eA==", "Bearer shoal_000000000000_" + "A" * 43]
)
def test_a_token_that_is_none_is_refused_even_where_nobody_need_sign_in(
    world: World, header: str
) -> None:
    assert is_problem(world.client.get("/ca.pem", headers={"Authorization": header}), 401)


def test_a_removed_user_is_out_everywhere(world: World) -> None:
    world.sign_in("operator")
    bearer = world.bearer("operator")
    assert world.ask("DELETE", "/api/v1/users/operator").status_code == 204
    assert is_problem(me(world), 401)
    assert is_problem(world.client.get("/api/v1/me", headers=bearer), 401)


def test_the_last_admin_stays(world: World) -> None:
    assert is_problem(world.ask("DELETE", "/api/v1/users/admin"), 409)


def test_a_new_password_ends_the_other_sessions(world: World) -> None:
    world.sign_in("viewer")
    other = world.app.test_client()
    body = {"user": "viewer", "password": PASSWORD}
    assert other.post("/api/v1/session", json=body, base_url=ORIGIN).status_code == 201
    change = {"old": PASSWORD, "new": "another long password"}
    response = world.client.post("/api/v1/me/password", json=change, base_url=ORIGIN, headers=OURS)
    assert response.status_code == 204
    assert me(world).status_code == 200
    assert is_problem(other.get("/api/v1/me", base_url=ORIGIN), 401)
    assert is_problem(world.sign_in("viewer"), 401)


@pytest.mark.parametrize(
    ("name", "role", "password"),
    [("x y", "viewer", PASSWORD), ("x", "boss", PASSWORD), ("x", "viewer", "short"), ("", "", "")],
)
def test_a_user_who_cannot_be_is_refused(world: World, name: str, role: str, password: str) -> None:
    with pytest.raises(SettingError):
        users.add_user(world.ctx, actor="test", name=name, role=role, password=password)


def test_the_first_admin_is_made_once(world: World) -> None:
    with pytest.raises(ConflictError, match="user exists already"):
        users.first_admin(world.ctx)


def test_no_secret_reaches_the_log_or_the_audit(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        secret = world.sign_in().headers["Set-Cookie"].split("=", 1)[1].split(";")[0]
        token = world.post("/api/v1/tokens", json={"name": "ci"}).json["secret"]
        joining = world.join_token()
        world.sign_in("admin", "a wrong guess")
    entries = str(audit.list_audit(world.ctx)[0])
    for hidden in (PASSWORD, secret, token, joining, "a wrong guess"):
        assert hidden not in caplog.text
        assert hidden not in entries
    assert audit.verify(world.ctx) > 0


def test_every_answer_tells_the_browser_to_be_careful(world: World) -> None:
    for path in ("/healthz", "/api/v1/me", "/api/v1/nothing"):
        headers = world.client.get(path, base_url="https://shoal.example:8443").headers
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
    world: World,
) -> None:
    answer = world.client.get("/healthz", base_url="https://localhost:8443")
    assert "Strict-Transport-Security" not in answer.headers
