"""Training and importing: enqueued here, run in a subprocess by `perform`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from shoal.controller.data import datasets
from shoal.controller.data.records import DatasetVersion
from shoal.controller.host.context import Context
from shoal.controller.operations import operations
from shoal.controller.operations.operations import Operation
from shoal.controller.releases import models, releases, verdicts
from shoal.controller.releases.records import Built, Origin, Release
from shoal.controller.runs import recording
from shoal.controller.runs.records import CHECKPOINT, IMPORT, TRAIN
from shoal.controller.training.jobs import (
    Checkpoint,
    Job,
    ModelBuilder,
    ScriptLimits,
    TaskDeclaration,
    TensorsJob,
)
from shoal.controller.training.label_task import task_of
from shoal.errors import DatasetError, DeniedError, SettingError
from shoal.estimators import (
    DEFAULT_ESTIMATORS,
    ESTIMATORS,
    IMPORTED,
    SCRIPT,
    estimators_of,
    read_params,
)
from shoal.manifest import TENSORS
from shoal.pipeline import Pipeline

#: Value of the setting `scripts` that lets nobody run one, and what is answered then.
NOBODY = "none"
SWITCHED_OFF = (
    "training with scripts is switched off on this controller",
    'set scripts = "admin" under [operations] in its controller.toml (docs/training.md)',
)
#: Prefixes of an operation's `trigger` for automatic starts.
AUTOMATIC = "alert:"
ROUNDS = "rounds:"


def start_training(
    ctx: Context,
    *,
    actor: str,
    model: str,
    dataset: str,
    estimator: str = "",
    task: str = "",
    params: Mapping[str, Any] | None = None,
    sites: Sequence[str] | None = None,
    trigger: str = "manual",
    script: str = "",
    revision: str = "",
) -> Operation:
    """Enqueue training on `dataset`, after checking the parameters.

    estimator   of shoal.estimators; "" for the task's small network
    task        "classification" or "regression"; "" for what the estimator or the label says
    params      of the estimator; sites: train on these only
    script      SHA-256 of the blob of a script, for estimator "script": scripts.start checks it
    revision    of the code or the configuration that asks for it, such as a Git commit

    SettingError when the label may be classes or a quantity and neither says which.
    """
    complete = dict(params or {}) | ({"sites": list(sites)} if sites else {})
    version = datasets.get_labelled_table(ctx, dataset)
    estimator = estimator or DEFAULT_ESTIMATORS[task_of(version, task)]
    checked = read_params(estimator, complete)
    if estimator == SCRIPT and not script:
        raise SettingError("no script is given", "shoal model train NAME --script train.py")
    if estimator == IMPORTED:
        raise SettingError("nothing can be trained as imported", "see: shoal model import --help")
    if estimator != SCRIPT and task not in ("", ESTIMATORS[estimator].task):
        raise SettingError(
            f"estimator {estimator} is for {ESTIMATORS[estimator].task}, not for {task}",
            f"leave it out, or take one of: {', '.join(estimators_of(task))}",
        )
    if missing := [site for site in checked.sites if site not in version.sites]:
        raise DatasetError(
            f"{version.ref} has no site {missing[0]!r}",
            f"its sites are: {', '.join(version.sites)}",
        )
    files = {name: text for name, text in (("script", script), ("revision", revision)) if text}
    return _start(ctx, actor, TRAIN, model, version, estimator, complete, trigger, files)


def start_import(
    ctx: Context,
    *,
    actor: str,
    model: str,
    onnx: str,
    variants: Mapping[str, str],
    dataset: str,
    data: Mapping[str, str] = {},
    labels: Sequence[str] = (),
    task: str = "",
    pipeline: Pipeline | None = None,
    source: Mapping[str, Any] = {},
    trigger: str = "manual",
) -> Operation:
    """Enqueue an import: a release of a model trained elsewhere.

    onnx, variants   SHA-256 of blobs: the fp32 model, and further variants by name
    data             of files that `onnx` keeps weights in, by the names that it calls them
    dataset          rows for evaluation, calibration and golden vectors
    labels           class names by output column; empty for the dataset's own, in order
    task             "classification" or "regression"; "" for what the label says
    pipeline         from the dataset's columns to the model's inputs; None when they are the same
    source           fields of runs.records.Source; empty for a file that a person gave
    """
    version = datasets.get_labelled_table(ctx, dataset)
    for sha256 in (onnx, *variants.values(), *data.values()):
        ctx.blobs.path(sha256)
    if not labels:
        task_of(version, task)  # asks now where the label leaves it open
    params: dict[str, Any] = {"task": task}
    params |= {} if pipeline is None else {"pipeline": msgspec.to_builtins(pipeline)}
    files = {"onnx": onnx, "variants": dict(variants), "labels": list(labels)}
    files |= {"data": dict(data)} if data else {}
    files |= _provenance(source)
    return _start(ctx, actor, IMPORT, model, version, IMPORTED, params, trigger, files)


def start_tensors_import(
    ctx: Context,
    *,
    actor: str,
    model: str,
    onnx: str,
    sample: str = "",
    dataset: str = "",
    steps: str = "",
    kinds: Mapping[str, str] | None = None,
    declared: TaskDeclaration | None = None,
    data: Mapping[str, str] = {},
    source: Mapping[str, Any] = {},
    trigger: str = "manual",
) -> Operation:
    """Enqueue an import of a model with named tensors.

    onnx     SHA-256 of the model's blob; sample: of items of its inputs, "" for none
    dataset  "name@version" of the items, which the release then was made with; "" for none
    steps    of a file of declared steps that become part of the model; "" for none
    kinds    what inputs are: tensor_kinds.parse_kinds
    declared what is claimed of it; None for nothing: tensors in, tensors out
    data     of files that it keeps weights in, by the names that it calls them
    source   fields of runs.records.Source; empty for a file that a person gave
    """
    for sha256 in filter(None, (onnx, sample, steps, *data.values())):
        ctx.blobs.path(sha256)
    with ctx.store.write() as db:
        models.ensure_model(db, ctx, actor=actor, name=model)
    params = {
        "task": TENSORS, "dataset": dataset, "dataset_sha256": sample if dataset else "",
        "estimator": IMPORTED, "params": {}, "trigger": trigger, "onnx": onnx, "sample": sample,
        "steps": steps, "kinds": dict(kinds or {}), "declared": msgspec.to_builtins(declared),
    }  # fmt: skip
    params |= ({"data": dict(data)} if data else {}) | _provenance(source)
    return operations.enqueue(ctx, actor=actor, kind=IMPORT, subject=model, params=params)


def _provenance(source: Mapping[str, Any]) -> dict[str, Any]:
    """What an import remembers of where its model is from; the revision is its code's."""
    if not source:
        return {}
    revision = source.get("revision", "")
    return {"source": dict(source)} | ({"revision": revision} if revision else {})


