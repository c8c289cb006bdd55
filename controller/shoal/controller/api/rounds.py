"""Routes for federated tasks and rounds."""

from typing import Annotated

import msgspec

from shoal.controller.api.routing import Call, Limit, Listing, RequestModel, all_of, route
from shoal.controller.federated.planning import tasks
from shoal.controller.federated.records import Participation, Round, Task, TaskPlan
from shoal.controller.federated.rounds import rounds

TAG = "rounds"


class Start(RequestModel, frozen=True, kw_only=True):
    """Number of further rounds."""

    rounds: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 1


class RoundQuery(RequestModel, frozen=True, kw_only=True):
    """The newest rounds of one task, "" for all tasks."""

    task: str = ""
    limit: Limit = 100


class NewestRoundsQuery(RequestModel, frozen=True, kw_only=True):
    """Number of newest rounds."""

    limit: Limit = 50


@route("GET", "/api/v1/tasks", role="viewer", tag=TAG)
def list_tasks(call: Call) -> Listing[Task]:
    """Federated tasks, newest first."""
    return all_of(rounds.list_tasks(call.ctx))


@route("POST", "/api/v1/tasks", role="operator", tag=TAG, status=202, repeatable=True,
       location="/api/v1/tasks/{name}")  # fmt: skip
def plan_task(call: Call, body: TaskPlan) -> Task:
    """Plan a federated task; its operation builds the train graph."""
    return tasks.plan(call.ctx, actor=call.by, task_plan=body)


@route("GET", "/api/v1/tasks/<task>", role="viewer", tag=TAG)
def get_task(call: Call, task: str) -> Task:
    """One federated task."""
    return rounds.get_task(call.ctx, task)


@route("GET", "/api/v1/tasks/<task>/participations", role="viewer", tag=TAG)
def list_task_participations(
    call: Call, task: str, query: NewestRoundsQuery
) -> Listing[Participation]:
    """Participation in the newest rounds of a task, round by round."""
    return all_of(rounds.matrix(call.ctx, task, last=query.limit))


@route("POST", "/api/v1/tasks/<task>/start", role="operator", tag=TAG, repeatable=True)
def start_rounds(call: Call, task: str, body: Start) -> Task:
    """Start rounds; they run one after the other."""
    return rounds.start(call.ctx, actor=call.by, task=task, rounds=body.rounds)


@route("POST", "/api/v1/tasks/<task>/abort", role="operator", tag=TAG)
def abort_rounds(call: Call, task: str) -> Task:
    """Abort the running round, and start no further one."""
    return rounds.abort(call.ctx, actor=call.by, task=task)


@route("GET", "/api/v1/rounds", role="viewer", tag=TAG)
def list_rounds(call: Call, query: RoundQuery) -> Listing[Round]:
    """Rounds, newest first."""
    return all_of(rounds.list_rounds(call.ctx, task=query.task, limit=query.limit))


@route("GET", "/api/v1/rounds/<id>", role="viewer", tag=TAG)
def get_round(call: Call, id: str) -> Round:  # noqa: A002 - the API's word
    """One round, "task.number"."""
    return rounds.get_round(call.ctx, id)


@route("GET", "/api/v1/rounds/<id>/devices", role="viewer", tag=TAG)
def list_round_devices(call: Call, id: str) -> Listing[Participation]:  # noqa: A002
    """Devices invited to a round, with their state and statistics of their updates."""
    return all_of(rounds.participations(call.ctx, id))
