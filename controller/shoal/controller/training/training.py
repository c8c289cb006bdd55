"""Training and importing: enqueued here, run in a subprocess by `perform`."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from shoal import manifest
from shoal.controller.data import datasets
from shoal.controller.data.records import DatasetVersion
from shoal.controller.host.context import Context
from shoal.controller.operations import operations
from shoal.controller.operations.operations import Operation
from shoal.controller.releases import models, releases, verdicts
from shoal.controller.releases.records import Built, Origin, Release
from shoal.controller.training.jobs import IMPORTED, Checkpoint, Job, ModelBuilder, read_params
from shoal.errors import DatasetError
from shoal.pipeline import Pipeline

TRAIN, IMPORT, CHECKPOINT = KINDS = "train", "import", "checkpoint"
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
    onnx         SHA-256 of the inference graph; checkpoint: jobs.Checkpoint, its files as
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


def perform(
    builder: ModelBuilder, ctx: Context, operation: Operation, report: operations.Report
) -> dict[str, Any]:
    """Run an operation of KINDS; its result names the release."""
    return {"release": build_release(builder, ctx, operation, report)}


def build_release(
    builder: ModelBuilder, ctx: Context, operation: Operation, report: operations.Report
) -> str:
    """Build, pack, and sign as candidate what automation requested; the release's name."""
    built = builder.build(_job(ctx, operation), report)
    report(0.95, "packing")
    parent = releases.latest_of(ctx, operation.subject)
    if operation.kind == CHECKPOINT and not built.why_refused:
        why = _why_worse(ctx, operation.params, built, parent)
        built = msgspec.structs.replace(built, why_refused=why)
    made = releases.pack(ctx, operation, built, parent)
    automatic = operation.params["trigger"].startswith((AUTOMATIC, ROUNDS))
    if automatic and not made.quarantined and made.state == releases.VALIDATED:
        report(0.98, "signing as candidate")
        releases.sign_candidate(ctx, made.ref)
    return made.ref


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
