"""Federated screens: tasks, rounds, participation and dropouts."""

from collections.abc import Callable

from flask import redirect, request, url_for
from werkzeug.wrappers import Response

from shoal.controller.federated.checkpoints import promotion, round_quarantine
from shoal.controller.federated.records import Round, Task
from shoal.controller.federated.rounds import rounds
from shoal.controller.host.context import Context
from shoal.controller.web import dropouts, participation
from shoal.controller.web.screen import actor, blueprint, context, show
from shoal.errors import AbsentError

#: Rounds in a matrix and in the charts; rounds in a table.
IN_MATRIX, IN_CHARTS, IN_TABLE = 30, 300, 20
#: Actions on one round that need a reason.
ROUND_ACTIONS: dict[str, Callable[..., Task]] = {
    "quarantine": round_quarantine.quarantine_round, "lift": round_quarantine.lift
}  # fmt: skip


@blueprint.get("/rounds")
def round_list() -> str:
    """All tasks, and their newest rounds."""
    ctx = context()
    return show(
        "rounds.html",
        tasks=rounds.list_tasks(ctx),
        rounds=rounds.list_rounds(ctx, limit=IN_TABLE),
        dropouts=dropouts,
    )


@blueprint.get("/rounds/<task>")
def round_task(task: str) -> str:
    """One task: training progress, participation and outliers."""
    ctx = context()
    newest = rounds.list_rounds(ctx, task=task, limit=IN_CHARTS)
    ended = rounds.matrix(ctx, task, last=IN_CHARTS)
    running = next((one for one in newest if not one.ended_at), None)
    now = rounds.participations(ctx, running.id) if running else []
    first = min((one.number for one in newest[:IN_MATRIX]), default=0)
    shown = [one for one in (*ended, *now) if one.number >= first]
    return show(
        "task.html",
        task=rounds.get_task(ctx, task),
        rounds=newest[:IN_TABLE],
        running=running,
        matrix=participation.matrix(shown),
        points=participation.points(newest, ended),
        reasons=participation.reasons(shown),
        dropouts=dropouts,
    )


@blueprint.get("/rounds/<task>/<int:number>")
def round_one(task: str, number: int) -> str:
    """One round: every device, and its update compared with the others."""
    ctx = context()
    found = rounds.get_round(ctx, f"{task}.{number}")
    parts = rounds.participations(ctx, found.id)
    return show(
        "round.html",
        round=found,
        parts=sorted(parts, key=lambda one: (not one.suspect, one.device)),
        z=participation.deviations(parts),
        badge_of=participation.badge_of,
        reasons=participation.reasons(parts),
        dropouts=dropouts,
    )


@blueprint.post("/rounds/<task>/start")
def round_start(task: str) -> Response:
    """Request further rounds."""
    count = max(1, min(10_000, request.form.get("rounds", 1, type=int)))
    rounds.start(context(), actor=actor("operator").name, task=task, rounds=count)
    return redirect(url_for("web.round_task", task=task), 303)


@blueprint.get("/rounds/<task>/<action>")
def round_confirm(task: str, action: str) -> str:
    """Confirmation dialog: abort, evaluate, release; quarantine of ?round=N, or lifting it."""
    ctx = context()
    if action not in ("abort", "evaluate", "release", *ROUND_ACTIONS):
        raise AbsentError("action", action)
    number = request.args.get("round", 0, type=int)
    found = rounds.get_task(ctx, task)
    one = rounds.get_round(ctx, f"{task}.{number}") if action in ROUND_ACTIONS else None
    return show(
        "round_confirm.html",
        task=found,
        action=action,
        round=one,
        derived=_later_rounds(ctx, task, one),
    )


@blueprint.post("/rounds/<task>/<action>")
def round_act(task: str, action: str) -> Response:
    """Abort the rounds, evaluate or release the checkpoint, quarantine a round or lift that."""
    who = actor("admin" if action == "lift" else "operator")
    ctx = context()
    if action == "abort":
        rounds.abort(ctx, actor=who.name, task=task)
    elif action in ROUND_ACTIONS:
        number = request.form.get("round", 0, type=int)
        why = request.form.get("why", "")
        ROUND_ACTIONS[action](ctx, actor=who.name, task=task, number=number, why=why)
    elif action == "evaluate":
        started = rounds.evaluate(ctx, actor=who.name, task=task)
        return redirect(url_for("web.round_one", task=task, number=started.number), 303)
    elif action == "release":
        work = promotion.release(ctx, actor=who.name, task=task)
        return redirect(url_for("web.operation", id=work.id), 303)
    else:
        raise AbsentError("action", action)
    return redirect(url_for("web.round_task", task=task), 303)


def _later_rounds(ctx: Context, task: str, one: Round | None) -> int:
    """Number of finished rounds started later, which may derive from this one."""
    if one is None:
        return 0
    later = rounds.list_rounds(ctx, task=task, limit=IN_CHARTS)
    return sum(other.state == "DONE" and other.number > one.number for other in later)
