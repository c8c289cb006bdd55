"""Routes for MLflow: versions of its registry as releases, aliases that are followed."""

from typing import Literal

import msgspec

from shoal.controller.api.models import OPERATION, TaskWord
from shoal.controller.api.routing import Call, RequestModel, route
from shoal.controller.mlflow import follows, imports
from shoal.controller.mlflow.records import Follow, MlflowStatus, Rule
from shoal.controller.operations.operations import Operation
from shoal.controller.rollouts.behaviour_records import BehaviourGate
from shoal.controller.rollouts.records import RolloutPlan, StagePlan
from shoal.controller.training.imports import ImportRequest

TAG = "mlflow"


class RegistryImport(RequestModel, frozen=True, kw_only=True):
    """An import from MLflow; it is measured like an import of a file.

    source     "mlflow:NAME/VERSION" or "mlflow:NAME@alias"
    dataset    a labelled table, for a model of rows; for one of named tensors a dataset of images,
               audio or tensors, or ""
    task       as of an import of a file; "tensors": nothing is claimed
    labels     class names by output column
    settings, kinds, pipeline   as of an import of a file
    """

    source: str
    dataset: str = ""
    task: TaskWord = ""
    labels: list[str] = msgspec.field(default_factory=list)
    kinds: str = ""
    settings: str = ""
    pipeline: str = ""


@route("POST", "/api/v1/models/<model>/import-mlflow", role="operator", tag=TAG, status=202,
       location=OPERATION, repeatable=True)  # fmt: skip
def import_from_mlflow(call: Call, model: str, body: RegistryImport) -> Operation:
    """Fetch a version from MLflow's registry and import its ONNX flavour.

    A version that cannot be imported is refused at once; the rest is measured in the operation.
    """
    request = ImportRequest(
        body.task, body.dataset, body.labels, body.pipeline, {}, body.kinds, body.settings
    )
    return imports.start(
        call.ctx, call.services.mlflow, call.services.read_facts,
        actor=call.by, model=model, reference=body.source, request=request,
    )  # fmt: skip


class FollowPlan(RequestModel, frozen=True, kw_only=True):
    """The plan of a rollout without its release; every field as there."""

    stages: list[StagePlan]
    on_failure: str = "pause"
    deadline_s: float = 86_400.0
    max_attempts: int = 1
    max_concurrent: int = 0
    gates: list[BehaviourGate] = msgspec.field(default_factory=list)
    analyse_s: float = 86_400.0


class NewFollow(RequestModel, frozen=True, kw_only=True):
    """An alias to follow; the rule acts in the name of who makes it.

    alias    "NAME@alias"; model: of Shoal, whose next release each version becomes
    plan     of the rollouts, as of a rollout, without its release
    policy   "release" signs for the whole fleet what no gate refuses, "candidate" for canary
             devices alone
    now      also roll out the version that the alias names already
    dataset, task, labels, kinds, settings, pipeline   as of an import from MLflow
    """

    alias: str
    model: str
    plan: FollowPlan
    policy: Literal["release", "candidate"] = "release"
    now: bool = False
    dataset: str = ""
    task: TaskWord = ""
    labels: list[str] = msgspec.field(default_factory=list)
    kinds: str = ""
    settings: str = ""
    pipeline: str = ""


@route("GET", "/api/v1/mlflow", role="viewer", tag=TAG)
def get_mlflow(call: Call) -> MlflowStatus:
    """The connection to MLflow: runs that are mirrored, aliases that are followed."""
    return follows.status(call.ctx)


@route("POST", "/api/v1/mlflow/follows", role="approver", tag=TAG, status=201, repeatable=True)
def follow_alias(call: Call, body: NewFollow) -> Follow:
    """Roll out every version that an alias moves to."""
    given = {
        name: getattr(body, name)
        for name in ("policy", "dataset", "task", "labels", "kinds", "settings", "pipeline")
    }
    plan = msgspec.convert({"release": "", **msgspec.to_builtins(body.plan)}, RolloutPlan)
    return follows.follow(
        call.ctx, call.services.mlflow, actor=call.by, name=body.alias, model=body.model,
        rule=Rule(plan=plan, **given), now=body.now,
    )  # fmt: skip


@route("DELETE", "/api/v1/mlflow/follows/<name>", role="approver", tag=TAG, status=204)
def unfollow_alias(call: Call, name: str) -> None:
    """Follow an alias no more; rollouts that it has started go on."""
    follows.unfollow(call.ctx, actor=call.by, name=name)
