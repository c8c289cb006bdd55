"""Who may do what: every route, every role, against a table written by hand."""

import re

import pytest

from api.controller_app import PASSWORD, ControllerApp, is_problem
from shoal.controller.access.roles import ROLES
from shoal.controller.api import registry

TOKEN = {"name": "ci", "password": PASSWORD}
#: The least role for each route, or "" for everybody. A new route must be entered here.
LEAST = {
    "GET /healthz": "",
    "GET /readyz": "",
    "GET /metrics": "viewer",
    "GET /openapi.json": "",
    "GET /ca.pem": "",
    "POST /api/v1/enrol": "",
    "GET /api/v1/renew": "",
    "POST /api/v1/renew": "",
    "GET /api/v1/director-roots": "",
    "POST /api/v1/session": "",
    "POST /api/v1/tokens": "",
    "DELETE /api/v1/session": "viewer",
    "GET /api/v1/me": "viewer",
    "POST /api/v1/me/password": "",
    "GET /api/v1/sessions": "viewer",
    "DELETE /api/v1/sessions/{id}": "viewer",
    "GET /api/v1/tokens": "viewer",
    "DELETE /api/v1/tokens/{id}": "viewer",
    "GET /api/v1/users": "admin",
    "POST /api/v1/users": "admin",
    "DELETE /api/v1/users/{name}": "admin",
    "POST /api/v1/users/{name}/role": "admin",
    "POST /api/v1/users/{name}/reset": "admin",
    "POST /api/v1/users/{name}/disable": "admin",
    "POST /api/v1/users/{name}/enable": "admin",
    "POST /api/v1/users/{name}/revoke": "admin",
    "GET /api/v1/join-tokens": "operator",
    "POST /api/v1/join-tokens": "operator",
    "DELETE /api/v1/join-tokens/{id}": "operator",
    "GET /api/v1/devices": "viewer",
    "GET /api/v1/devices/{device}": "viewer",
    "GET /api/v1/devices/{device}/timeline": "viewer",
    "GET /api/v1/devices/{device}/windows": "viewer",
    "GET /api/v1/devices/{device}/ledger": "viewer",
    "POST /api/v1/devices/{device}/decommission": "operator",
    "GET /api/v1/mlflow": "viewer",
    "POST /api/v1/mlflow/follows": "approver",
    "DELETE /api/v1/mlflow/follows/{name}": "approver",
    "GET /api/v1/groups": "viewer",
    "POST /api/v1/groups": "operator",
    "GET /api/v1/groups/{group}": "viewer",
    "DELETE /api/v1/groups/{group}": "operator",
    "GET /api/v1/deviations": "viewer",
    "GET /api/v1/devices/{device}/desired": "viewer",
    "POST /api/v1/devices/{device}/pin": "operator",
    "POST /api/v1/devices/{device}/unpin": "operator",
    "POST /api/v1/devices/{device}/hold": "operator",
    "POST /api/v1/devices/{device}/release": "operator",
    "POST /api/v1/devices/{device}/exclude": "operator",
    "POST /api/v1/devices/{device}/include": "operator",
    "POST /api/v1/folders": "operator",
    "POST /api/v1/folders/parcels": "operator",
    "GET /api/v1/datasets": "viewer",
    "POST /api/v1/datasets": "operator",
    "GET /api/v1/datasets/{ref}": "viewer",
    "POST /api/v1/datasets/{name}/forget": "approver",
    "GET /api/v1/models": "viewer",
    "GET /api/v1/models/{model}": "viewer",
    "GET /api/v1/estimators": "viewer",
    "POST /api/v1/models/{model}/train": "operator",
    "POST /api/v1/models/{model}/script": "operator",
    "POST /api/v1/models/{model}/import-mlflow": "operator",
    "POST /api/v1/models/{model}/import": "operator",
    "POST /api/v1/models/inspect": "operator",
    "PUT /api/v1/models/{model}/policy": "operator",
    "GET /api/v1/releases": "viewer",
    "GET /api/v1/releases/{ref}": "viewer",
    "GET /api/v1/releases/{ref}/bom": "viewer",
    "GET /api/v1/releases/{ref}/provenance": "viewer",
    "GET /api/v1/releases/{ref}/archive": "operator",
    "POST /api/v1/releases/{ref}/publish": "approver",
    "GET /api/v1/releases/{ref}/dependents": "viewer",
    "DELETE /api/v1/releases/{ref}": "approver",
    "GET /api/v1/models/{model}/dependents": "viewer",
    "DELETE /api/v1/models/{model}": "approver",
    "GET /api/v1/datasets/{ref}/thumbnails/{index}": "viewer",
    "GET /api/v1/datasets/{ref}/report": "viewer",
    "GET /api/v1/datasets/{ref}/diff": "viewer",
    "GET /api/v1/datasets/{ref}/dependents": "viewer",
    "DELETE /api/v1/datasets/{ref}": "approver",
    "POST /api/v1/releases/{ref}/retire": "operator",
    "POST /api/v1/releases/{ref}/revoke": "admin",
    "POST /api/v1/releases/{ref}/unretire": "operator",
    "POST /api/v1/models/{model}/retire": "operator",
    "POST /api/v1/models/{model}/unretire": "operator",
    "GET /api/v1/rollouts": "viewer",
    "POST /api/v1/rollouts": "operator",
    "GET /api/v1/rollouts/{id}": "viewer",
    "GET /api/v1/rollouts/{id}/devices": "viewer",
    "GET /api/v1/rollouts/{id}/failures": "viewer",
    "GET /api/v1/rollouts/{id}/evidence": "viewer",
    "GET /api/v1/rollouts/{id}/receipts": "viewer",
    "POST /api/v1/rollouts/{id}/replay": "viewer",
    "POST /api/v1/rollouts/{id}/approve": "approver",
    "POST /api/v1/rollouts/{id}/pause": "operator",
    "POST /api/v1/rollouts/{id}/resume": "operator",
    "POST /api/v1/rollouts/{id}/abort": "operator",
    "POST /api/v1/models/{model}/undeploy": "operator",
    "GET /api/v1/undeployments": "viewer",
    "GET /api/v1/undeployments/{id}": "viewer",
    "GET /api/v1/undeployments/{id}/devices": "viewer",
    "POST /api/v1/undeployments/{id}/cancel": "operator",
    "GET /api/v1/tasks": "viewer",
    "POST /api/v1/tasks": "operator",
    "GET /api/v1/tasks/{task}": "viewer",
    "GET /api/v1/tasks/{task}/participations": "viewer",
    "POST /api/v1/tasks/{task}/start": "operator",
    "POST /api/v1/tasks/{task}/abort": "operator",
    "POST /api/v1/tasks/{task}/release": "operator",
    "POST /api/v1/tasks/{task}/evaluate": "operator",
    "POST /api/v1/tasks/{task}/quarantine": "operator",
    "POST /api/v1/tasks/{task}/quarantine/lift": "admin",
    "GET /api/v1/rounds": "viewer",
    "GET /api/v1/rounds/{id}": "viewer",
    "GET /api/v1/rounds/{id}/devices": "viewer",
    "GET /api/v1/fleet": "viewer",
    "GET /api/v1/needs": "viewer",
    "GET /api/v1/drift": "viewer",
    "GET /api/v1/drift/subjects": "viewer",
    "GET /api/v1/drift/histogram": "viewer",
    "GET /api/v1/drift/baseline": "viewer",
    "GET /api/v1/drift/explanation": "viewer",
    "GET /api/v1/drift/baselines": "viewer",
    "GET /api/v1/drift/baselines/changes": "viewer",
    "POST /api/v1/drift/baselines/changes": "operator",
    "GET /api/v1/drift/baselines/changes/{id}": "viewer",
    "GET /api/v1/findings": "viewer",
    "GET /api/v1/performance": "viewer",
    "GET /api/v1/performance/map": "viewer",
    "GET /api/v1/alerts": "viewer",
    "GET /api/v1/alerts/counts": "viewer",
    "GET /api/v1/alerts/{id}": "viewer",
    "GET /api/v1/alerts/{id}/history": "viewer",
    "GET /api/v1/alerts/{id}/members": "viewer",
    "POST /api/v1/alerts/{id}/acknowledge": "operator",
    "POST /api/v1/alerts/{id}/assign": "operator",
    "POST /api/v1/alerts/{id}/snooze": "operator",
    "POST /api/v1/alerts/{id}/wake": "operator",
    "POST /api/v1/alerts/{id}/resolve": "operator",
    "GET /api/v1/channels": "viewer",
    "POST /api/v1/channels": "admin",
    "DELETE /api/v1/channels/{name}": "admin",
    "POST /api/v1/channels/{name}/test": "operator",
    "GET /api/v1/deliveries": "operator",
    "GET /api/v1/deliveries/{id}": "operator",
    "POST /api/v1/deliveries/{id}/retry": "operator",
    "GET /api/v1/silences": "viewer",
    "POST /api/v1/silences": "operator",
    "DELETE /api/v1/silences/{id}": "operator",
    "GET /api/v1/lineage": "viewer",
    "GET /api/v1/runs": "viewer",
    "GET /api/v1/runs/compare": "viewer",
    "GET /api/v1/runs/{id}": "viewer",
    "POST /api/v1/runs/{id}/annotate": "operator",
    "GET /api/v1/operations": "viewer",
    "GET /api/v1/operations/{id}": "viewer",
    "GET /api/v1/operations/{id}/log": "operator",
    "POST /api/v1/operations/{id}/cancel": "operator",
    "GET /api/v1/audit": "viewer",
    "GET /api/v1/audit/head": "viewer",
    "GET /api/v1/audit/export": "admin",
    "GET /api/v1/audit/export.csv": "admin",
    "GET /api/v1/profiles": "viewer",
    "GET /api/v1/stream": "viewer",
}


