"""Training and importing: asked for here, done in a subprocess by run_operation."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from shoal import manifest
from shoal.controller.data import datasets
from shoal.controller.federated import tasks
from shoal.controller.host.context import Context
from shoal.controller.operations import operations
from shoal.controller.releases import models, releases, verdicts
from shoal.controller.releases.built import Built
from shoal.controller.store.origin import Origin
from shoal.controller.store.records import DatasetVersion, Operation, Release
from shoal.controller.training.jobs import IMPORTED, Checkpoint, Job, read_params
from shoal.errors import ConflictError, DatasetError, ShoalError
from shoal.pipeline import Pipeline

TRAIN, IMPORT, CHECKPOINT = "train", "import", "checkpoint"
#: What an operation's `trigger` begins with when automation asked for it.
AUTOMATIC = "alert:"
ROUNDS = "rounds:"


def start_training(
    ctx: Context,
    *,
    actor: str,
    model: str,
    dataset: str,
    estimator: str = "mlp",
    params: Mapping[str, Any] | None = None,
    sites: Sequence[str] | None = None,
    trigger: str = "manual",
) -> Operation:
    """Ask for a model trained on `dataset`; what can be checked at once is.

    params   of the estimator: shoal.controller.training.jobs.ESTIMATORS; sites: train on these only
    """
    whole = dict(params or {}) | ({"sites": list(sites)} if sites else {})
    checked = read_params(estimator, whole)
    version = datasets.get_dataset(ctx, dataset)
    if missing := [site for site in checked.sites if site not in version.sites]:
        raise DatasetError(
            f"{version.ref} has no site {missing[0]!r}",
            f"its sites are: {', '.join(version.sites)}",
        )
    return _start(ctx, actor, TRAIN, model, version, estimator, whole, trigger, {})


def start_import(
    ctx: Context,
    *,
    actor: str,
    model: str,
    onnx: str,
    variants: Mapping[str, str],
    dataset: str,
    labels: Sequence[str] = (),
    pipeline: Pipeline | None = None,
) -> Operation:
    """Ask for a release of a model that was trained elsewhere.

    onnx, variants   SHA-256 of blobs: the fp32 model, and further variants by name
    dataset          real rows to measure, calibrate and take golden vectors from
    labels           class names by output column; empty for the dataset's own, in order
    pipeline         what the model reads of the dataset's columns; None for the columns themselves
    """
    version = datasets.get_dataset(ctx, dataset)
    for sha256 in (onnx, *variants.values()):
        ctx.blobs.path(sha256)
    params = {} if pipeline is None else {"pipeline": msgspec.to_builtins(pipeline)}
    given = {"onnx": onnx, "variants": dict(variants), "labels": list(labels)}
    return _start(ctx, actor, IMPORT, model, version, IMPORTED, params, "manual", given)


def start_checkpoint(
    ctx: Context,
    *,
    actor: str,
    dataset: str,
    base: Release,
    labels: Sequence[str],
    pipeline: Pipeline,
    onnx: str,
    checkpoint: Mapping[str, Any],
    origin: Origin,
    trigger: str,
) -> Operation:
    """Ask for a release of what federated rounds made of `base`.

    dataset      real rows to measure, calibrate and take golden vectors from; held back are the
                 same ones as for the base, where it was trained on them
    onnx         SHA-256 of the inference graph; checkpoint: learning.Checkpoint, its files as
                 SHA-256
    """
    version = datasets.get_dataset(ctx, dataset)
    for sha256 in (onnx, checkpoint["theta"], checkpoint["graph"]):
        ctx.blobs.path(sha256)
    split = {name: value for name, value in base.params.items() if name in ("seed", "holdout")}
    params = split | {"pipeline": msgspec.to_builtins(pipeline)}
    given = {"onnx": onnx, "labels": list(labels), "checkpoint": dict(checkpoint)}
    given["origin"] = msgspec.to_builtins(origin)
    return _start(ctx, actor, CHECKPOINT, base.model, version, IMPORTED, params, trigger, given)


def run_operation(ctx: Context, ident: str) -> Operation:
    """Do the work of a claimed operation to its end; a failure is recorded in it, with its hint."""
    operation = operations.get_operation(ctx, ident)
    try:
        result = _result(ctx, operation)
    except ShoalError as error:
        return operations.finish(ctx, ident, error=str(error))
    except Exception as error:
        operations.finish(ctx, ident, error=f"{type(error).__name__}: {error!s:.500}")
        raise  # a bug: its traceback belongs in the operation's log
    return operations.finish(ctx, ident, result=result)


def _start(
    ctx: Context,
    actor: str,
    kind: str,
    model: str,
    version: DatasetVersion,
    estimator: str,
    params: dict[str, Any],
    trigger: str,
    given: dict[str, Any],
) -> Operation:
    manifest.check_model(model)
    with ctx.store.write() as db:
        models.ensure_model(db, ctx, actor=actor, name=model)
    whole = {
        "dataset": version.ref,
        "dataset_sha256": version.sha256,
        "estimator": estimator,
        "params": params,
        "trigger": trigger,
    }
    return operations.enqueue(ctx, actor=actor, kind=kind, subject=model, params=whole | given)


def _result(ctx: Context, operation: Operation) -> dict[str, Any]:
    if operation.kind != tasks.FEDERATE:
        return {"release": _release(ctx, operation)}

    def say(fraction: float, step: str) -> None:
        operations.progress(ctx, operation.id, fraction, step)

    release = operation.params["release"] or _release(ctx, operation)
    tasks.prepare(ctx, operation, release, say)
    return {"task": operation.params["task"], "release": release}


def _release(ctx: Context, operation: Operation) -> str:
    """Build, pack, and sign as candidate what automation asked for; the release's name."""
    if ctx.learning is None:
        raise ConflictError("this process cannot train", "run: shoal-controller operation")

    def say(fraction: float, step: str) -> None:
        operations.progress(ctx, operation.id, fraction, step)

    built = ctx.learning.build(_job(ctx, operation), say)
    say(0.95, "packing")
    parent = releases.latest_of(ctx, operation.subject)
    if operation.kind == CHECKPOINT and not built.why_refused:
        why = _why_worse(ctx, operation.params, built, parent)
        built = msgspec.structs.replace(built, why_refused=why)
    made = releases.pack(ctx, operation, built, parent)
    automatic = operation.params["trigger"].startswith((AUTOMATIC, ROUNDS))
    if automatic and not made.quarantined and made.state == releases.VALIDATED:
        say(0.98, "signing as candidate")
        releases.sign_candidate(ctx, made.ref)
    return made.ref


