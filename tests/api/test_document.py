"""The OpenAPI document is the API: nothing beside it, nothing missing from it."""

import re
from typing import Any

import pytest

from api.controller_app import ControllerApp
from shoal.controller.api import registry


@pytest.fixture
def document(controller: ControllerApp) -> dict[str, Any]:
    return controller.client.get("/openapi.json").json


def served(controller: ControllerApp) -> set[tuple[str, str]]:
    """(method, path) of every rule on the app that is not the console's."""
    found = set()
    for rule in controller.app.url_map.iter_rules():
        if rule.endpoint.startswith("web."):
            continue
        path = re.sub(r"<(?:[^:>]+:)?([^>]+)>", r"{\1}", rule.rule)
        found |= {(method, path) for method in (rule.methods or set()) - {"HEAD"}}
    return found


def test_every_route_is_documented_and_every_documented_route_is_there(
    controller: ControllerApp, document: dict[str, Any]
) -> None:
    documented = {(m.upper(), path) for path, verbs in document["paths"].items() for m in verbs}
    assert documented == served(controller)
    assert len(documented) > 45


def test_every_reference_in_the_document_leads_somewhere(document: dict[str, Any]) -> None:
    text = str(document)
    named = set(re.findall(r"#/components/schemas/(\w+)", text))
    assert named
    assert named <= set(document["components"]["schemas"])


def test_every_operation_declares_its_role_its_responses_and_its_problems(
    document: dict[str, Any],
) -> None:
    for verbs in document["paths"].values():
        for operation in verbs.values():
            assert operation["summary"].endswith((".", ",", ";"))
            assert operation["x-role"] in ("none", "viewer", "operator", "approver", "admin")
            assert bool(operation["security"]) == (operation["x-role"] != "none")
            assert any(status.startswith("2") for status in operation["responses"])
            for status, response in operation["responses"].items():
                if status.startswith(("4", "5")):
                    assert list(response["content"]) == ["application/problem+json"]


def test_path_parameters_are_those_of_the_path(document: dict[str, Any]) -> None:
    for path, verbs in document["paths"].items():
        for operation in verbs.values():
            told = {p["name"] for p in operation["parameters"] if p["in"] == "path"}
            assert told == set(re.findall(r"{(\w+)}", path))


def test_operation_ids_are_unique(document: dict[str, Any]) -> None:
    ids = [o["operationId"] for verbs in document["paths"].values() for o in verbs.values()]
    assert len(ids) == len(set(ids)) == len(registry.all_routes())
