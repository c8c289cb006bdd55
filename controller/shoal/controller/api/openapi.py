"""OpenAPI 3.1 document of the declared routes and their structs."""

import re
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from shoal.controller.access import sessions
from shoal.controller.api.dispatch import IDEMPOTENCY_KEY
from shoal.controller.api.problems import MEDIA, Problem
from shoal.controller.api.routing import FORM, JSON, Route

_REF = "#/components/schemas/{name}"
_PATH_PARAMETER = re.compile(r"<(?:[^:>]+:)?([^>]+)>")
#: Problem responses of every route.
_ALWAYS = {
    "400": "The request cannot be parsed",
    "404": "Not found",
    "413": "The body is larger than allowed",
    "422": "The request is not valid",
    "500": "Unexpected error: `id` identifies it in the controller's log",
    "503": "A service that the controller needs is unreachable",
    "507": "The controller's disk is full",
}
_AUTHENTICATED = {"401": "Not signed in", "403": "Not allowed for this role"}
_UNSAFE = {
    "403": "Not allowed, or sent from another site's page",
    "409": "The current state does not allow this",
    "415": "The body has another media type than this route takes",
}
_LOGIN = {"401": "User or password is wrong", "429": "Too many attempts: see Retry-After"}
_PASSWORDS = frozenset({"sign_in", "create_token", "change_password"})


def document(routes: Sequence[Route], version: str) -> dict[str, Any]:
    """The OpenAPI document as JSON builtins."""
    schemas, components = _schemas(routes)
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        path = _PATH_PARAMETER.sub(r"{\1}", route.path)
        paths.setdefault(path, {})[route.method.lower()] = _operation(route, schemas)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Shoal controller",
            "version": version,
            "description": "Errors are RFC 9457 problems. Lists continue with `cursor=page.next`.",
        },
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {
                "token": {"type": "http", "scheme": "bearer", "description": "An API token"},
                "session": {"type": "apiKey", "in": "cookie", "name": sessions.COOKIE},
            },
        },
    }


def _schemas(routes: Sequence[Route]) -> tuple[dict[Any, Any], dict[str, Any]]:
    """Schema of each type of the routes, and the components that they refer to."""
    types = [Problem]
    for route in routes:
        if "body" in route.inputs:
            types.append(route.inputs["body"])
        if route.media == JSON and route.result is not type(None):
            types.append(route.result)
    found, components = msgspec.json.schema_components(types, ref_template=_REF)
    return dict(zip(types, found, strict=True)), components


def _operation(route: Route, schemas: dict[Any, Any]) -> dict[str, Any]:
    summary, _, more = (route.view.__doc__ or "").strip().partition("\n")
    operation: dict[str, Any] = {
        "operationId": route.name,
        "summary": summary,
        "tags": [route.tag],
        "x-role": route.role or "none",
        "security": [{"token": []}, {"session": []}] if route.role else [],
        "parameters": [*_parameters(route)],
        "responses": _responses(route, schemas),
    }
    if more.strip():
        operation["description"] = " ".join(more.split())
    if "body" in route.inputs:
        schema = schemas[route.inputs["body"]]
        operation["requestBody"] = {"required": True, "content": {JSON: {"schema": schema}}}
    if "form" in route.inputs:
        operation["requestBody"] = {"required": True, "content": {FORM: {"schema": _form(route)}}}
    return operation


def _parameters(route: Route) -> Iterator[dict[str, Any]]:
    for name, kind in route.parameters.items():
        schema = {"type": "integer", "minimum": 0} if kind is int else {"type": "string"}
        yield {"name": name, "in": "path", "required": True, "schema": schema}
    if "query" in route.inputs:
        struct = _schema_of(route.inputs["query"])
        for name, schema in struct["properties"].items():
            needed = name in struct.get("required", ())
            yield {"name": name, "in": "query", "required": needed, "schema": schema}
    if route.repeatable:
        schema = {"type": "string", "maxLength": 255}
        yield {
            "name": IDEMPOTENCY_KEY, "in": "header", "required": False, "schema": schema,
            "description": "A repeated key and body get the recorded response, without effect",
        }  # fmt: skip


def _form(route: Route) -> dict[str, Any]:
    struct = _schema_of(route.inputs["form"])
    for name, title in route.files.items():
        schema = {"type": "string", "format": "binary", "description": title}
        if name.endswith("*"):
            struct.setdefault("patternProperties", {})[f"^{re.escape(name[:-1])}"] = schema
            continue
        struct["properties"][name.removesuffix("?")] = schema
        if not name.endswith("?"):
            struct.setdefault("required", []).append(name)
    return struct


def _schema_of(kind: Any) -> dict[str, Any]:
    """The schema of a struct itself, not a reference to it."""
    _, components = msgspec.json.schema_components([kind], ref_template=_REF)
    return dict(components[kind.__name__])


def _responses(route: Route, schemas: dict[Any, Any]) -> dict[str, Any]:
    success: dict[str, Any] = {"description": "Done"}
    if route.media != JSON:
        success["content"] = {route.media: {"schema": {"type": "string"}}}
    elif route.result is not type(None):
        success["content"] = {JSON: {"schema": schemas[route.result]}}
    if route.location:
        schema = {"type": "string", "format": "uri-reference"}
        success["headers"] = {"Location": {"schema": schema, "description": "URL of the result"}}
    responses = {str(route.status): success}
    if route.method == "GET" and route.media == JSON:
        responses["304"] = {"description": "Not modified since the ETag in If-None-Match"}
    problem = {"content": {MEDIA: {"schema": schemas[Problem]}}}
    for status, title in sorted(_problems(route).items()):
        responses[status] = {"description": title, **problem}
    return responses


def _problems(route: Route) -> dict[str, str]:
    authenticated = _AUTHENTICATED if route.role else {}
    unsafe = _UNSAFE if route.method != "GET" else {}
    login = _LOGIN if route.name in _PASSWORDS else {}
    return _ALWAYS | {"401": "The token is not valid"} | unsafe | authenticated | login