def shown(path: str) -> str:
    return re.sub(r"<(?:[^:>]+:)?([^>]+)>", r"{\1}", path)


def test_the_table_names_every_route_and_no_other() -> None:
    assert {f"{r.method} {shown(r.path)}" for r in registry.all_routes()} == set(LEAST)


@pytest.mark.parametrize("role", ["", *ROLES])
def test_each_role_has_exactly_the_rights_of_the_table(
    controller: ControllerApp, role: str
) -> None:
    for name, least in LEAST.items():
        method, path = name.split()
        path = re.sub(r"{(\w+)}", "1", path)
        body = {} if method in ("GET", "DELETE") else {"json": {}}
        response = controller.request(method, path, role, **body)
        response.close()
        if least and not role:
            assert is_problem(response, 401, "denied"), name
            assert response.headers["WWW-Authenticate"].startswith("Bearer")
        elif least and ROLES.index(role) < ROLES.index(least):
            assert is_problem(response, 403, "denied"), name
            assert response.json["needed"] == least
        else:
            assert response.status_code not in (401, 403, 500), (name, response.get_data())


def test_a_token_does_no_more_than_its_user_may_now(controller: ControllerApp) -> None:
    made = controller.post("/api/v1/tokens", "operator", json=TOKEN | {"role": "viewer"})
    bearer = {"Authorization": f"Bearer {made.json['secret']}"}
    assert controller.client.get("/api/v1/me", headers=bearer).json["role"] == "viewer"
    assert is_problem(controller.client.get("/api/v1/join-tokens", headers=bearer), 403)
    refused = controller.post("/api/v1/tokens", "operator", json=TOKEN | {"role": "admin"})
    assert is_problem(refused, 403)
