"""Responses are compressed for who asks; a live update is the screen without its frame."""

import gzip
from typing import Any

from api.controller_app import ORIGIN, ControllerApp
from plant import Large

GZIP = {"Accept-Encoding": "gzip, br"}


def get(app: ControllerApp, path: str, **headers: str) -> Any:
    return app.client.get(path, base_url=ORIGIN, headers={**GZIP, **headers})


def test_a_page_and_a_list_are_sent_as_gzip_and_hold_the_same(large: Large) -> None:
    for path in ("/rollouts", "/api/v1/rollouts", "/assets/console.css"):
        plain = large.app.client.get(path, base_url=ORIGIN)
        answer = get(large.app, path)
        assert answer.headers["Content-Encoding"] == "gzip"
        assert "Accept-Encoding" in answer.headers["Vary"]
        assert int(answer.headers["Content-Length"]) == len(answer.data) < len(plain.data) / 3
        assert gzip.decompress(answer.data) == plain.data
        assert "Content-Encoding" not in plain.headers


def test_a_list_that_has_not_changed_is_not_sent_again(large: Large) -> None:
    first = get(large.app, "/api/v1/models")
    assert first.headers["ETag"].startswith("W/")
    again = get(large.app, "/api/v1/models", **{"If-None-Match": first.headers["ETag"]})
    assert (again.status_code, again.data) == (304, b"")


def test_short_refused_and_secret_responses_are_sent_as_they_are(
    controller: ControllerApp,
) -> None:
    assert "Content-Encoding" not in get(controller, "/healthz").headers
    none = controller.get("/openapi.json", headers={"Accept-Encoding": "gzip;q=0"})
    assert "Content-Encoding" not in none.headers
    token = controller.post("/api/v1/join-tokens", json={"site": "x" * 60}, headers=GZIP)
    assert token.status_code == 201
    assert "Content-Encoding" not in token.headers


def test_a_live_update_is_the_screen_without_its_frame(large: Large) -> None:
    whole = large.app.client.get("/fleet", base_url=ORIGIN).get_data(as_text=True)
    live = {"HX-Request": "true"}
    part = large.app.client.get("/fleet", base_url=ORIGIN, headers=live).get_data(as_text=True)
    for kept in ('id="devices"', 'id="health"', 'id="alert-badge"', 'id="main"', "<title>Fleet"):
        assert kept in part, kept
        assert kept in whole, kept
    assert "<nav class" not in part.partition('id="main"')[0]
    restored = live | {"HX-History-Restore-Request": "true"}
    back = large.app.client.get("/fleet", base_url=ORIGIN, headers=restored)
    assert "<!doctype html>" in back.get_data(as_text=True)
