"""Whatever is sent, the answer says what is wrong with it, and is never a bug's."""

import re
from typing import Any

import pytest

from api.controller_app import ControllerApp, is_problem
from shoal.controller.api import registry
from shoal.controller.api.routing import Route

BODIES = [
    b"", b"{", b"[]", b"null", b"1", b'"x"', b"\xff\xfe\x00", b"{}" * 3, b"[" * 5000,
    b'{"unheard-of": 1}', b'{"a": "\\ud800"}', b'{"a": NaN}', b'{"a": 1e999}',
]  # fmt: skip
WRONG = [None, True, -1, 2**70, 1e308, "", "x" * 5000, "\x00", "../../etc", "%", [], [[]], {"": {}}]
QUERIES = [
    "nan",
    "inf",
    "-1",
    "99999999999999999999",
    "\x00",
    "'; drop table device; --",
    "é" * 300,
]
PLACES = [
    "1",
    "no-such",
    "%00",
    "..%2f..%2fetc%2fpasswd",
    "a" * 3000,
    "%ff%fe",
    "x@-1",
    "x@9e9",
    "@",
]


def places(route: Route, value: str) -> str:
    return re.sub(r"<[^>]+>", value, route.path)


def named(route: Route) -> str:
    return f"{route.method} {route.path}"


ROUTES = [r for r in registry.all_routes() if r.name != "get_stream"]
WITH_BODY = [r for r in ROUTES if "body" in r.inputs]
WITH_QUERY = [r for r in ROUTES if "query" in r.inputs]
WITH_PLACE = [r for r in ROUTES if r.parameters]


def fields(kind: Any) -> tuple[str, ...]:
    return tuple(kind.__struct_fields__)


def told(response: Any) -> None:
    assert response.status_code < 500, response.get_data()
    if response.status_code >= 400:
        assert is_problem(response, response.status_code)


@pytest.mark.parametrize("route", WITH_BODY, ids=named)
def test_a_malformed_body_is_a_problem(controller: ControllerApp, route: Route) -> None:
    for body in BODIES:
        told(
            controller.request(
                route.method, places(route, "1"), data=body, content_type="application/json"
            )
        )


@pytest.mark.parametrize("route", WITH_BODY, ids=named)
def test_the_problem_names_a_field_of_the_wrong_type(
    controller: ControllerApp, route: Route
) -> None:
    names = fields(route.inputs["body"])
    for i, name in enumerate(names):
        for value in WRONG[i % 3 :: 3]:  # of many fields, each value comes to some
            told(controller.request(route.method, places(route, "1"), json={name: value}))
            plausible = dict.fromkeys(names, "x") | {name: value}
            told(controller.request(route.method, places(route, "1"), json=plausible))


@pytest.mark.parametrize("route", WITH_QUERY, ids=named)
def test_a_malformed_query_is_a_problem(controller: ControllerApp, route: Route) -> None:
    names = fields(route.inputs["query"])
    told(controller.request(route.method, places(route, "1"), query_string={"unheard-of": "1"}))
    for name in names:
        for value in QUERIES:
            rest = {n: "x" for n in ("model", "subject", "feature") if n in names}
            told(
                controller.request(
                    route.method, places(route, "1"), query_string=rest | {name: value}
                )
            )


@pytest.mark.parametrize("route", WITH_PLACE, ids=named)
def test_an_invalid_path_is_a_problem(controller: ControllerApp, route: Route) -> None:
    for value in PLACES:
        body = {"json": {}} if route.method != "GET" else {}
        told(controller.request(route.method, places(route, value), **body))


def test_an_unknown_field_is_refused_by_name(controller: ControllerApp) -> None:
    response = controller.post("/api/v1/join-tokens", json={"site": "north", "usess": 3})
    assert is_problem(response, 422, "bad-input")
    assert "usess" in response.json["detail"]


def test_a_misspelt_stage_does_not_roll_out_to_everybody(controller: ControllerApp) -> None:
    plan = {"release": "m@1", "stages": [{"name": "canary", "select": {"rings": "canary"}}]}
    response = controller.post("/api/v1/rollouts", json=plan)
    assert is_problem(response, 422, "bad-input")
    assert "rings" in response.json["detail"]


def test_a_body_of_another_media_type_is_refused(controller: ControllerApp) -> None:
    response = controller.post("/api/v1/join-tokens", data="site=north", content_type="text/plain")
    assert is_problem(response, 415)


@pytest.mark.parametrize("path", ["/api/v1/join-tokens", "/api/v1/rollouts"])
def test_a_body_above_the_limit_is_not_read(controller: ControllerApp, path: str) -> None:
    huge = b'{"site": "' + b"x" * (2 << 20) + b'"}'
    response = controller.post(path, data=huge, content_type="application/json")
    assert is_problem(response, 413)


def test_enrolment_reads_64_kib_and_no_more(controller: ControllerApp) -> None:
    response = controller.client.post("/api/v1/enrol", json={"token": "x" * 70_000})
    assert is_problem(response, 413)


def test_what_is_not_there_and_what_may_not_be_done_are_problems_too(
    controller: ControllerApp,
) -> None:
    assert is_problem(controller.get("/api/v1/nothing"), 404, "not-found")
    assert is_problem(controller.request("PATCH", "/api/v1/devices"), 405, "method-not-allowed")
    assert is_problem(controller.request("OPTIONS", "/api/v1/devices"), 405, "method-not-allowed")
