"""Attacks on accounts: guessing, locking others out, stolen sessions, invented addresses."""

from typing import Any

import msgspec
import pytest

from api.controller_app import ORIGIN, PASSWORD, ControllerApp, is_problem
from shoal.controller.access import audit, known_browsers, sessions
from shoal.controller.access.login_attempts import origin_of
from shoal.controller.app import create_app

OURS = {"Sec-Fetch-Site": "same-origin"}


def sign_in(controller: ControllerApp, name: str, password: str, address: str, **more: Any) -> Any:
    """Sign in from an address, with a client that has no cookie of before."""
    client = more.pop("client", None) or controller.app.test_client()
    body = {"user": name, "password": password}
    return client.post(
        "/api/v1/session", json=body, base_url=ORIGIN, headers={**OURS, **more},
        environ_base={"REMOTE_ADDR": address},
    )  # fmt: skip


def network(controller: ControllerApp, **settings: Any) -> Any:
    """A client of the same controller with other network settings."""
    changed = msgspec.structs.replace(controller.ctx.settings.network, **settings)
    fresh = msgspec.structs.replace(controller.ctx.settings, network=changed)
    return create_app(controller.ctx._replace(settings=fresh)).test_client()


def test_guesses_at_an_account_lock_out_the_guesser_and_nobody_else(
    controller: ControllerApp,
) -> None:
    for _ in range(5):
        sign_in(controller, "admin", "guess", "203.0.113.9")
    assert is_problem(sign_in(controller, "admin", PASSWORD, "203.0.113.9"), 429)
    assert sign_in(controller, "admin", PASSWORD, "10.0.0.1").status_code == 201
    assert sign_in(controller, "viewer", PASSWORD, "203.0.113.9").status_code == 201


def test_a_botnet_cannot_lock_out_who_has_signed_in_before_or_holds_a_token(
    controller: ControllerApp,
) -> None:
    browser = controller.app.test_client()
    assert sign_in(controller, "admin", PASSWORD, "10.0.0.1", client=browser).status_code == 201
    attempts = controller.app.extensions["shoal-services"].attempts
    for i in range(60):
        attempts.begin(origin_of("admin", f"203.0.113.{i}"), controller.clock.now)
    assert is_problem(sign_in(controller, "admin", PASSWORD, "198.51.100.1"), 429)
    assert sign_in(controller, "admin", PASSWORD, "198.51.100.1", client=browser).status_code == 201
    bearer = controller.bearer("admin")
    assert sign_in(controller, "admin", PASSWORD, "198.51.100.1", **bearer).status_code == 201
    other = controller.bearer("viewer")
    assert is_problem(sign_in(controller, "admin", PASSWORD, "198.51.100.1", **other), 429)


def test_one_guesser_behind_a_nat_does_not_lock_out_its_neighbours(
    controller: ControllerApp,
) -> None:
    nat, neighbour = "192.0.2.1", controller.app.test_client()
    assert sign_in(controller, "viewer", PASSWORD, nat, client=neighbour).status_code == 201
    attempts = controller.app.extensions["shoal-services"].attempts
    for i in range(29):
        attempts.begin(origin_of(f"user-{i}", nat), controller.clock.now)
    assert is_problem(sign_in(controller, "nobody", "guess", nat), 401)
    assert is_problem(sign_in(controller, "operator", PASSWORD, nat), 429)
    assert sign_in(controller, "viewer", PASSWORD, nat, client=neighbour).status_code == 201


def test_signing_in_as_oneself_does_not_refill_the_guesses_at_another(
    controller: ControllerApp,
) -> None:
    for _ in range(5):
        sign_in(controller, "admin", "guess", "192.0.2.1")
        assert sign_in(controller, "viewer", PASSWORD, "192.0.2.1").status_code == 201
    assert is_problem(sign_in(controller, "admin", PASSWORD, "192.0.2.1"), 429)


