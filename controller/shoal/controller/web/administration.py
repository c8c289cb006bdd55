"""Administration screens: operations, settings, join tokens."""

from flask import redirect, request, url_for
from werkzeug.wrappers import Response

from shoal.controller.fleet import join_tokens as tokens
from shoal.controller.mlflow import follows
from shoal.controller.operations import operations
from shoal.controller.web.screen import (
    actor,
    asked,
    authority,
    blueprint,
    context,
    may,
    show,
)

HOUR_S = 3600.0


@blueprint.get("/operations")
def operation_list() -> str:
    """A page of training and import jobs, newest first."""
    ctx, given = context(), asked("state", "kind", "subject", "q", sort="-created")
    found, page = operations.page(ctx, **given)
    return show(
        "operations.html", operations=found, page=page, given=given, kinds=operations.kinds(ctx),
        states=operations.STATES,
    )  # fmt: skip


@blueprint.get("/operations/<id>")
def operation(id: str) -> str:  # noqa: A002 - the API's word
    """One job: its progress, result or error."""
    found, log = operations.get_operation(context(), id), ""
    if may("operator"):
        log = operations.log_of(context(), id)
    return show("operation.html", operation=found, log=log)


@blueprint.get("/operations/<id>/cancel")
def operation_confirm(id: str) -> str:  # noqa: A002
    """Confirmation dialog for canceling an operation."""
    found = operations.get_operation(context(), id)
    return show("operation_confirm.html", operation=found)


@blueprint.post("/operations/<id>/cancel")
def operation_cancel(id: str) -> Response:  # noqa: A002
    """Cancel a queued or running operation."""
    operations.cancel(context(), actor=actor("operator").name, ident=id)
    return redirect(url_for("web.operation", id=id), 303)


@blueprint.get("/settings")
def settings() -> str:
    """Settings of this controller, and valid join tokens."""
    ctx = context()
    return show(
        "settings.html", settings=ctx.settings, tokens=tokens.list_join_tokens(ctx),
        mlflow=follows.status(ctx),
    )  # fmt: skip


@blueprint.get("/enrol")
def enrol() -> str:
    """The form for a join token."""
    return show("enrol.html", token=None)


@blueprint.post("/enrol")
def enrol_token() -> str:
    """Create a join token and show it, once, in the enrol command."""
    who = actor("operator")
    form = request.form
    token = tokens.create_join_token(
        context(),
        actor=who.name,
        ca_sha256=authority().root_fingerprint,
        site=form.get("site", "").strip(),
        rings=form.getlist("ring") or ["stable"],
        uses=form.get("uses", 1, type=int),
        ttl_s=form.get("hours", 24.0, type=float) * HOUR_S,
    )
    return show("enrol.html", token=token, url=request.host_url.rstrip("/"))


@blueprint.post("/settings/join-tokens/<id>/revoke")
def token_revoke(id: str) -> Response:  # noqa: A002
    """Revoke a join token."""
    tokens.revoke_join_token(context(), actor=actor("operator").name, id=id)
    return redirect(url_for("web.settings"), 303)