def start_checkpoint(
    ctx: Context,
    *,
    actor: str,
    dataset: str,
    base: Release,
    onnx: str,
    checkpoint: Mapping[str, Any],
    origin: Origin,
    trigger: str,
) -> Operation:
    """Enqueue a release of a federated checkpoint that derives from `base`.

    dataset      rows for evaluation, calibration and golden vectors; the held-back rows are
                 those of the base, where it was trained on the same dataset
    onnx         SHA-256 of the inference graph; checkpoint: jobs.Checkpoint, its files as
                 SHA-256
    """
    version = datasets.get_labelled_table(ctx, dataset)
    for sha256 in (onnx, checkpoint["theta"], checkpoint["graph"]):
        ctx.blobs.path(sha256)
    manifest, _ = releases.manifest_of(ctx, base.ref)
    split = {name: value for name, value in base.params.items() if name in ("seed", "holdout")}
    params = split | {"pipeline": msgspec.to_builtins(manifest.pipeline)}
    inputs = {"onnx": onnx, "labels": list(manifest.labels), "checkpoint": dict(checkpoint)}
    inputs["origin"] = msgspec.to_builtins(origin)
    return _start(ctx, actor, CHECKPOINT, base.model, version, IMPORTED, params, trigger, inputs)


def perform(
    builder: ModelBuilder, ctx: Context, operation: Operation, report: operations.Report
) -> dict[str, Any]:
    """Run an operation of runs.records.KINDS; its result names the release."""
    given = operation.params.get("params") or {}
    recording.begin(ctx, operation.id, given, builder.environment())
    return {"release": build_release(builder, ctx, operation, report)}


def build_release(
    builder: ModelBuilder, ctx: Context, operation: Operation, report: operations.Report
) -> str:
    """Build, pack, and sign as candidate what automation requested; the release's name."""
    built = _build(builder, ctx, operation, report)
    report(0.95, "packing")
    parent = releases.latest_of(ctx, operation.subject)
    if operation.kind == CHECKPOINT and not built.why_refused:
        why = _why_worse(ctx, operation.params, built, parent)
        built = msgspec.structs.replace(built, why_refused=why)
    release = releases.pack(ctx, operation, built, parent)
    automatic = operation.params["trigger"].startswith((AUTOMATIC, ROUNDS))
    if automatic and not release.quarantined and release.state == releases.VALIDATED:
        report(0.98, "signing as candidate")
        releases.sign_candidate(ctx, release.ref)
    return release.ref


