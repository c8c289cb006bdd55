"""Build a release from a job: make the variants, evaluate, gate, and write card and references."""

from collections.abc import Mapping, Sequence

import msgspec
from onnx import ModelProto

from shoal.controller.data.records import DatasetVersion
from shoal.controller.releases import verdicts
from shoal.controller.releases.records import Built, VariantReport, Verdict
from shoal.controller.releases.verdicts import FP32
from shoal.controller.training.io import (
    card,
    golden,
    leakage,
    onnx_graph,
    prepared_rows,
    reference_sketches,
    rows,
    runtime,
)
from shoal.controller.training.io.row_candidates import judge_candidates
from shoal.controller.training.io.rows import Data
from shoal.controller.training.io.validate import (
    MAIN,
    by_site,
    fairness,
    metrics_of,
    robustness,
)
from shoal.controller.training.io.variants import Variants, build_variants
from shoal.controller.training.jobs import Job, ReportProgress
from shoal.controller.training.label_task import CLASSIFICATION, note_on_classes, task_of
from shoal.estimators import ESTIMATORS, ImportParams, Params, ScriptParams, read_params
from shoal.manifest import Feature
from shoal.pipeline import Pipeline
from shoal.profile import load_profiles

#: Decision threshold of two-class models.
THRESHOLD = 0.5


def build(job: Job, progress: ReportProgress) -> Built:
    """Run the job; DatasetError, ModelError or SettingError when it is impossible."""
    params = read_params(job.estimator, job.params)
    task = ESTIMATORS[job.estimator].task or _task_of_import(job, params)
    progress(0.02, f"reading {job.dataset.ref}")
    data = rows.prepare(job, params, task)
    progress(0.05, "looking for columns that give the label away")
    leaks = leakage.notes_on_leaks(data, job.dataset.label, task, params.seed)
    steps = prepared_rows.pipeline_of(params, data)
    data = prepared_rows.apply_pipeline(data, steps)
    built = build_variants(job, params, data, task, progress)
    built.notes[:0] = leaks
    if task == CLASSIFICATION and not job.labels and not _is_stated(params):
        built.notes.extend(filter(None, [note_on_classes(job.dataset)]))
    progress(0.45, "measuring on held-back rows")
    reports, gated, _ = judge_candidates(built, data, task, progress, [*job.variants])
    progress(0.85, "measuring per site, and with noise")
    metrics, sites = _evaluate(built, data, task, params)
    progress(0.90, "golden vectors and references")
    return _assemble(job, params, data, task, built, reports, metrics, sites, gated, steps)


def _is_stated(params: Params) -> bool:
    return isinstance(params, ImportParams | ScriptParams) and bool(params.task)


def _task_of_import(job: Job, params: Params) -> str:
    """As given; else as class names or the label say."""
    given = params.task if isinstance(params, ImportParams | ScriptParams) else ""
    return given or (CLASSIFICATION if job.labels else task_of(job.dataset))


def _evaluate(
    built: Variants, data: Data, task: str, params: Params
) -> tuple[dict[str, float], dict[str, float]]:
    """Metrics of fp32 on held-back rows of the training sites, and the main metric per site."""
    session = runtime.open_session(built.files[FP32], FP32)

    def predict(x: runtime.F32) -> runtime.F32:
        return runtime.run(session, x, FP32)

    metrics = metrics_of(task, data.held.y, predict(data.held.x))
    metrics |= fairness(by_site(task, data.held, predict(data.held.x)))
    metrics |= robustness(task, data.held, predict, params.seed)
    return metrics, by_site(task, data.elsewhere, predict(data.elsewhere.x))


def _assemble(
    job: Job,
    params: Params,
    data: Data,
    task: str,
    built: Variants,
    reports: dict[str, VariantReport],
    metrics: dict[str, float],
    sites: dict[str, float],
    gated: list[Verdict],
    steps: Pipeline,
) -> Built:
    outputs = runtime.outputs(built.files[FP32], data.train.x, FP32)
    sketches = reference_sketches.references_of(data.features, data.train, outputs, task, THRESHOLD)
    failed = _damaged(job, reports, task)
    notes = _notes(job, params, data, built)
    variants = list(reports.values())
    return Built(
        task=task,
        main=MAIN[task],
        metrics=metrics,
        by_site=sites,
        features=_features(data),
        labels=data.labels,
        files=built.files,
        variants=variants,
        verdicts=gated,
        why_refused=_why_refused(task, metrics, data, failed, gated),
        references=reference_sketches.to_bytes(sketches),
        golden=golden.golden_of(built.files, data.held, task, failed).to_bytes(),
        card=card.card_of(
            job,
            rows=len(data.train.y),
            metrics=metrics,
            sites=sites,
            variants=variants,
            features=len(data.features),
            notes=notes,
        ),
        notes=notes,
        opset=onnx_graph.opset_of(ModelProto.FromString(built.files[FP32])),
        ort=runtime.ORT,
        threshold=THRESHOLD,
        params=msgspec.to_builtins(params),
        pipeline=steps,
        curves=dict(built.curves),
        reported=dict(built.reported),
    )


def _damaged(job: Job, reports: dict[str, VariantReport], task: str) -> dict[str, str]:
    """Imported variants that lose more than a profile allows, or are too large for it: why."""
    found: dict[str, str] = {}
    for profile in load_profiles().values():
        for name in sorted(set(profile.variants) & set(job.variants)):
            report = reports[name]
            why = verdicts.why_too_large(report.size, 0.0, profile) or verdicts.damage(
                report, reports[FP32], profile.gate, MAIN[task]
            )
            if why:
                found.setdefault(name, why)
    return found


def _features(data: Data) -> list[Feature]:
    low, high = data.train.x.min(0), data.train.x.max(0)
    return [
        Feature(name=name, low=float(low[i]), high=float(high[i]))
        for i, name in enumerate(data.features)
    ]


def _why_refused(
    task: str,
    metrics: dict[str, float],
    data: Data,
    failed: Mapping[str, str],
    gated: Sequence[Verdict],
) -> str:
    """Why the release needs an override by a person; "" when it passes."""
    if why := verdicts.no_better_than_guessing(task, metrics, len(data.labels)):
        return why
    for name, why in sorted(failed.items()):
        return f"imported variant {name}: {why}"
    return "" if any(v.passed for v in gated) else "no profile can run any of its variants"


def _notes(job: Job, params: Params, data: Data, built: Variants) -> list[str]:
    notes = [*built.notes, *job.found]
    if params.sites:
        notes.append(f"trained on site {', '.join(params.sites)} only")
    return notes + _rows_left_out(job.dataset, data)


def _rows_left_out(dataset: DatasetVersion, data: Data) -> list[str]:
    uneven = {one.reason: one.count for one in dataset.left_out if one.names}
    notes = [f"{n} rows were left out: {why}" for why, n in (uneven | data.left_out).items()]
    if dataset.duplicates:
        notes.append(
            f"{dataset.duplicates} rows are the same as one before them: where one is held back "
            "and its double trained on, metrics are better than on new data"
        )
    return notes