def test_the_cookie_of_a_known_browser_opens_nothing_and_cannot_be_made(
    controller: ControllerApp,
) -> None:
    answer = sign_in(controller, "admin", PASSWORD, "10.0.0.1")
    cookies = answer.headers.getlist("Set-Cookie")
    [value] = [c.split("=", 1)[1].split(";")[0] for c in cookies if "shoal-browser" in c]
    client = controller.app.test_client()
    client.set_cookie(known_browsers.COOKIE, value, secure=True)
    assert is_problem(client.get("/api/v1/me", base_url=ORIGIN), 401)
    nonce = value.partition(".")[0]
    assert known_browsers.browser_of(f"{nonce}.{'0' * 64}", "admin", "hash") == ""


@pytest.mark.parametrize("by", ["session", "token"])
def test_a_stolen_session_or_token_alone_makes_no_token(controller: ControllerApp, by: str) -> None:
    controller.sign_in("admin")
    headers = controller.bearer("admin") if by == "token" else OURS
    refused = controller.client.post(
        "/api/v1/tokens", json={"name": "mine"}, base_url=ORIGIN, headers=headers
    )
    assert is_problem(refused, 403, "denied")
    assert "password again" in refused.json["detail"]


def test_a_session_that_was_there_before_signing_in_is_not_taken_over(
    controller: ControllerApp,
) -> None:
    controller.client.set_cookie(sessions.COOKIE, "chosen-by-an-attacker", secure=True)
    fresh = controller.sign_in("admin").headers.getlist("Set-Cookie")
    assert all("chosen-by-an-attacker" not in cookie for cookie in fresh)


def test_an_invented_forwarding_header_changes_nothing_but_from_a_trusted_proxy(
    controller: ControllerApp,
) -> None:
    forwarded = {"X-Forwarded-For": "198.51.100.7, 203.0.113.9", "X-Forwarded-Host": "evil.example"}
    assert sign_in(controller, "viewer", PASSWORD, "10.0.0.1", **forwarded).status_code == 201
    assert audit.list_audit(controller.ctx)[0][0].address == "10.0.0.1"
    behind = network(controller, trusted_proxies=["10.0.0.0/8"], hosts=["shoal.example.org"])
    forwarded["X-Forwarded-Host"] = "shoal.example.org"
    answer = sign_in(controller, "viewer", PASSWORD, "10.0.0.1", client=behind, **forwarded)
    assert answer.status_code == 201
    assert audit.list_audit(controller.ctx)[0][0].address == "203.0.113.9"


def test_another_host_name_is_refused_but_for_probes(controller: ControllerApp) -> None:
    def status(client: Any, path: str) -> int:
        return client.get(path, base_url="https://rebound.example:8443").status_code

    assert status(controller.client, "/api/v1/me") == 422
    assert status(controller.client, "/sign-in") == 422
    assert status(controller.client, "/healthz") == 200
    assert status(network(controller, hosts=["*.example"]), "/sign-in") == 200


def test_metrics_are_for_a_role_unless_they_are_opened(controller: ControllerApp) -> None:
    assert is_problem(controller.client.get("/metrics"), 401)
    assert network(controller, open_metrics=True).get("/metrics").status_code == 200


def test_refused_sign_ins_are_audited_once_a_block_and_hold_no_typed_name(
    controller: ControllerApp,
) -> None:
    sign_in(controller, "my-password-in-the-wrong-field", "x", "203.0.113.9")
    for _ in range(20):
        sign_in(controller, "admin", "guess", "203.0.113.9")
    entries = [e for e in audit.list_audit(controller.ctx)[0] if e.verb == "user.sign-in-refused"]
    assert [e.actor for e in entries] == ["admin"] * 6 + [""]
    assert "too many" in entries[0].detail["reason"]
    assert {e.address for e in entries} == {"203.0.113.9"}
    assert "my-password" not in str(entries)