def _build(
    builder: ModelBuilder, ctx: Context, operation: Operation, report: operations.Report
) -> Built:
    params = operation.params
    if params.get("task") != TENSORS:
        return builder.build(_job(ctx, operation), report)
    files = {
        name: ctx.blobs.path(params[name]) if params.get(name) else None
        for name in ("sample", "steps")
    }
    onnx = ctx.blobs.path(params["onnx"])
    declared = params.get("declared")
    job = TensorsJob(
        model=operation.subject,
        onnx=onnx,
        data=_data(ctx, params),
        kinds=params.get("kinds", {}),
        declared=None if declared is None else msgspec.convert(declared, TaskDeclaration),
        **files,
    )
    return builder.build_tensors(job, report)


def _data(ctx: Context, params: Mapping[str, Any]) -> dict[str, Path]:
    """Paths of an import's data files, by the names that its model calls them."""
    return {name: ctx.blobs.path(sha256) for name, sha256 in params.get("data", {}).items()}


def _start(
    ctx: Context,
    actor: str,
    kind: str,
    model: str,
    version: DatasetVersion,
    estimator: str,
    params: dict[str, Any],
    trigger: str,
    inputs: dict[str, Any],
) -> Operation:
    with ctx.store.write() as db:
        models.ensure_model(db, ctx, actor=actor, name=model)
    common = {
        "dataset": version.ref,
        "dataset_sha256": version.sha256,
        "estimator": estimator,
        "params": params,
        "trigger": trigger,
    }
    return operations.enqueue(ctx, actor=actor, kind=kind, subject=model, params=common | inputs)


def _why_worse(ctx: Context, params: Mapping[str, Any], built: Built, parent: str) -> str:
    """Why a checkpoint is worse than its first release or the newest one; "" when it is not, or
    when those have other held-back rows."""
    rows = datasets.get_dataset(ctx, params["dataset"]).rows * built.params["holdout"]
    for ref in dict.fromkeys([params["origin"]["release"], parent]):
        before = releases.get_release(ctx, ref) if ref else None
        if before is None or before.quarantined or not _same_rows(before, params, built):
            continue
        if why := verdicts.worse_than(ref, before.metrics, built.metrics, built.main, rows):
            return why
    return ""


def _same_rows(before: Release, params: Mapping[str, Any], built: Built) -> bool:
    splits = [(one.get("seed"), one.get("holdout")) for one in (before.params, built.params)]
    all_sites = not before.params.get("sites")
    return (
        before.dataset_sha256 == params["dataset_sha256"] and splits[0] == splits[1] and all_sites
    )


def _job(ctx: Context, operation: Operation) -> Job:
    params = operation.params
    version = datasets.get_dataset(ctx, params["dataset"])
    onnx, allowed = params.get("onnx"), ctx.settings.operations
    return Job(
        model=operation.subject,
        dataset=version,
        table=ctx.blobs.path(version.sha256),
        estimator=params["estimator"],
        params=params["params"],
        onnx=ctx.blobs.path(onnx) if onnx else None,
        variants={k: ctx.blobs.path(v) for k, v in params.get("variants", {}).items()},
        data=_data(ctx, params),
        found=_found(ctx, version),
        labels=params.get("labels", []),
        checkpoint=_checkpoint(ctx, params.get("checkpoint")),
        script=_script(ctx, params.get("script", "")),
        limits=ScriptLimits(
            cpu_s=allowed.script_cpu_s,
            memory_mb=allowed.script_memory_mb,
            file_mb=allowed.script_file_mb,
        ),
    )


def _found(ctx: Context, version: DatasetVersion) -> list[str]:
    """For the model card. Leaks are looked for again, in the rows that are trained on."""
    found = [f for f in datasets.get_report(ctx, version.ref).findings if f.warns]
    return [
        f"warning: {version.ref}: {', '.join(f.columns)}: {f.count} rows: {f.what}"
        for f in found if f.check != "leak"
    ]  # fmt: skip


def _script(ctx: Context, sha256: str) -> Path | None:
    """Path of a script, unless scripts have been switched off meanwhile."""
    if not sha256:
        return None
    if ctx.settings.operations.scripts == NOBODY:
        raise DeniedError(*SWITCHED_OFF)
    return ctx.blobs.path(sha256)


def _checkpoint(ctx: Context, files: Mapping[str, Any] | None) -> Checkpoint | None:
    if files is None:
        return None
    return Checkpoint(
        theta=ctx.blobs.path(files["theta"]),
        graph=ctx.blobs.path(files["graph"]),
        personal=tuple((start, stop) for start, stop in files["personal"]),
        notes=tuple(files["notes"]),
    )
