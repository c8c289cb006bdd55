"""What a request with a scoped token is about: its models and sites, held against the scope."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from shoal.controller.access import scopes
from shoal.controller.access.roles import Actor
from shoal.controller.alerts import listing
from shoal.controller.api.routing import Route
from shoal.controller.federated.rounds import rounds
from shoal.controller.fleet import devices
from shoal.controller.host.context import Context
from shoal.controller.rollouts import rollouts, undeployments

#: Views that tell nothing of models and sites.
OPEN = frozenset({"get_me", "sign_out", "list_profiles", "list_estimators"})
Subjects = tuple[set[str], set[str]]


def require(ctx: Context, actor: Actor, route: Route, parameters: Mapping[str, Any]) -> None:
    """DeniedError when the request is outside of the actor's scope; AbsentError for what is not
    there."""
    if not actor.scoped or not route.role or route.name in OPEN:
        return
    models, sites = subjects_of(ctx, route, parameters)
    scopes.require(actor, models=models, sites=sites, reads=route.method == "GET")


def subjects_of(ctx: Context, route: Route, parameters: Mapping[str, Any]) -> Subjects:
    """Models and sites that a request names: by its path, and fields of its query, body, form."""
    models, sites = _of_path(ctx, route, parameters)
    for kind in ("query", "body", "form"):
        if kind in parameters:
            more_models, more_sites = _of_fields(ctx, parameters[kind])
            models, sites = models | more_models, sites | more_sites
    return models - {""}, sites - {""}


def _of_path(ctx: Context, route: Route, parameters: Mapping[str, Any]) -> Subjects:
    if "model" in parameters:
        return {parameters["model"]}, set()
    if "device" in parameters:
        return set(), _sites(ctx, [parameters["device"]])
    if "task" in parameters:
        return {rounds.get_task(ctx, parameters["task"]).model}, set()
    if "ref" in parameters and "/releases/" in route.path:
        return {_model(parameters["ref"])}, set()
    if "id" in parameters and (find := _BY_ID.get(route.path.split("/")[3])):
        return find(ctx, parameters["id"])
    return set(), set()


def _of_fields(ctx: Context, given: Any) -> Subjects:
    """`release` is MODEL@N; the subject of a drift query is a site or a device, by its scope."""
    named = {name: getattr(given, name) for name in given.__struct_fields__}
    models = {_text(named, "model"), _model(_text(named, "release"))}
    sites = {_text(named, "site"), *_texts(named, "sites")}
    names = {_text(named, "device"), *_texts(named, "devices")}
    if _text(named, "scope") == "site":
        sites.add(_text(named, "subject"))
    elif _text(named, "scope") == "device":
        names.add(_text(named, "subject"))
    return models, sites | _sites(ctx, names - {""})


def _sites(ctx: Context, names: Iterable[str]) -> set[str]:
    return {devices.get_device(ctx, name).site for name in names}


def _text(named: Mapping[str, Any], name: str) -> str:
    value = named.get(name)
    return value if isinstance(value, str) else ""


def _texts(named: Mapping[str, Any], name: str) -> list[str]:
    value = named.get(name) or []
    if isinstance(value, str):
        return [part.strip() for part in value.split(",")]
    return [part for part in value if isinstance(part, str)]


def _model(ref: str) -> str:
    return ref.partition("@")[0]


def _of_rollout(ctx: Context, ident: Any) -> Subjects:
    return {_model(rollouts.get_rollout(ctx, ident).release)}, set()


def _of_undeployment(ctx: Context, ident: Any) -> Subjects:
    return {undeployments.get_undeployment(ctx, ident).model}, set()


def _of_alert(ctx: Context, ident: Any) -> Subjects:
    found = listing.get_alert(ctx, ident)
    return {found.model or _model(found.release)}, {found.site}


def _of_round(ctx: Context, ident: Any) -> Subjects:
    task = rounds.get_round(ctx, ident).task
    return {rounds.get_task(ctx, task).model}, set()


_BY_ID: Mapping[str, Callable[[Context, Any], Subjects]] = {
    "rollouts": _of_rollout,
    "undeployments": _of_undeployment,
    "alerts": _of_alert,
    "rounds": _of_round,
}
