"""Scopes of API tokens: the models and sites that a token is for.

A request is about models and sites that it names: in its path, query or body. A scoped token

1. is for no request that names a model or a site outside of its scope;
2. is for no request that names none of them: it would be about all;
3. changes something only where the request names one of each kind that the scope has.

So a token for model ``parts`` trains, publishes and rolls out ``parts``, lists alerts with
``?model=parts``, and lists no devices. A rollout moves devices of every site that its stages
choose: it names no site, and a token for a site cannot start one.
"""

from collections.abc import Collection

from shoal.controller.access.roles import Actor
from shoal.errors import DeniedError


def require(actor: Actor, *, models: Collection[str], sites: Collection[str], reads: bool) -> None:
    """DeniedError when a request about `models` and `sites` is outside of the actor's scope.

    reads   the request changes nothing
    """
    asked = {"model": set(models), "site": set(sites)}
    allowed = {"model": set(actor.models), "site": set(actor.sites)}
    scope = [kind for kind in allowed if allowed[kind]]
    for kind in scope:
        if outside := sorted(asked[kind] - allowed[kind]):
            raise _denied(actor, f"not for {kind} {outside[0]!r}")
    named = [kind for kind in scope if asked[kind]]
    if scope and not (named if reads else named == scope):
        raise _denied(actor, "and this request is about more than that")


def _denied(actor: Actor, why: str) -> DeniedError:
    scope = [f"model {m!r}" for m in actor.models] + [f"site {s!r}" for s in actor.sites]
    return DeniedError(
        f"this token is for {', '.join(scope)}, {why}",
        "name one of them in the request, or use a token with another scope",
        signed_in=True,
    )