def _why_worse(ctx: Context, params: Mapping[str, Any], built: Built, parent: str) -> str:
    """Why what rounds learned is refused beside the release that they began with, and the newest;
    "" too where other rows were held back for these."""
    rows = datasets.get_dataset(ctx, params["dataset"]).rows * built.params["holdout"]
    for ref in dict.fromkeys([params["origin"]["release"], parent]):
        before = releases.get_release(ctx, ref) if ref else None
        if before is None or before.quarantined or not _same_rows(before, params, built):
            continue
        if why := verdicts.worse_than(ref, before.metrics, built.metrics, built.main, rows):
            return why
    return ""


def _same_rows(before: Release, params: Mapping[str, Any], built: Built) -> bool:
    drawn = [(one.get("seed"), one.get("holdout")) for one in (before.params, built.params)]
    whole = not before.params.get("sites")
    return before.dataset_sha256 == params["dataset_sha256"] and drawn[0] == drawn[1] and whole


def _job(ctx: Context, operation: Operation) -> Job:
    params = operation.params
    version = datasets.get_dataset(ctx, params["dataset"])
    onnx = params.get("onnx")
    return Job(
        model=operation.subject,
        dataset=version,
        table=ctx.blobs.path(version.sha256),
        estimator=params["estimator"],
        params=params["params"],
        onnx=ctx.blobs.path(onnx) if onnx else None,
        variants={k: ctx.blobs.path(v) for k, v in params.get("variants", {}).items()},
        labels=params.get("labels", []),
        checkpoint=_checkpoint(ctx, params.get("checkpoint")),
    )


def _checkpoint(ctx: Context, told: Mapping[str, Any] | None) -> Checkpoint | None:
    if told is None:
        return None
    return Checkpoint(
        theta=ctx.blobs.path(told["theta"]),
        graph=ctx.blobs.path(told["graph"]),
        personal=tuple((start, stop) for start, stop in told["personal"]),
        notes=tuple(told["notes"]),
    )
